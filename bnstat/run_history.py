"""The change of statistics over the checkpoints of a run.

The arrays of a checkpoint form one vector, with a segment for each role of each layer. Measures are
computed for all segments at once. Only the previous vector and the last differences are kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from os import PathLike
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bnstat.display import Displayed
from bnstat.errors import BnstatError
from bnstat.model import ROLES, Array, Model, as_float64

Floats = NDArray[np.float64]
Key = tuple[str, str]

MEASURES: Final = ("mean", "std", "min", "max", "bad", "change", "turn")
"""The measures of one role of one layer at one checkpoint; `Track` documents each measure."""

_LEAST: Final = float(np.nextafter(0, 1))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint of the run: the name, and the step if known."""

    name: str
    step: int | None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A checkpoint that could not be read, and the reason."""

    name: str
    error: BnstatError


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """One role of one layer over the run: arrays with one number for each checkpoint.

    The fields after `role` have the names and the order of `MEASURES`.

    Attributes:
        mean, std, min, max: statistics of the finite channels; NaN if the checkpoint lacks the
            layer or has no finite channel.
        bad: the number of channels that are NaN or infinite; NaN if the checkpoint lacks the layer.
        change: the root mean square of the channels' changes since the previous checkpoint, divided
            by a unit: for the moving mean, the square root of the mean moving variance; for beta,
            the root mean square of gamma (1 without gamma); else the role's own root mean square.
            Exactly 0 if and only if no channel changed. NaN if the previous checkpoint lacks the
            role or has another shape, or if no channel is finite in both checkpoints.
        turn: the cosine of the angle between the latest changes of the channels and the changes one
            checkpoint earlier. Near 1 if the values drift in one direction; about -0.5 if the
            values scatter about a fixed point.
    """

    layer: str
    role: str
    mean: Floats
    std: Floats
    min: Floats
    max: Floats
    bad: Floats
    change: Floats
    turn: Floats


@dataclass(frozen=True, slots=True)
class History(Displayed):
    """The checkpoints of a run, in the order in which they were passed, and the layers' tracks.

    Attributes:
        skipped: the checkpoints that could not be read.
        tracks: (layer, role) -> track, in the order of the newest checkpoint's layers.
    """

    checkpoints: tuple[Checkpoint, ...]
    skipped: tuple[Skipped, ...]
    tracks: Mapping[Key, Track]

    @property
    def layers(self) -> list[str]:
        """The layers' names."""
        return list(dict.fromkeys(layer for layer, _ in self.tracks))

    def only(self, roles: Collection[str]) -> History:
        """Return a copy that contains only the tracks of these roles."""
        tracks = {key: track for key, track in self.tracks.items() if track.role in roles}
        return replace(self, tracks=tracks)


def history(
    models: str | PathLike[str] | Iterable[tuple[str, Model | BnstatError] | Model | object],
) -> History:
    """Return the history of a run. Each checkpoint is summarized before the next is loaded.

    Args:
        models: a path that `load_all` accepts, or checkpoints in chronological order. A checkpoint
            is a model, a path or another object that `load` accepts, or a pair (name, model or
            error) that `load_all` yields.

    Returns:
        The history. A checkpoint that cannot be read is listed in `skipped`.

    Raises:
        BnstatError: the path contains no model, or an object is not a model.
    """
    from bnstat.loading import load_all, loaded

    if isinstance(models, (str, PathLike)):
        models = load_all(models)
    elif isinstance(models, Model) or not isinstance(models, Iterable):
        models = [models]
    recorder = Recorder()
    for entry in models:
        if not isinstance(entry, tuple):
            model = loaded(entry)
            entry = (model.source.checkpoint or model.source.path, model)
        recorder.add(*entry)
    return recorder.history()


class Recorder:
    """Builds a history from checkpoints that are added in chronological order."""

    def __init__(self) -> None:
        self._checkpoints: list[Checkpoint] = []
        self._skipped: list[Skipped] = []
        self._rows: list[tuple[_Layout, Mapping[str, Floats]]] = []
        self._layout = _Layout({})
        self._values: Floats = np.empty(0)
        self._last_differences: Floats = np.empty(0)

    def add(self, name: str, model: Model | BnstatError) -> None:
        """Add a checkpoint. An error that is passed, or raised in reading, becomes a `Skipped`."""
        try:
            if isinstance(model, BnstatError):
                raise model
            arrays = {
                (layer.name, role): array
                for layer in model
                for role in ROLES
                if (array := layer.array(role)) is not None and array.size
            }
        except BnstatError as error:
            self._skipped.append(Skipped(name, error))
            return
        layout = _Layout({key: array.shape for key, array in arrays.items()})
        if list(layout.shapes.items()) == list(self._layout.shapes.items()):
            layout = self._layout
        values = _joined([*arrays.values()])
        with np.errstate(all="ignore"):
            measures = _summarize(layout, values)
            measures |= self._compare(layout, values, layout.units(measures))
        self._layout, self._values = layout, values
        self._rows.append((layout, measures))
        self._checkpoints.append(Checkpoint(name, model.source.step))

    def history(self) -> History:
        """Return the history so far; layers of the newest checkpoint come first."""
        newest_first = [key for layout, _ in reversed(self._rows) for key in layout.shapes]
        indices = {key: index for index, key in enumerate(dict.fromkeys(newest_first))}
        numbers = np.full((len(indices), len(MEASURES), len(self._rows)), np.nan)
        for column, (layout, measures) in enumerate(self._rows):
            rows = [indices[key] for key in layout.shapes]
            for measure, name in enumerate(MEASURES):
                numbers[rows, measure, column] = measures[name]
        tracks = {key: Track(*key, *numbers[index]) for key, index in indices.items()}
        return History(tuple(self._checkpoints), tuple(self._skipped), tracks)

    def _compare(self, layout: _Layout, values: Floats, units: Floats) -> dict[str, Floats]:
        """Return measure (`change`, `turn`) -> one number for each segment; see `Track`."""
        former = self._layout.fit(self._values, layout, missing=np.nan)
        last = self._layout.fit(self._last_differences, layout, missing=0)
        differences = values - former
        finite = np.isfinite(differences)
        still = differences == 0
        if not finite.all():
            still |= (values == former) | (np.isnan(values) & np.isnan(former))
            differences = np.where(finite, differences, 0)
        self._last_differences = differences
        unmoved = layout.all(still)
        if layout is not self._layout:
            known = [self._layout.shapes.get(key) == shape for key, shape in layout.shapes.items()]
            unmoved &= np.array(known, bool)
        squares = layout.sums(differences * differences)
        rms = np.sqrt(squares / layout.counts(finite))
        turn = layout.sums(differences * last) / np.sqrt(squares * layout.sums(last * last))
        change = np.maximum(rms / units, _LEAST)
        return {"change": np.where(unmoved, 0, change), "turn": turn}


class _Layout:
    """The segments of a checkpoint's vector, one for each role of each layer; no segment is empty.

    `shapes` maps the (layer, role) of each segment in order to the shape of its array.
    """

    def __init__(self, shapes: Mapping[Key, tuple[int, ...]]) -> None:
        self.shapes = shapes
        self.sizes = np.array([prod(shape) for shape in shapes.values()], np.intp)
        self.starts = np.cumsum(self.sizes) - self.sizes

    def fit(self, values: Floats, other: _Layout, missing: float) -> Floats:
        """Return `values` in the layout `other`; fill new or reshaped segments with `missing`."""
        if self is other:
            return values
        starts = dict(zip(self.shapes, self.starts.tolist(), strict=True))
        fitted = np.full(int(other.sizes.sum()), missing, np.float64)
        places = zip(other.shapes.items(), other.starts.tolist(), other.sizes.tolist(), strict=True)
        for (key, shape), start, size in places:
            if self.shapes.get(key) == shape:
                fitted[start : start + size] = values[starts[key] : starts[key] + size]
        return fitted

    def sums(self, values: Floats) -> Floats:
        return np.add.reduceat(values, self.starts)

    def counts(self, mask: NDArray[np.bool_]) -> Floats:
        return self.sizes.astype(float) if mask.all() else self.sums(mask.astype(float))

    def all(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return np.logical_and.reduceat(mask, self.starts)

    def units(self, summary: Mapping[str, Floats]) -> Floats:
        """Return the unit by which the change of each segment is divided; see `Track.change`."""
        own = np.sqrt(summary["mean"] ** 2 + summary["std"] ** 2)
        units = own.copy()
        indices = {key: index for index, key in enumerate(self.shapes)}
        for (layer, role), index in indices.items():
            if role == "moving_mean" and (layer, "moving_variance") in indices:
                units[index] = np.sqrt(summary["mean"][indices[layer, "moving_variance"]])
            elif role == "beta":
                gamma = indices.get((layer, "gamma"))
                units[index] = 1 if gamma is None else own[gamma]
        return units


def _joined(arrays: list[Array]) -> Floats:
    if len({array.dtype for array in arrays}) == 1:
        return as_float64(np.concatenate([array.ravel() for array in arrays]))
    return np.concatenate([np.empty(0), *(as_float64(array).ravel() for array in arrays)])


def _summarize(layout: _Layout, values: Floats) -> dict[str, Floats]:
    """Map each measure of a `Summary` to one number for each segment, a role of a layer."""
    finite = np.isfinite(values)
    count = layout.counts(finite)
    mean = layout.sums(_zero_unless(finite, values)) / count
    deviation = _zero_unless(finite, values - np.repeat(mean, layout.sizes))
    deviation *= deviation
    low, high = values, values
    if not finite.all():
        low, high = np.where(finite, values, np.inf), np.where(finite, values, -np.inf)
    return {
        "mean": mean,
        "std": np.sqrt(layout.sums(deviation) / count),
        "min": np.where(count > 0, np.minimum.reduceat(low, layout.starts), np.nan),
        "max": np.where(count > 0, np.maximum.reduceat(high, layout.starts), np.nan),
        "bad": layout.sizes - count,
    }


def _zero_unless(mask: NDArray[np.bool_], values: Floats) -> Floats:
    return values if mask.all() else np.where(mask, values, 0)
