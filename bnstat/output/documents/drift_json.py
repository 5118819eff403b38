"""A drift as JSON: every layer and channel."""

from __future__ import annotations

from typing import IO, Any

from bnstat.mending.estimating.drift import Drift, LayerDrift
from bnstat.output.documents import common as documents

CHANNELS = (
    "stored_mean",
    "stored_variance",
    "mean",
    "variance",
    "shift",
    "ratio",
    "divergence",
)
"""What is told of each channel."""


def dump(result: Drift, model: str, file: IO[str]) -> None:
    """Write how far `model` is from the data as one object."""
    document = {
        "schema": 1,
        "path": model,
        "samples": result.samples,
        "accuracy": result.accuracy,
        "state": result.state,
        "largest": result.largest,
        "left": [{"layer": name, "reason": why} for name, why in result.left.items()],
        "layers": [_layer(layer) for layer in result.layers],
    }
    documents.dump(document, file)


def _layer(layer: LayerDrift) -> dict[str, Any]:
    channels = {name: getattr(layer, name).tolist() for name in CHANNELS}
    return {
        "name": layer.layer,
        "state": layer.state,
        "divergence": layer.total,
        **{f"{name}s" if name == "divergence" else name: each for name, each in channels.items()},
    }
