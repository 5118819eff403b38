"""A recalibration as JSON: every layer, what it moved and what remains; and the new numbers."""

from __future__ import annotations

from typing import IO, Any

from bnstat.mending.estimating.recalibration import Mended, Recalibration
from bnstat.output.documents import common as documents


def dump(result: Recalibration, model: str, copy: str | None, file: IO[str]) -> None:
    """Write what was done to `model`, and where the copy is, as one object."""
    before, after = result.accuracy or (None, None)
    document = {
        "schema": 1,
        "path": model,
        "copy": copy,
        "samples": result.samples,
        "batches": result.batches,
        "exact": result.exact,
        "waves": result.waves,
        "accuracy_before": before,
        "accuracy_after": after,
        **documents.trained_with(result.evidence),
        "left": [{"layer": name, "reason": why} for name, why in result.left.items()],
        "layers": [_layer(layer) for layer in result.layers],
    }
    documents.dump(document, file)


def _layer(layer: Mended) -> dict[str, Any]:
    return {
        "name": layer.layer,
        "channels": layer.mean.size,
        "moved": layer.moved,
        "variance_ratio": layer.ratio,
        "sure_to": layer.error,
        "remains": layer.remains,
        "moving_mean": [float(number) for number in layer.mean],
        "moving_variance": [float(number) for number in layer.variance],
    }
