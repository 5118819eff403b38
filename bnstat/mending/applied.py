"""What `apply` has written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bnstat.model import Source

if TYPE_CHECKING:
    from bnstat.compare.alignment import Match


@dataclass(frozen=True, slots=True)
class Change:
    """A role of a layer that was given new values.

    Attributes:
        layer: the layer's name in the model.
        role: `gamma`, `beta`, `moving_mean` or `moving_variance`.
        key: the variable's key in the file.
        channels: how many elements it has.
        moved: how many of them have other bits than before.
        largest: the largest |new - old|; infinite to or from NaN or infinity.
        given_as: the layer's name where the values come from.
        match: how that layer was found to be this one.
    """

    layer: str
    role: str
    key: str
    channels: int
    moved: int
    largest: float
    given_as: str
    match: Match = "name"


@dataclass(frozen=True, slots=True)
class Applied:
    """A finished copy.

    Attributes:
        source: the model that was copied.
        output: where the copy is, to be given to `load`.
        values: where the values came from; None where they came from memory.
        changes: what was written, in the order of the network; also where nothing moved.
        untouched: layers of the model that got no values.
    """

    source: Source
    output: str
    values: str | None
    changes: Sequence[Change]
    untouched: Sequence[str]

    @property
    def moved(self) -> int:
        """How many values are others than before."""
        return sum(change.moved for change in self.changes)
