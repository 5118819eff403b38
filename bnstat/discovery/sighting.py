"""What one source of evidence says of one batch-norm layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bnstat.model import Evidence


@dataclass(frozen=True, slots=True)
class Sighting:
    """A batch-norm layer as one kind of evidence shows it; sightings of one layer are merged.

    Attributes:
        evidence: the kind of evidence.
        name: the layer's name as this evidence tells it; empty where it tells none.
        longer_name: the same with the names around it, for when two layers are called alike.
        roles: role -> key of the variable that has it.
        extra: label -> key of the layer's further variables.
        undecided: keys of variables of the layer whose role cannot be told.
        epsilon, momentum, axis, trainable: where this evidence tells them.
        notes: what a reader of the layer's numbers has to know.
        uses_batch_statistics, inputs: as in `BatchNorm`.
    """

    evidence: Evidence
    name: str
    roles: Mapping[str, str]
    longer_name: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)
    undecided: tuple[str, ...] = ()
    epsilon: float | None = None
    momentum: float | None = None
    axis: int | tuple[int, ...] | None = None
    trainable: bool | None = None
    notes: tuple[str, ...] = ()
    uses_batch_statistics: bool = False
    inputs: frozenset[tuple[str, str]] = frozenset()
