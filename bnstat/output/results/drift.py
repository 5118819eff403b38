"""A drift as JSON, written and read: every layer and channel."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import DamagedError, NotFoundError
from bnstat.estimate.drift import Drift
from bnstat.estimate.recalibration import Mended, Recalibration
from bnstat.exchange.csv import cell
from bnstat.output import results as documents

if TYPE_CHECKING:
    from bnstat.estimate.drift import Drift, LayerDrift


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


def dump_drift_json(result: Drift, model: str, file: IO[str]) -> None:
    """Write how far `model` is from the data as one object."""
    document = {
        "schema": 1,
        "path": model,
        "samples": result.samples,
        "accuracy": result.accuracy,
        "state": result.state,
        "largest": result.largest,
        **documents.trained_with(result.evidence),
        "left": [{"layer": name, "reason": why} for name, why in result.left.items()],
        "layers": [_drift_json_layer(layer) for layer in result.layers],
    }
    documents.dump_common(document, file)


def _drift_json_layer(layer: LayerDrift) -> dict[str, Any]:
    channels = {name: getattr(layer, name).tolist() for name in CHANNELS}
    return {
        "name": layer.layer,
        "state": layer.state,
        "divergence": layer.total,
        **{f"{name}s" if name == "divergence" else name: each for name, each in channels.items()},
    }


class Measured(NamedTuple):
    """What was measured of a layer: float64 arrays with one number a channel, and its state."""

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    divergence: NDArray[np.float64]
    state: str


def load(path: str) -> dict[str, Measured]:
    """Layer -> what was measured of it, from a file that `dump` wrote.

    Raises:
        NotFoundError: there is no such file.
        DamagedError: it is no such JSON.
    """
    try:
        document = json.loads(Path(path).read_bytes())
        return {_text(layer["name"]): _measured(layer) for layer in document["layers"]}
    except FileNotFoundError:
        raise NotFoundError(path, "no such file") from None
    except (LookupError, RecursionError, TypeError, ValueError):
        raise DamagedError(path, "is not the JSON of bnstat drift", "write it anew") from None


def _measured(layer: Any) -> Measured:
    names = ("mean", "variance", "divergences")
    mean, variance, divergence = (
        np.array([float(each) for each in layer[name]], np.float64) for name in names
    )
    if not mean.size == variance.size == divergence.size:
        raise ValueError("the lists are not of one length")
    return Measured(mean, variance, divergence, _text(layer["state"]))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("no string")
    return value


def dump_drift_csv(result: Drift, file: IO[str]) -> None:
    """Write a drift; `file` is open for writing text, with `newline=""`."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("layer", "channel", *CHANNELS))
    for layer in result.layers:
        columns = [getattr(layer, name).tolist() for name in CHANNELS]
        name = cell(layer.layer)
        for channel, numbers in enumerate(zip(*columns, strict=True)):
            writer.writerow((name, channel, *map(repr, numbers)))


def dump_recalibration_json(
    result: Recalibration, model: str, copy: str | None, file: IO[str]
) -> None:
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
        "layers": [_recalibration_json_layer(layer) for layer in result.layers],
    }
    documents.dump_common(document, file)


def _recalibration_json_layer(layer: Mended) -> dict[str, Any]:
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
