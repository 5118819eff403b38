"""What depends on what in a flat graph, and which tensors are not always computed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bnstat.mending.estimating.running.flatten import op_of

LOOP = "a loop"

_SWITCHES = frozenset({"Switch", "RefSwitch"})
_MERGES = frozenset({"Merge", "RefMerge"})
_ENTERS = frozenset({"Enter", "RefEnter"})
_EXITS = frozenset({"Exit", "RefExit"})
_BACK = frozenset({"NextIteration", "RefNextIteration"})


class Condition(NamedTuple):
    """A tensor is computed only where `predicate` is `value`.

    Attributes:
        predicate: a tensor of one bool; `LOOP` where the tensor belongs to a loop's body.
        value: true or false.
    """

    predicate: str
    value: bool


class Order:
    """The dependencies in a flat graph.

    Args:
        graph_def: a flat `GraphDef`.
        marks: name of an op -> the marks that it sets on all that depends on it.
    """

    def __init__(self, graph_def: Any, marks: Mapping[str, Collection[str]]) -> None:
        self._nodes = {node.name: node for node in graph_def.node}
        self._marks: dict[str, frozenset[str]] = {}
        self._conditions: dict[str, frozenset[Condition]] = {}
        for name in self._sorted():
            node = self._nodes[name]
            inputs = [tensor for tensor in node.input if op_of(tensor) in self._marks]
            self._marks[name] = frozenset(marks.get(name, ())).union(
                *(self._marks[op_of(tensor)] for tensor in inputs if not tensor.startswith("^"))
            )
            self._conditions[name] = self._conditions_of(node, inputs)

    def marks(self, tensor: str) -> frozenset[str]:
        """The marks of all ops that a tensor depends on."""
        return self._marks.get(op_of(tensor), frozenset())

    def conditions(self, tensor: str) -> Sequence[Condition]:
        """When a tensor is computed; the outermost condition first."""
        found = self._of_tensor(tensor)
        return sorted(found, key=lambda each: (len(self._of_tensor(each.predicate)), each))

    def _of_tensor(self, tensor: str) -> frozenset[Condition]:
        name = op_of(tensor)
        found = self._conditions.get(name, frozenset())
        node = self._nodes.get(name)
        if node is not None and node.op in _SWITCHES and not tensor.startswith("^"):
            found |= {Condition(node.input[1], tensor.endswith(":1"))}
        return found

    def _conditions_of(self, node: Any, inputs: Sequence[str]) -> frozenset[Condition]:
        each = [self._of_tensor(tensor) for tensor in inputs]
        if node.op in _MERGES and each:
            return frozenset.intersection(*each)
        found = frozenset[Condition]().union(*each)
        if node.op in _ENTERS:
            found |= {Condition(LOOP, True)}
        if node.op in _EXITS:
            found = frozenset(one for one in found if one.predicate != LOOP)
            found = frozenset(
                one for one in found if Condition(LOOP, True) not in self._of_tensor(one.predicate)
            )
        return found

    def _sorted(self) -> Iterator[str]:
        """All ops, each after those that it depends on; what a loop hands back comes later."""
        done: set[str] = set()
        begun: set[str] = set()
        for root in self._nodes:
            stack = [(root, False)]
            while stack:
                name, finished = stack.pop()
                if finished:
                    done.add(name)
                    yield name
                elif name not in begun and name in self._nodes:
                    begun.add(name)
                    stack.append((name, True))
                    if self._nodes[name].op not in _BACK:
                        stack.extend((op_of(tensor), False) for tensor in self._nodes[name].input)
