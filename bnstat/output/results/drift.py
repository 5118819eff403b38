"""Drift as JSON and CSV, the JSON read back, and recalibrations as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import DamagedError, NotFoundError
from bnstat.exchange.csv import cell
from bnstat.output import results
from bnstat.output.results import members

if TYPE_CHECKING:
    from bnstat.estimate.drift import Drift, LayerDrift
    from bnstat.estimate.recalibration import Mended, Recalibration

CHANNELS: Final = (
    *("stored_mean", "stored_variance", "mean", "variance"),
    *("shift", "ratio", "divergence"),
)
"""The attributes of `LayerDrift` with one number per channel."""


def dump_drift_json(result: Drift, model: str, file: IO[str]) -> None:
    """Write the drift of a model as JSON."""
    document = {
        "schema": 1,
        "path": model,
        **members(result, "samples", "accuracy", "state", "largest"),
        **_shared(result),
        "layers": [_drift_layer(layer) for layer in result.layers],
    }
    results.dump_common(document, file)


def _shared(result: Drift | Recalibration) -> dict[str, Any]:
    left = [{"layer": name, "reason": reason} for name, reason in result.left.items()]
    return {**results.trained_with(result.evidence), "left": left}


def _drift_layer(layer: LayerDrift) -> dict[str, Any]:
    channels = {name: getattr(layer, name).tolist() for name in CHANNELS}
    channels["divergences"] = channels.pop("divergence")
    return {
        "name": layer.layer,
        "state": layer.state,
        "divergence": layer.total,
        **channels,
    }


class Measured(NamedTuple):
    """The measured statistics of a layer: float64 arrays [channels], and the layer's state."""

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    divergence: NDArray[np.float64]
    state: str


def load(path: str) -> dict[str, Measured]:
    """Return layer -> measured statistics, from a file that `dump_drift_json` wrote.

    Raises:
        NotFoundError: the file does not exist.
        DamagedError: the file was not written by `dump_drift_json`.
    """
    try:
        document = json.loads(Path(path).read_bytes())
        return {_text(layer["name"]): _measured(layer) for layer in document["layers"]}
    except FileNotFoundError:
        raise NotFoundError(path, "no such file") from None
    except (LookupError, RecursionError, TypeError, ValueError):
        raise DamagedError(path, "is not the JSON of bnstat drift", "write it again") from None


def _measured(layer: Any) -> Measured:
    mean, variance, divergence = (
        np.array([float(number) for number in layer[name]], np.float64)
        for name in ("mean", "variance", "divergences")
    )
    if not mean.size == variance.size == divergence.size:
        raise ValueError("the lists do not have the same length")
    return Measured(mean, variance, divergence, _text(layer["state"]))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value


def dump_drift_csv(result: Drift, file: IO[str]) -> None:
    """Write a drift as CSV: one row per channel."""

    def rows() -> Iterator[list[object]]:
        for layer in result.layers:
            columns = [getattr(layer, name).tolist() for name in CHANNELS]
            for channel, numbers in enumerate(zip(*columns, strict=True)):
                yield [cell(layer.layer), channel, *map(repr, numbers)]

    results.write_csv(file, ("layer", "channel", *CHANNELS), rows())


def dump_recalibration_json(
    result: Recalibration, model: str, copy: str | None, file: IO[str]
) -> None:
    """Write the result of a recalibration, and the path of the copy, as JSON."""
    before, after = result.accuracy or (None, None)
    document = {
        "schema": 1,
        "path": model,
        "copy": copy,
        **members(result, "samples", "batches", "exact", "waves"),
        "accuracy_before": before,
        "accuracy_after": after,
        **_shared(result),
        "layers": [_recalibrated_layer(layer) for layer in result.layers],
    }
    results.dump_common(document, file)


def _recalibrated_layer(layer: Mended) -> dict[str, Any]:
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
