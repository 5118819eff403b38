"""Batch normalization by the computation graphs of a file.

A graph tells the epsilon of each layer, often its axis and momentum, which variable has which
role, and the order of the network. Graphs share variables (a network for training and one for
inference, a function for each layer), and a graph may use a layer several times: all of that
is one layer, found where it comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from bnstat.discovery.graph_norms import Norm, find_norms
from bnstat.discovery.graph_tensors import Steps, Tensors
from bnstat.discovery.schemes import RENORM
from bnstat.discovery.sighting import Sighting
from bnstat.formats.contents import Contents


@dataclass(slots=True)
class _Layer:
    """What all graphs say of one layer."""

    scope: str
    roles: dict[str, str] = field(default_factory=dict)
    epsilons: list[float] = field(default_factory=list)
    momentum: float | None = None
    axis: int | None = None

    def is_complete(self, with_momentum: bool) -> bool:
        """Whether no further graph can add to this."""
        known = "moving_variance" in self.roles and self.epsilons
        return bool(known) and (self.momentum is not None or not with_momentum)

    def accepts(self, roles: Mapping[str, str]) -> bool:
        """Whether these are roles of this layer: some in common, and none in conflict."""
        common = [role for role in roles if role in self.roles]
        return bool(common) and all(self.roles[role] == roles[role] for role in common)

    def add(self, norm: Norm) -> None:
        """Take up what a graph says of this layer."""
        self.roles.update(norm.roles)
        if norm.epsilon is not None and norm.epsilon not in self.epsilons:
            self.epsilons.append(norm.epsilon)
        self.momentum = norm.momentum if self.momentum is None else self.momentum
        self.axis = norm.axis if self.axis is None else self.axis

    def sighting(self) -> Sighting:
        """What the graphs say, with a note where they disagree."""
        notes: tuple[str, ...] = ()
        if len(self.epsilons) > 1:
            listed = " and ".join(map(repr, self.epsilons))
            notes = (f"its graphs use different epsilons ({listed})",)
        return Sighting(
            evidence="graph",
            name=self.scope,
            roles=self.roles,
            epsilon=self.epsilons[0] if len(self.epsilons) == 1 else None,
            momentum=self.momentum,
            axis=self.axis,
            notes=notes,
        )


def from_graphs(contents: Contents) -> list[Sighting]:
    """The batch-norm layers that a file's graphs show, in the order of the network.

    A graph whose variables have all been seen in others, with all that is wanted of them, is
    not looked at; momentum is not, where layer configurations tell it.
    """
    layers: list[_Layer] = []
    by_key: dict[str, list[_Layer]] = {}
    seen: set[str] = set()
    steps = Steps()

    def fit(one: str, other: str) -> bool:
        first, second = contents.variables.get(one), contents.variables.get(other)
        return first is None or second is None or prod(first.shape) == prod(second.shape)

    with_momentum = not contents.layers

    def may_be_moving(key: str) -> bool:
        return not contents.name_of(key).endswith(RENORM)

    for graph in contents.graphs() if contents.graphs else ():
        keys = set(graph.variables.values())
        users = (layer for key in keys for layer in by_key.get(key, ()))
        if keys <= seen and all(layer.is_complete(with_momentum) for layer in users):
            continue
        seen |= keys
        for norm in find_norms(Tensors(graph, steps), fit, may_be_moving):
            candidates = (layer for key in norm.roles.values() for layer in by_key.get(key, ()))
            layer = next((layer for layer in candidates if layer.accepts(norm.roles)), None)
            if layer is None:
                layer = _Layer(norm.scope)
                layers.append(layer)
            layer.add(norm)
            for key in norm.roles.values():
                known = by_key.setdefault(key, [])
                if layer not in known:
                    known.append(layer)
    return [layer.sighting() for layer in layers]
