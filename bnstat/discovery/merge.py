"""Sightings of one layer by several kinds of evidence become one layer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from bnstat.model import ROLES, Evidence
from bnstat.text import natural_key


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


_STRUCTURAL = ("config", "object-graph")
_LISTED = re.compile(r"^variables/(\d{1,9})/")
_NAMED_BY = ("patterns", "layers", "scopes", "objects", "names", "graphs")


@dataclass
class Merged:
    """A layer as all evidence together shows it."""

    evidence: Evidence
    roles: dict[str, str]
    extra: dict[str, str]
    undecided: tuple[str, ...]
    notes: tuple[str, ...]
    names: dict[str, list[str]] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    epsilon: float | None = None
    momentum: float | None = None
    axis: int | tuple[int, ...] | None = None
    trainable: bool | None = None
    uses_batch_statistics: bool = False
    inputs: frozenset[tuple[str, str]] = frozenset()

    def add(self, sighting: Sighting) -> None:
        """Fill what is not known yet from weaker evidence."""
        if self.evidence not in _STRUCTURAL:
            self.roles = {**sighting.roles, **self.roles}
            self.extra = {**sighting.extra, **self.extra}
        self.epsilon = sighting.epsilon if self.epsilon is None else self.epsilon
        self.momentum = sighting.momentum if self.momentum is None else self.momentum
        self.axis = sighting.axis if self.axis is None else self.axis
        self.trainable = sighting.trainable if self.trainable is None else self.trainable
        self.uses_batch_statistics |= sighting.uses_batch_statistics
        self.inputs |= sighting.inputs
        self.notes += tuple(note for note in sighting.notes if note not in self.notes)

    def all_keys(self) -> list[str]:
        """The keys of all its variables."""
        return [*self.roles.values(), *self.extra.values(), *self.undecided]


def merge(evidence: Mapping[str, Sequence[Sighting]]) -> list[Merged]:
    """The layers that the sightings show, those of the strongest evidence first.

    Args:
        evidence: where sightings come from -> the sightings, in their order; the strongest
            evidence first.
    """
    layers: list[Merged] = []
    by_key: dict[str, Merged] = {}
    for origin, sightings in evidence.items():
        for position, sighting in enumerate(sightings):
            layer = _same_layer(sighting, by_key)
            if layer is None:
                layer = Merged(
                    sighting.evidence,
                    dict(sighting.roles),
                    dict(sighting.extra),
                    sighting.undecided,
                    (),
                )
                layers.append(layer)
            layer.add(sighting)
            names = [sighting.name, sighting.longer_name]
            layer.names.setdefault(origin, [name for name in names if name])
            layer.positions.setdefault(origin, position)
            for key in layer.all_keys():
                by_key.setdefault(key, layer)
    return layers


def _same_layer(sighting: Sighting, by_key: dict[str, Merged]) -> Merged | None:
    """The layer that has a variable of the sighting; its statistics decide where it has any."""
    statistics = [key for role, key in sighting.roles.items() if role.startswith("moving")]
    for key in statistics or [*sighting.roles.values(), *sighting.undecided]:
        if key in by_key:
            return by_key[key]
    return None


def in_order(layers: list[Merged], ordered_by: Sequence[str]) -> list[Merged]:
    """The layers in the order of the network, as far as a kind of evidence tells it.

    An exported model keeps its variables in one list, in the order of the network, which no
    branch disturbs. Else the origin that shows the most layers decides, of several the
    strongest. Layers that it does not show follow, by name.

    Args:
        layers: the layers.
        ordered_by: the origins whose order is the network's, strongest first.
    """
    listed = [(at, layer) for layer in layers if (at := _place_in_list(layer)) is not None]
    if len(listed) == len(layers):
        return [layer for _, layer in sorted(listed, key=itemgetter(0))]
    counts = Counter(origin for layer in layers for origin in layer.positions)
    best = max(ordered_by, key=lambda origin: counts[origin], default="")
    last = len(layers)

    def key(layer: Merged) -> tuple[int, list[tuple[int, int, str]]]:
        return layer.positions.get(best, last), natural_key(_candidates(layer)[0])

    return sorted(layers, key=key)


def _place_in_list(layer: Merged) -> int | None:
    """The number of the layer's moving variance in an exported model's list of variables."""
    match = _LISTED.match(layer.roles["moving_variance"])
    return int(match[1]) if match else None


def unique_names(layers: Sequence[Merged]) -> list[str]:
    """A name for each layer that no other has: the best that any evidence tells."""
    candidates = [_candidates(layer) for layer in layers]
    uses = Counter(name for names in candidates for name in set(names))
    taken: Counter[str] = Counter()
    result = []
    for names in candidates:
        name = next((name for name in names if uses[name] == 1), names[0])
        taken[name] += 1
        while taken[name] > 1:
            name = f"{name}#{taken[name]}"
            taken[name] += 1
        result.append(name)
    return result


def _candidates(layer: Merged) -> list[str]:
    """The layer's names, best first; a layer in the root scope has none of its own."""
    names = [name for origin in _NAMED_BY for name in layer.names.get(origin, ())]
    return names or ["(root)"]


def is_complete(layer: Merged) -> bool:
    """Whether both moving statistics of the layer are known."""
    return all(role in layer.roles for role in ROLES[2:])
