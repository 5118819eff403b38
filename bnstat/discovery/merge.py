"""Merging all sightings of a layer, from several sources of evidence, into one sighting."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from operator import itemgetter

from bnstat.model import ROLES, Evidence
from bnstat.text import natural_key

_STRUCTURAL = ("config", "object-graph")
_LISTED = re.compile(r"^variables/(\d{1,9})/")
_NAMED_BY = ("patterns", "layers", "scopes", "objects", "names", "graphs")
"""Sources of evidence; the source with the best layer names comes first."""

_MOST_OWNERS = 100  # layers to compare a sighting with, if many share a variable


@dataclass(slots=True)
class Sighting:
    """A batch-norm layer, found by one source of evidence or, after merging, by several.

    `roles`, `extra` and `undecided` contain keys of variables. Settings are as in `BatchNorm`.

    Attributes:
        longer_name: the name, preceded by the names of the enclosing models; used if two layers
            have equal names; may be empty.
        names: after merging, source of evidence (`graphs`) -> the layer's names, the best first.
        positions: after merging, source of evidence -> index of the layer in the source's order.
    """

    evidence: Evidence
    name: str = ""
    roles: Mapping[str, str] = field(default_factory=dict)
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
    names: dict[str, list[str]] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        return all(role in self.roles for role in ROLES[2:])

    def add(self, weaker: Sighting) -> None:
        """Fill in unknown settings and roles from a weaker sighting of the layer."""
        if self.evidence not in _STRUCTURAL:
            self.roles = {**weaker.roles, **self.roles}
            self.extra = {**weaker.extra, **self.extra}
        for setting in ("epsilon", "momentum", "axis", "trainable"):
            if getattr(self, setting) is None:
                setattr(self, setting, getattr(weaker, setting))
        self.uses_batch_statistics |= weaker.uses_batch_statistics
        self.inputs |= weaker.inputs
        self.notes += tuple(note for note in weaker.notes if note not in self.notes)

    def all_keys(self) -> list[str]:
        return [*self.roles.values(), *self.extra.values(), *self.undecided]


class Merger:
    """Merges sightings that share a variable into `layers`. Add the strongest evidence first."""

    def __init__(self) -> None:
        self.layers: list[Sighting] = []
        self._by_key: dict[str, Sighting] = {}
        self._sharers: dict[str, list[Sighting]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, origin: str, sighting: Sighting) -> Sighting:
        """Merge a sighting from `origin` into its layer, or add a new layer; return the layer."""
        layer = self._same_layer(sighting)
        known: set[str] = set()
        if layer is None:
            layer = replace(sighting, names={}, positions={})
            self.layers.append(layer)
        else:
            known.update(layer.all_keys())
            layer.add(sighting)
        names = [sighting.name, sighting.longer_name]
        layer.names.setdefault(origin, [name for name in names if name])
        layer.positions.setdefault(origin, self._counts[origin])
        self._counts[origin] += 1
        for key in layer.all_keys():
            if key not in known and self._by_key.setdefault(key, layer) is not layer:
                self._sharers.setdefault(key, []).append(layer)
        return layer

    def _same_layer(self, sighting: Sighting) -> Sighting | None:
        # The statistics belong to one layer; several layers may share gamma and beta.
        statistics = [key for role, key in sighting.roles.items() if role in ROLES[2:]]
        for key in statistics:
            if key in self._by_key:
                return self._by_key[key]
        keys = [*sighting.roles.values(), *sighting.undecided]
        known = (key for key in keys if key in self._by_key)
        owners = ([self._by_key[key], *self._sharers.get(key, [])] for key in known)
        for owner in islice(chain.from_iterable(owners), _MOST_OWNERS):
            # Only graphs show a layer in parts: one function may train it, another may apply it.
            if statistics and owner.evidence != "graph":
                continue
            common = owner.roles.keys() & sighting.roles.keys()
            if all(owner.roles[role] == sighting.roles[role] for role in common):
                return owner
        return None


def merge(evidence: Mapping[str, Sequence[Sighting]]) -> list[Sighting]:
    """Return one sighting per layer; `evidence` maps sources, the strongest first, to sightings."""
    merger = Merger()
    for origin, sightings in evidence.items():
        for sighting in sightings:
            merger.add(origin, sighting)
    return merger.layers


def in_order(complete: Iterable[Sighting], ordered_by: Sequence[str]) -> list[Sighting]:
    """Sort complete layers into network order, as far as the evidence shows the order.

    A graph that contains all layers shows the order of the computation. Without such a graph, an
    exported model numbers all variables in the order of their creation (`variables/12/`).
    Otherwise, the order is that of the source in `ordered_by` that shows the most layers. Layers
    that this source does not show come last, sorted by name.
    """
    layers = list(complete)
    listed = [(_LISTED.match(layer.roles["moving_variance"]), layer) for layer in layers]
    numbered = [(int(match[1]), layer) for match, layer in listed if match]
    graphs = [{graph for graph, _ in layer.inputs} for layer in layers]
    if len(numbered) == len(layers) > 0 and not set.intersection(*graphs):
        return [layer for _, layer in sorted(numbered, key=itemgetter(0))]
    counts = Counter(origin for layer in layers for origin in layer.positions)
    best = max(ordered_by, key=lambda origin: counts[origin], default="")
    layers.sort(key=lambda layer: natural_key(_candidates(layer)[0]))
    return sorted(layers, key=lambda layer: layer.positions.get(best, len(layers)))


def common_scope(names: Iterable[str]) -> str:
    """Return the scope that all of these names share, or an empty string."""
    scopes = {name.rpartition("/")[0] for name in names}
    return scopes.pop() if len(scopes) == 1 else ""


def unique_names(layers: Sequence[Sighting]) -> list[str]:
    """Return one name per layer: the best name that no other layer has, else `bn`, `bn#2`, ..."""
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


def _candidates(layer: Sighting) -> list[str]:
    names = [name for origin in _NAMED_BY for name in layer.names.get(origin, ())]
    return names or ["(root)"]
