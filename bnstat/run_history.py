"""Checkpoints reduced, one after the other, to a few numbers per layer and role.

All arrays of a checkpoint are joined to one long vector, in which each role of each layer has its
stretch, and are reduced together: NumPy is called a few dozen times a checkpoint, not a few dozen
times an array. The vector of the checkpoint before is kept, and the step between the two.

How the statistics of a run moved over its checkpoints.

Each checkpoint is reduced to a few numbers per layer and role as it passes, and only the one
before it (with the step it took) is kept beside it: a history costs the memory of a few
checkpoints, however many there are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bnstat.display import Displayed
from bnstat.errors import BnstatError
from bnstat.model import ROLES, Array, BatchNorm, Model, as_float64

Floats = NDArray[np.float64]
Key = tuple[str, str]
"""A layer's name and a role."""

MEASURES: Final = ("mean", "std", "min", "max", "bad", "change", "turn")
"""What a stretch is reduced to; `Track` says what each means."""

_LEAST: Final = float(np.nextafter(0, 1))


class Reducer:
    """Takes checkpoints in the order of time."""

    def __init__(self) -> None:
        self._rows: list[tuple[_Layout, Mapping[str, Floats]]] = []
        self._layout = _Layout.of({})
        self._values: Floats = np.empty(0)
        self._movement: Floats = np.empty(0)

    def add(self, model: Model) -> None:
        """Reduce one more checkpoint.

        Raises:
            BnstatError: an array cannot be read; nothing is added then.
        """
        arrays = {(layer.name, role): array for layer in model for role, array in _arrays_of(layer)}
        layout = _Layout.of(arrays)
        if layout.same_as(self._layout):
            layout = self._layout
        values = _joined(list(arrays.values()))
        with np.errstate(all="ignore"):
            measures = _summarize(layout, values)
            measures |= self._compare(layout, values, measures)
        self._layout, self._values = layout, values
        self._rows.append((layout, measures))

    def table(self) -> dict[Key, Floats]:
        """For each role of each layer, an array of one row a measure and one column a checkpoint.

        NaN stands for checkpoints that lack the layer. The newest checkpoint's layers come
        first, in its order.
        """
        newest_first = [key for layout, _ in reversed(self._rows) for key in layout.shapes]
        places = {key: place for place, key in enumerate(dict.fromkeys(newest_first))}
        numbers = np.full((len(places), len(MEASURES), len(self._rows)), np.nan)
        for column, (layout, measures) in enumerate(self._rows):
            rows = [places[key] for key in layout.shapes]
            for measure, name in enumerate(MEASURES):
                numbers[rows, measure, column] = measures[name]
        return dict(zip(places, numbers, strict=True))

    def _compare(
        self, layout: _Layout, values: Floats, summary: Mapping[str, Floats]
    ) -> dict[str, Floats]:
        """The movement since the checkpoint before, which is remembered."""
        former = self._layout.fit(self._values, layout, missing=np.nan)
        last = self._layout.fit(self._movement, layout, missing=0)
        movement = values - former
        finite = np.isfinite(movement)
        still = movement == 0
        if not finite.all():
            still |= (values == former) | (np.isnan(values) & np.isnan(former))
            movement = np.where(finite, movement, 0)
        self._movement = movement

        unmoved = layout.all(still) & layout.is_in(self._layout)
        squares = layout.sums(movement * movement)
        rms = np.sqrt(squares / layout.counts(finite))
        turn = layout.sums(movement * last) / np.sqrt(squares * layout.sums(last * last))
        change = np.maximum(rms / layout.units(summary), _LEAST)
        return {"change": np.where(unmoved, 0, change), "turn": turn}


@dataclass(frozen=True, eq=False)
class _Layout:
    """Which stretch of a checkpoint's vector belongs to which role of which layer.

    Attributes:
        shapes: the array's shape by layer and role, in the order of the stretches.
        starts, sizes: where each stretch begins, and how long it is; none is empty.
    """

    shapes: Mapping[Key, tuple[int, ...]]
    starts: NDArray[np.intp]
    sizes: NDArray[np.intp]

    @classmethod
    def of(cls, arrays: Mapping[Key, Array]) -> _Layout:
        sizes = np.fromiter((array.size for array in arrays.values()), np.intp, len(arrays))
        shapes = {key: array.shape for key, array in arrays.items()}
        return cls(shapes, np.cumsum(sizes) - sizes, sizes)

    def same_as(self, other: _Layout) -> bool:
        """Whether the same stretches come in the same order."""
        return list(self.shapes.items()) == list(other.shapes.items())

    def is_in(self, other: _Layout) -> NDArray[np.bool_]:
        """For each stretch, whether the other layout has it, of the same shape."""
        if self is other:
            return np.ones(len(self.shapes), bool)
        return np.array(
            [other.shapes.get(key) == shape for key, shape in self.shapes.items()], bool
        )

    def fit(self, values: Floats, other: _Layout, missing: float) -> Floats:
        """`values` of this layout in the order of the other; `missing` for what is not here."""
        if self is other:
            return values
        here = dict(zip(self.shapes, self.starts.tolist(), strict=True))
        fitted = np.full(int(other.sizes.sum()), missing, np.float64)
        for (key, shape), start, size in zip(
            other.shapes.items(), other.starts.tolist(), other.sizes.tolist(), strict=True
        ):
            if self.shapes.get(key) == shape:
                fitted[start : start + size] = values[here[key] : here[key] + size]
        return fitted

    def sums(self, values: Floats) -> Floats:
        """The sum of each stretch."""
        return np.add.reduceat(values, self.starts)

    def counts(self, mask: NDArray[np.bool_]) -> Floats:
        """How many elements of each stretch are True."""
        return self.sizes.astype(float) if mask.all() else self.sums(mask.astype(float))

    def all(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether all elements of each stretch are True."""
        return np.logical_and.reduceat(mask, self.starts)

    def units(self, summary: Mapping[str, Floats]) -> Floats:
        """What each stretch's movement is measured in; see `Track.change`."""
        means, variances, betas, gammas = self._units_of_others
        own = np.sqrt(summary["mean"] ** 2 + summary["std"] ** 2)
        units = own.copy()
        units[means] = np.sqrt(summary["mean"][variances])
        units[betas] = np.where(gammas < 0, 1, own[gammas])
        return units

    @cached_property
    def _units_of_others(self) -> list[NDArray[np.intp]]:
        """The places of moving means, of their variances, of betas, of their gammas (or -1)."""
        places = {key: place for place, key in enumerate(self.shapes)}
        means = [
            (place, places[layer, "moving_variance"])
            for (layer, role), place in places.items()
            if role == "moving_mean" and (layer, "moving_variance") in places
        ]
        betas = [
            (place, places.get((layer, "gamma"), -1))
            for (layer, role), place in places.items()
            if role == "beta"
        ]
        pairs = (*zip(*means, strict=True),) or ((), ()), (*zip(*betas, strict=True),) or ((), ())
        return [np.array(side, np.intp) for both in pairs for side in both]


def _arrays_of(layer: BatchNorm) -> list[tuple[str, Array]]:
    pairs = ((role, layer.array(role)) for role in ROLES)
    return [(role, array) for role, array in pairs if array is not None and array.size]


def _joined(arrays: Sequence[Array]) -> Floats:
    """All elements of some arrays, one array after the other."""
    if len({array.dtype for array in arrays}) == 1:
        return as_float64(np.concatenate([array.ravel() for array in arrays]))
    return np.concatenate([np.empty(0), *(as_float64(array).ravel() for array in arrays)])


def _summarize(layout: _Layout, values: Floats) -> dict[str, Floats]:
    """What `bnstat.model.Summary` says of an array, of each stretch."""
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


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One moment of the run: the checkpoint's name, and its step where it tells one."""

    name: str
    step: int | None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A checkpoint that could not be read, and why."""

    name: str
    error: BnstatError


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """One role of one layer over the run: arrays with one number a checkpoint.

    The arrays are `MEASURES`, in that order.

    Attributes:
        layer: the layer's name.
        role: `gamma`, `beta`, `moving_mean` or `moving_variance`.
        mean, std, min, max: over the finite channels; NaN where there is none, or where the
            checkpoint lacks the layer.
        bad: how many channels are NaN or infinite; NaN where the checkpoint lacks the layer.
        change: the root mean square over the channels of the movement since the checkpoint
            before, in the unit that says whether it matters: the root mean moving variance for
            the moving mean, the root mean square of gamma for beta (1 without gamma), its own
            root mean square otherwise. Exactly 0 if and only if not one channel moved; NaN in
            the first checkpoint, or where the two cannot be compared.
        turn: the cosine between this movement and the one before. Near 1 in a drift; about -0.5
            where the values scatter about where they settled.
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
    """The checkpoints of a run, in the order they were given, and the tracks of its layers.

    Attributes:
        checkpoints: those that were read.
        skipped: those that were not.
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
        """The same history, narrowed to some roles."""
        kept = {key: track for key, track in self.tracks.items() if track.role in roles}
        return History(self.checkpoints, self.skipped, kept)


class Recorder:
    """A history that grows: takes the checkpoints in the order of time."""

    def __init__(self) -> None:
        self._reducer = Reducer()
        self._checkpoints: list[Checkpoint] = []
        self._skipped: list[Skipped] = []

    def add(self, name: str, model: Model | BnstatError) -> None:
        """Record a checkpoint, or why it could not be read.

        One that turns out to be damaged when its arrays are read is among those skipped.
        """
        try:
            if isinstance(model, BnstatError):
                raise model
            self._reducer.add(model)
            self._checkpoints.append(Checkpoint(name, model.source.step))
        except BnstatError as error:
            self._skipped.append(Skipped(name, error))

    def history(self) -> History:
        """The history so far."""
        tracks = {
            (layer, role): Track(layer, role, *measures)
            for (layer, role), measures in self._reducer.table().items()
        }
        return History(tuple(self._checkpoints), tuple(self._skipped), tracks)


def history(models: Iterable[tuple[str, Model | BnstatError] | Model]) -> History:
    """Reduce the checkpoints of a run to a history, one at a time.

    Args:
        models: in the order of time, each with its name (as `load_all` yields them; an error
            stands for a checkpoint that could not be read), or models alone.

    Returns:
        The history. A checkpoint that turns out to be damaged when its arrays are read is among
        those skipped.
    """
    recorder = Recorder()
    for entry in models:
        recorder.add(*(entry if isinstance(entry, tuple) else (_name_of(entry), entry)))
    return recorder.history()


def _name_of(model: Model) -> str:
    return model.source.checkpoint or model.source.path
