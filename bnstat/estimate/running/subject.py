"""A model that is ready to be measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from bnstat.errors import BnstatError
from bnstat.estimate.running.activations import Activation, activation_of
from bnstat.estimate.running.allowed_ops import refuse_unlisted
from bnstat.estimate.running.flat_graph import (
    DATA,
    Input,
    Order,
    Program,
    flattened,
    nodes,
    op_of,
    pruned,
    with_placeholders,
)
from bnstat.estimate.running.measuring import measuring, unmeasurable
from bnstat.estimate.running.normalizations import MEAN, VARIANCE, Site, Survey, survey
from bnstat.estimate.running.runner import Runner, imported
from bnstat.estimate.running.traced import mask_of
from bnstat.model import Array, BatchNorm


@dataclass(frozen=True)
class Subject:
    """A model whose normalizations are found.

    Attributes:
        program: the model; its graph is flat.
        layers: the layers that can be measured, in the order of the network, by name.
        sites: where they normalize.
        left: layer -> why it cannot be measured.
        order: of the graph.
        graph: the same graph as a `tf.Graph`.
        activation: the function that `output` is the result or the input of, if known.
    """

    program: Program
    layers: Mapping[str, BatchNorm]
    sites: Sequence[Site]
    left: Mapping[str, str]
    order: Order
    graph: Any
    activation: Activation | None

    @property
    def inputs(self) -> Mapping[str, Input]:
        """What is to be fed."""
        return self.program.inputs

    @property
    def output(self) -> str:
        """The tensor that is the model's answer."""
        return next(iter(self.program.outputs.values()))

    @property
    def is_comparable(self) -> bool:
        """Return True if `output` is a floating-point tensor, and the only candidate for it.

        A graph without a signature may have several, some of them in branches that never run.
        """
        is_only = len(self.program.outputs) == 1
        return is_only and bool(self.graph.get_tensor_by_name(self.output).dtype.is_floating)

    @cached_property
    def unbiased(self) -> Mapping[str, bool]:
        """Layer -> whether its training averages the unbiased variance."""
        return {site.layer: site.unbiased for site in reversed(self.sites)}

    def stored(self) -> dict[str, dict[str, Array]]:
        """Layer -> role -> its statistics as they are, [channels]."""
        return {
            name: {role: _flat(layer, role) for role in (MEAN, VARIANCE)}
            for name, layer in self.layers.items()
        }

    def numbers(self, layers: Sequence[str]) -> list[int]:
        """The numbers of the sites of some layers."""
        return [number for number, site in enumerate(self.sites) if site.layer in layers]

    def runner(self, *, by_batch: bool, sample: bool, optimized: bool = True) -> Runner:
        """A session that measures; see `measuring` and `Runner`."""
        graph = measuring(
            self.program.graph_def,
            self.graph,
            self.sites,
            self.order,
            by_batch=by_batch,
            sample=sample,
        )
        return Runner(self.program, graph, optimized=optimized)

    def waves(self) -> list[list[str]]:
        """The layers in groups, each of which depends on the groups before it alone.

        Layers that depend on each other, as when one is used twice, are in one group.
        """
        before: dict[str, set[str]] = {name: set() for name in self.layers}
        for site in self.sites:
            before[site.layer] |= self.order.marks(site.x) & self.layers.keys()
        return _groups(before)

    def depend_on_themselves(self, wave: Sequence[str]) -> bool:
        """Whether what a group measures depends on what is measured."""
        return any(
            site.layer in wave and not self.order.marks(site.x).isdisjoint(wave)
            for site in self.sites
        )


def prepared(program: Program, layers: Sequence[BatchNorm], trust: bool) -> Subject:
    """Find the normalizations of a model.

    Args:
        program: the model.
        layers: its layers, with their variables' keys.
        trust: run ops that are not on the list of allowed ops too.

    Raises:
        UnsupportedError: running it would execute ops that are not allowed.
        BnstatError: TensorFlow cannot make sense of its graph.
    """
    wanted = [op_of(each) for each in (*program.outputs.values(), *program.masks.values())]
    prepare = [op_of(name) for name in program.prepare]
    graph_def, cut = with_placeholders(program.graph_def, program.inputs)
    needed = pruned(graph_def, wanted, program.where)
    if prepare and any("Table" in node.op for node in nodes(needed)):
        needed = pruned(graph_def, wanted + prepare, program.where)
    else:
        prepare = []
    refuse_unlisted(needed, program.where, trust=trust)
    flat = flattened(needed, wanted + prepare, program.where)
    for node in flat.node:
        if f"{node.name}:0" in program.settings:
            # Graphs leave the shape open, and with it those of all that depends on the value.
            node.attr["shape"].shape.Clear()
    there = {node.name for node in flat.node}
    inputs = {k: each for k, each in cut.items() if op_of(each.tensor) in there}
    if not inputs:
        raise BnstatError(program.where, "its outputs depend on none of its inputs")
    activation = activation_of((flat, program.graph_def), next(iter(program.outputs.values())))
    program = replace(
        program,
        graph_def=flat,
        inputs=inputs,
        settings={k: each for k, each in program.settings.items() if op_of(k) in there},
        prepare=tuple(prepare),
    )
    found = _with_masks(survey(flat, program.variables, layers), flat, program.masks)
    marks: dict[str, list[str]] = {op_of(each.tensor): [DATA] for each in inputs.values()}
    for site in found.sites:
        marks.setdefault(site.op, []).append(site.layer)
    order = Order(flat, marks)
    graph = imported(flat, program.where)
    left = dict(found.blind) | unmeasurable(graph, found.sites)
    for site in found.sites:
        frames = order.frames(site.x)
        if any(order.frames(edge.op) != frames for edge in site.edges):
            left[site.layer] = "the graph normalizes with it partly in a loop and partly outside"
        elif DATA not in order.marks(site.x):
            left[site.layer] = "the data never reaches it"
    names = {site.layer for site in found.sites} - left.keys()
    return Subject(
        program,
        {layer.name: layer for layer in layers if layer.name in names},
        [site for site in found.sites if site.layer in names],
        left,
        order,
        graph,
        activation,
    )


def _with_masks(found: Survey, graph_def: Any, masks: Mapping[str, str]) -> Survey:
    if not masks:
        return found
    by_name = {node.name: node for node in graph_def.node}
    sites = (replace(site, mask=mask_of(by_name, site.x, masks)) for site in found.sites)
    return replace(found, sites=tuple(sites))


def _flat(layer: BatchNorm, role: str) -> Array:
    array = layer.array(role)
    if array is None:
        raise BnstatError(layer.name, f"its {role} is not in the file")
    return array.reshape(-1)


def _groups(before: Mapping[str, set[str]]) -> list[list[str]]:
    """Names in groups, each after those that it depends on."""
    before = _closed(before)
    together = {
        name: frozenset(
            other for other in before if other == name or (other in deps and name in before[other])
        )
        for name, deps in before.items()
    }
    depth: dict[str, int] = {}

    def level(name: str) -> int:
        if name not in depth:
            outside = set().union(*(before[other] for other in together[name])) - together[name]
            depth[name] = 1 + max((depth[other] for other in outside if other in depth), default=-1)
        return depth[name]

    for name in sorted(before, key=lambda name: len(before[name])):
        level(name)
    groups: dict[int, list[str]] = {}
    for name in before:
        groups.setdefault(depth[name], []).append(name)
    return [groups[number] for number in sorted(groups)]


def _closed(before: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The same with what they depend on by way of others."""
    closed = {name: set(names) for name, names in before.items()}
    changed = True
    while changed:
        changed = False
        for names in closed.values():
            more = set().union(*(closed[name] for name in names)) - names
            changed = changed or bool(more)
            names |= more
    return closed
