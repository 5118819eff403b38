"""What depends on what in a flat graph, and which tensors are computed not once but at times."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bnstat.mending.estimating.running.flatten import op_of

_SWITCHES = frozenset({"Switch", "RefSwitch"})
_MERGES = frozenset({"Merge", "RefMerge"})
_ENTERS = frozenset({"Enter", "RefEnter"})
_EXITS = frozenset({"Exit", "RefExit"})
_BACK = frozenset({"NextIteration", "RefNextIteration"})
_GOING = "LoopCond"

DATA = "(data)"
"""The mark of what depends on the data; all others are names of layers."""


class Condition(NamedTuple):
    """A tensor is computed only where `predicate` is `value`.

    Attributes:
        predicate: a tensor of one bool.
        value: true or false.
    """

    predicate: str
    value: bool


class Loop(NamedTuple):
    """A tensor is computed in each turn of a loop.

    Attributes:
        frame: the loop's name.
        parallel: how many turns may be under way at a time.
        going: the tensor of one bool that tells whether there is another turn.
        deciding: whether it is for something on which `going` depends, which is computed once
            more than the loop's body.
    """

    frame: str
    parallel: int
    going: str
    deciding: bool


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
        self._frames: dict[str, tuple[str, ...]] = {}
        self._enters: dict[str, Any] = {}
        order = list(self._sorted())
        for name in order:
            node = self._nodes[name]
            inputs = [tensor for tensor in node.input if op_of(tensor) in self._frames]
            self._frames[name] = self._frames_of(node, inputs)
            self._conditions[name] = self._conditions_of(node, inputs)
        changed = True
        while changed:  # a second time, and more often, for what loops hand back
            before = dict(self._marks)
            for name in order:
                self._marks[name] = frozenset(marks.get(name, ())).union(
                    *(
                        self.marks(tensor)
                        for tensor in self._nodes[name].input
                        if not tensor.startswith("^")
                    )
                )
            changed = bool(self._enters) and before != self._marks
        self._going = {
            self.frames(name)[-1]: name
            for name in order
            if self._nodes[name].op == _GOING and self.frames(name)
        }

    def marks(self, tensor: str) -> frozenset[str]:
        """The marks of all ops that a tensor depends on."""
        return self._marks.get(op_of(tensor), frozenset())

    def frames(self, tensor: str) -> tuple[str, ...]:
        """The names of the loops that a tensor is computed in; the outermost first."""
        return self._frames.get(op_of(tensor), ())

    def conditions(self, tensor: str, user: str = "") -> Sequence[Condition | Loop]:
        """When a tensor is computed, and in which loops; the outermost first.

        Args:
            tensor: the tensor.
            user: the op that it is computed for; loops are said to be decided by that.
        """
        frames = self.frames(tensor)
        levels: list[list[Condition | Loop]] = [[] for _ in range(len(frames) + 1)]
        found = self._of_tensor(tensor)
        for each in sorted(found, key=lambda each: (len(self._of_tensor(each.predicate)), each)):
            if op_of(each.predicate) not in self._going.values():
                levels[len(self.frames(each.predicate))].append(each)
        for level, frame in zip(levels, frames, strict=False):
            going = self._going.get(frame)
            if going is not None:  # without it TensorFlow refuses the loop
                parallel = self._enters[frame].attr["parallel_iterations"].i
                level.append(Loop(frame, parallel, going, self._decides(user or tensor, going)))
        return [each for level in levels for each in level]

    def _decides(self, tensor: str, going: str) -> bool:
        """Whether a loop's going on depends on a tensor of the same turn."""
        seen: set[str] = set()
        stack = [going]
        while stack:
            name = stack.pop()
            if name not in seen and name in self._nodes:
                seen.add(name)
                if self._nodes[name].op not in _BACK:
                    stack.extend(map(op_of, self._nodes[name].input))
        return op_of(tensor) in seen

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
        if node.op in _EXITS:
            depth = len(self.frames(node.name))
            found = frozenset(one for one in found if len(self.frames(one.predicate)) <= depth)
        return found

    def _frames_of(self, node: Any, inputs: Sequence[str]) -> tuple[str, ...]:
        around = max(map(self.frames, inputs), key=len, default=())
        if node.op in _ENTERS:
            frame = node.attr["frame_name"].s.decode(errors="replace")
            self._enters[frame] = node
            return (*around, frame)
        return around[:-1] if node.op in _EXITS else around

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
