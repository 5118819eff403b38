"""Batch normalization by the computation graphs of a file.

A graph tells the epsilon of each layer, often its axis and momentum, which variable has which
role, and the order of the network. Graphs share variables (a network for training and one for
inference, a function for each layer), and a graph may use a layer several times: all of that
is one layer, found where it comes first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from math import prod

from bnstat.discovery.config import CALLED
from bnstat.discovery.graphs.norms import Norm, find_norms
from bnstat.discovery.graphs.tensors import Steps, Tensors
from bnstat.discovery.graphs.updates import STATISTICS
from bnstat.discovery.lookalikes import ACCUMULATOR, set_apart
from bnstat.discovery.schemes import RENORM
from bnstat.discovery.sighting import Sighting
from bnstat.formats.contents import Contents
from bnstat.model import ROLES

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "QLinearConv"})

_MOST_CANDIDATES = 100
"""Layers that a sighting is compared with, where many share a variable."""


@dataclass(slots=True)
class _Layer:
    """What all graphs say of one layer."""

    scope: str
    roles: dict[str, str] = field(default_factory=dict)
    epsilons: list[float] = field(default_factory=list)
    momentum: float | None = None
    axis: int | None = None
    uses_batch_statistics: bool = False
    inputs: set[tuple[str, str]] = field(default_factory=set)

    def accepts(self, roles: Mapping[str, str]) -> bool:
        """Whether these are roles of this layer: some in common, and none in conflict."""
        common = [role for role in roles if role in self.roles]
        return bool(common) and all(self.roles[role] == roles[role] for role in common)

    def add(self, norm: Norm, graph: str) -> None:
        """Take up what a graph says of this layer."""
        self.uses_batch_statistics |= norm.on_batch
        self.inputs.update((graph, tensor) for tensor in norm.x)
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
            uses_batch_statistics=self.uses_batch_statistics and STATISTICS[1] not in self.roles,
            inputs=frozenset(self.inputs),
        )


class _Layers:
    """The layers that graphs have shown so far, in the order in which they came.

    Attributes:
        unfinished: keys of variables of layers of which another graph can tell more.
    """

    def __init__(self, with_momentum: bool) -> None:
        self._with_momentum = with_momentum
        self._layers: list[_Layer] = []
        self._by_key: dict[str, list[_Layer]] = {}
        self.unfinished: set[str] = set()

    def add(self, norm: Norm, graph: str) -> None:
        """Take up what the graph of that name shows: of a known layer, or of a new one."""
        # The statistics are a layer's own; gamma and beta may be those of many.
        keys = [norm.roles[role] for role in reversed(ROLES) if role in norm.roles]
        candidates = (layer for key in keys for layer in self._by_key.get(key, ()))
        for layer in islice(candidates, _MOST_CANDIDATES):
            if layer.accepts(norm.roles):
                break
        else:
            layer = _Layer(norm.scope)
            self._layers.append(layer)
        for key in set(norm.roles.values()) - set(layer.roles.values()):
            self._by_key.setdefault(key, []).append(layer)
        layer.add(norm, graph)
        known = "moving_variance" in layer.roles and layer.epsilons
        if known and (layer.momentum is not None or not self._with_momentum):
            self.unfinished.difference_update(layer.roles.values())
        else:
            self.unfinished.update(layer.roles.values())

    def sightings(self) -> list[Sighting]:
        """What the graphs say of each layer."""
        return [layer.sighting() for layer in self._layers]


def from_graphs(contents: Contents) -> list[Sighting]:
    """The batch-norm layers that a file's graphs show, in the order of the network.

    A graph whose variables have all been seen in others, with all that is wanted of them, is
    not looked at; momentum is not wanted where layer configurations tell it.
    """
    variables = contents.variables

    def fit(one: str, other: str) -> bool:
        first, second = variables.get(one), variables.get(other)
        return first is None or second is None or prod(first.shape) == prod(second.shape)

    def doubt(key: str) -> int | None:
        name = contents.name_of(key)
        reason = set_apart(key, name)
        if reason == ACCUMULATOR or name.endswith(RENORM):
            return None
        return 0 if reason is None else 1

    layers = _Layers(with_momentum=not contents.layers)
    seen: set[str] = set()
    steps = Steps()
    for graph in contents.graphs() if contents.graphs else ():
        keys = set(graph.variables.values())
        if keys <= seen and layers.unfinished.isdisjoint(keys):
            continue
        seen |= keys
        for norm in find_norms(Tensors(graph, steps), fit, doubt):
            layers.add(norm, graph.name)
    return layers.sightings()


def folded(contents: Contents) -> list[str]:
    """A note on where an exporter folded batch norm, for a file in which no layer is left.

    Converters from TensorFlow join the names of what they fold. Where the names are gone, a bias
    that convolutions have may stem from a batch norm.
    """
    if contents.source.format != "onnx" or contents.graphs is None:
        return []
    (graph,) = contents.graphs()
    named: Counter[bool] = Counter()
    biased = 0
    for op in graph.ops.values():
        keys = [graph.variables[name] for name in op.inputs if name in graph.variables]
        is_convolution = op.type in _CONVOLUTIONS
        named[is_convolution] += any(CALLED.search(key) is not None for key in keys)
        biased += is_convolution and len(keys) == 2
    proof = "nothing of it is left to show (bnstat diff ORIGINAL FILE {} it)"
    if named.total():
        parts = [_count(named[True], "convolution")] if named[True] else []
        parts += [_count(named[False], "other operation")] if named[False] else []
        where = " and ".join(parts)
        return [f"batch norm was folded into {where}, by their names: {proof.format('proves')}"]
    if biased:
        return [
            f"batch norm may have been folded into {_count(biased, 'convolution')} with a bias: "
            f"{proof.format('decides')}"
        ]
    return []


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
