"""Activations that are kept from one wave to the next, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from bnstat.model import Array

MOST: Final = 1 << 30
"""Bytes of activations that are kept at a time."""


@dataclass
class Kept:
    """Of each batch the tensors from which a later wave can start, as many as there is room for.

    What was kept stays right in all later waves, so a batch for whose newest tensors there is no
    room starts from older ones, or from the inputs.

    Attributes:
        most: bytes to keep.
    """

    most: int = MOST
    _cut: Sequence[str] = ()
    _full: bool = False
    _tensors: dict[int, Mapping[str, Array]] = field(default_factory=dict)

    @property
    def held(self) -> int:
        """Bytes that are kept."""
        return sum(map(_size, self._tensors.values()))

    def enter(self, cut: Sequence[str]) -> None:
        """Begin a wave in which these tensors are to be kept."""
        self._cut, self._full = cut, False

    def start(self, batch: int) -> Mapping[str, Array]:
        """What there is of a batch."""
        return self._tensors.get(batch, {})

    def wanted(self, batch: int) -> Sequence[str]:
        """What is to be kept of a batch: nothing where it is there, or where there is no room."""
        held = self.start(batch)
        return () if held.keys() == set(self._cut) or (self._full and not held) else self._cut

    def offer(self, batch: int, tensors: Mapping[str, Array]) -> None:
        """Keep tensors of a batch in the place of older ones, if there is room."""
        if not tensors:
            return
        others = self.held - _size(self.start(batch))
        if others + _size(tensors) <= self.most:
            self._tensors[batch] = tensors
        else:
            self._full = True


def _size(tensors: Mapping[str, Array]) -> int:
    return sum(array.nbytes for array in tensors.values())
