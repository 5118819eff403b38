"""Where a graph can be cut: tensors of which all that comes later can be computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bnstat.mending.estimating.running.flatten import op_of
from bnstat.mending.estimating.running.order import DATA, Order

if TYPE_CHECKING:
    from bnstat.mending.estimating.running.runner import Runner
    from bnstat.mending.estimating.running.subject import Subject

Cut = tuple[str, ...]
"""Names of tensors; none where the graph cannot be cut there."""


def cuts(subject: Subject, runner: Runner, waves: Sequence[Sequence[str]]) -> list[Cut]:
    """A cut for each wave of layers: what no layer of it or of those after it has a part in.

    Once the waves before are mended, these tensors stay what they are, and what is measured in
    the waves after can be computed from them instead of from the inputs.

    Args:
        subject: the model.
        runner: its session, in which each layer normalizes by what is fed.
        waves: the layers in groups.
    """
    measuring = runner.measuring
    graph_def = measuring.graph_def
    marks = {op_of(each.tensor): [DATA] for each in subject.inputs.values()}
    for layer, holders in measuring.given.items():
        marks.update({op_of(name): [layer] for name in holders.values()})
    order = Order(graph_def, marks)
    nodes = {node.name: node for node in graph_def.node}
    results = [
        [op_of(name) for site in subject.numbers(wave) for name in measuring.results[site]]
        for wave in waves
    ]
    last = _last(nodes, results)
    mended = {layer: number for number, wave in enumerate(waves, 1) for layer in wave}

    def settled(tensor: str) -> int:
        """The first wave in which a tensor is what it stays."""
        return max((mended.get(mark, 0) for mark in order.marks(tensor)), default=0)

    found: list[set[str]] = [set() for _ in waves]
    for name, needed in last.items():
        until = min(settled(name), needed)
        for tensor in nodes[name].input:
            if not tensor.startswith("^") and DATA in order.marks(tensor):
                for number in range(settled(tensor), until):
                    found[number].add(tensor)
    whole = [_cut(nodes, order, tensors) for tensors in found]
    return [cut if all(map(runner.can_keep, cut)) else () for cut in whole]


def _last(nodes: Mapping[str, Any], results: Sequence[Sequence[str]]) -> dict[str, int]:
    """Op -> the last wave that needs it."""
    last: dict[str, int] = {}
    for number in range(len(results) - 1, -1, -1):
        stack = list(results[number])
        while stack:
            name = stack.pop()
            if name not in last:
                last[name] = number
                stack.extend(map(op_of, nodes[name].input))
    return last


def _cut(nodes: Mapping[str, Any], order: Order, tensors: set[str]) -> Cut:
    if any(order.conditions(tensor) for tensor in tensors):
        return ()
    return tuple(sorted({_itself(nodes, tensor) for tensor in tensors}))


def _itself(nodes: Mapping[str, Any], tensor: str) -> str:
    """The tensor of which another one is but another name, with its place: `op:0`."""
    while nodes[op_of(tensor)].op == "Identity":
        tensor = next(each for each in nodes[op_of(tensor)].input if not each.startswith("^"))
    return tensor if ":" in tensor else f"{tensor}:0"
