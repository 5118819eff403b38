"""How the statistics of a run moved over its checkpoints.

Each checkpoint is reduced to a few numbers per layer and role as it passes, and only the one
before it (with the step it took) is kept beside it: a history costs the memory of a few
checkpoints, however many there are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from bnstat.compare.reduction import Floats, Key, Reducer
from bnstat.display import Displayed
from bnstat.errors import BnstatError
from bnstat.model import Model


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

    The arrays are `bnstat.compare.reduction.MEASURES`, in that order.

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
