"""Tracing the tensors of a computation graph to their sources and consumers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnstat.formats.contents import Graph, Op

_MOST_STEPS = 1_000_000  # in all graphs of a file; a large network needs some 50,000
_MOST_OPS = 20_000  # of interest in a graph; the largest networks have some thousands
_MOST_STEPS_EACH = 100  # from one tensor; variables are a few ops away from their use

PASSES = frozenset(
    {
        "BroadcastTo",
        "Cast",
        "CheckNumerics",
        "Enter",
        "EnsureShape",
        "Exit",
        "Expand",
        "ExpandDims",
        "Identity",
        "PreventGradient",
        "ReadVariableOp",
        "RefEnter",
        "RefIdentity",
        "RefSwitch",
        "Reshape",
        "Snapshot",
        "Squeeze",
        "StopGradient",
        "Switch",
        "Unsqueeze",
    }
)
"""TensorFlow and ONNX ops whose output has the values of the first input."""

SUMS = frozenset({"Add", "AddV2", "BiasAdd"})

_ASSIGNS = frozenset({"Assign", "AssignAdd", "AssignSub"})
"""Ops that change a variable and output it."""

_CHOOSES: Mapping[str, slice] = {
    "Merge": slice(0, None),
    "RefMerge": slice(0, None),
    "Select": slice(1, None),
    "SelectV2": slice(1, None),
}
"""Op -> slice of its inputs; the op outputs one of them."""

_JOINS: Mapping[str, slice] = {"ConcatV2": slice(0, -1), "Concat": slice(1, None)}
"""Op -> slice of its inputs that it joins; they may be the parts of a partitioned variable."""

_AVERAGES = frozenset({"Mean", "Mul", "RealDiv", "CollectiveReduce", "CollectiveReduceV2"})
"""Ops between the statistics of a batch and moving statistics: the mean over virtual batches or
replicas, and Bessel's correction."""


class Leaf(NamedTuple):
    """A tensor as an operand of a formula.

    Attributes:
        sources: the tensors whose values the operand may have; several if a switch selects one.
        key: the variable's key; None if the operand is not a variable.
    """

    sources: tuple[str, ...]
    key: str | None = None


class Steps:
    """A budget of steps for tracing tensors."""

    def __init__(self, most: int = _MOST_STEPS) -> None:
        self.left = most

    def take(self, count: int = 1) -> bool:
        """Spend steps; return False if the budget is exceeded."""
        self.left -= count
        return self.left >= 0


class Tensors:
    """The tensors of a graph. A tensor is named `op` if it is the first output, else `op:1`, ...

    When the budget of steps is spent, tracing stops, and results are empty or incomplete.
    """

    def __init__(self, graph: Graph, steps: Steps) -> None:
        self.ops = graph.ops
        self._graph = graph
        self._inputs: dict[str, Sequence[str]] = {}
        self._sources: dict[str, tuple[str, ...]] = {}
        self._steps = steps

    def of_types(self, types: Container[str]) -> list[Op]:
        """Return the ops of these types in stored order, at most 20,000."""
        return [*islice((op for op in self.ops.values() if op.type in types), _MOST_OPS)]

    def op(self, tensor: str) -> Op | None:
        return self.ops.get(op_of(tensor))

    def producer(self, tensor: str) -> Op | None:
        """Return the op that computes a tensor's values; None if a switch selects among ops."""
        sources = self.sources(tensor)
        return self.op(sources[0]) if len(sources) == 1 else None

    def operands(self, tensor: str, types: Container[str]) -> tuple[str, str] | None:
        """Return the two operands if an op of one of these types computes `tensor`, else None."""
        op = self.producer(tensor)
        inputs = self.inputs(op.name) if op is not None and op.type in types else ()
        return (inputs[0], inputs[1]) if len(inputs) == 2 else None

    def either_order(self, tensor: str, types: Container[str]) -> Sequence[tuple[str, str]]:
        """Return the operands in both orders, [(a, b), (b, a)], or an empty list."""
        operands = self.operands(tensor, types)
        return [operands, operands[::-1]] if operands else []

    def inputs(self, name: str) -> Sequence[str]:
        if name not in self._inputs:
            inputs = self.ops[name].inputs if name in self.ops else ()
            self._inputs[name] = inputs if self._steps.take(len(inputs)) else ()
        return self._inputs[name]

    @cached_property
    def consumers(self) -> Mapping[str, Sequence[str]]:
        """Name of an op -> names of the ops that take one of its outputs as an input."""
        consumers: dict[str, list[str]] = {}
        for name in self.ops:
            for tensor in self.inputs(name):
                consumers.setdefault(op_of(tensor), []).append(name)
        return consumers

    def walk(self, start: Iterable[str], after: Callable[[str], Iterable[str]]) -> Iterator[str]:
        """Yield the names in `start` and all names reachable through `after`, the nearest first."""
        queue = deque(dict.fromkeys(start))
        reached = set(queue)
        while queue:
            name = queue.popleft()
            yield name
            steps = 0
            for following in after(name):
                steps += 1
                if following not in reached:
                    reached.add(following)
                    queue.append(following)
            if not self._steps.take(steps):
                return

    def sources(self, tensor: str) -> tuple[str, ...]:
        """Return the tensors whose values `tensor` has; several if a switch selects one of them.

        Ops that only change the shape or dtype, or read a variable, are followed to their input.
        The result is empty if the search takes too many steps.
        """
        if tensor not in self._sources:
            ends = []

            def behind(passed: str) -> Sequence[str]:
                before = self._behind(passed)
                if not before:
                    ends.append(passed)
                return before

            is_short = len(self._trace(tensor, behind)) <= _MOST_STEPS_EACH
            self._sources[tensor] = tuple(ends) if is_short and self._steps.left >= 0 else ()
        return self._sources[tensor]

    def reach(self, tensor: str) -> set[str]:
        """Return all tensors from which `tensor` is computed by selecting and averaging only."""
        return set(self._trace(tensor, self._averaged))

    def _trace(self, tensor: str, behind: Callable[[str], Iterable[str]]) -> list[str]:
        return [*islice(self.walk([tensor], behind), _MOST_STEPS_EACH + 1)]

    def downstream(self, name: str, types: Container[str], most: int) -> list[str]:
        """Return the ops of these types that depend on an op, the nearest first.

        All ops on the way are of these types or pass values on. At most `most` ops are visited.
        """

        def after(name: str) -> Iterator[str]:
            for consumer in self.consumers.get(name, ())[:most]:
                if self.ops[consumer].type in types or self.ops[consumer].type in PASSES:
                    yield consumer

        reached = islice(self.walk([name], after), 1, most)
        return [consumer for consumer in reached if self.ops[consumer].type in types]

    def variable(self, tensor: str) -> str | None:
        """Return the key of the variable whose values a tensor has; None if none or several."""
        variables = self._graph.variables
        keys = {variables.get(source) or self._joined(source) for source in self.sources(tensor)}
        keys.discard(None)
        return keys.pop() if len(keys) == 1 else None

    def leaf(self, tensor: str) -> Leaf:
        return Leaf(self.sources(tensor), self.variable(tensor))

    def constants(self, tensor: str) -> list[NDArray[np.generic]]:
        """Return the constants that a tensor can equal; several if an op chooses among them."""
        arrays = map(self._graph.constant, self.sources(tensor))
        return [array for array in arrays if array is not None]

    def scalars(self, tensor: str) -> list[float]:
        """Return the numbers that a tensor may be, each as its shortest decimal form (`0.001`)."""
        single = (array for array in self.constants(tensor) if array.size == 1)
        return [_shortest(array) for array in single if array.dtype.kind not in "biuc"]

    def axis(self, tensor: str) -> int | None:
        """Return the axis of a vector after a reshape: 1 for `[1, C, 1]`; None if not reshaped."""
        for passed in self._trace(tensor, self._behind):
            op = self.op(passed)
            if op is not None and op.type == "Reshape" and len(self.inputs(op.name)) == 2:
                shapes = self.constants(self.inputs(op.name)[1])
                sizes = shapes[0].ravel().tolist() if len(shapes) == 1 else []
                wide = [position for position, size in enumerate(sizes) if size != 1]
                return wide[0] if len(sizes) > 1 and len(wide) == 1 else None
        return None

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Return names of ops in topological order: each op after the ops that it depends on."""
        stack: list[tuple[str, bool]] = []
        wanted = dict.fromkeys(names)
        begun: set[str] = set()
        order = []
        for root in wanted:
            stack.append((root, False))
            while stack:
                name, inputs_done = stack.pop()
                if inputs_done:
                    order.append(name)
                elif name not in begun:
                    begun.add(name)
                    if name in wanted:
                        stack.append((name, True))
                    inputs = [op_of(tensor) for tensor in self.inputs(name)]
                    stack.extend((tensor, False) for tensor in reversed(inputs))
        return order

    def _behind(self, tensor: str) -> Sequence[str]:
        """Return the inputs that an op passes on as `tensor`; empty if it computes new values."""
        op = self.op(tensor)
        if op is None or tensor in self._graph.variables:
            return ()
        if op.type in PASSES or op.type in _ASSIGNS:
            return self.inputs(op.name)[:1]
        if op.type in _CHOOSES and not tensor.endswith(":1"):
            return self.inputs(op.name)[_CHOOSES[op.type]]
        if op.type == "IdentityN":
            number = int(tensor.partition(":")[2] or 0)
            return self.inputs(op.name)[number : number + 1]
        return ()

    def _averaged(self, tensor: str) -> Sequence[str]:
        before = self._behind(tensor)
        op = self.op(tensor)
        if before or op is None or op.type not in _AVERAGES:
            return before
        return self.inputs(op.name)[: 2 if op.type in ("Mul", "RealDiv") else 1]

    def _joined(self, tensor: str) -> str | None:
        op = self.op(tensor)
        if op is None or op.type not in _JOINS:
            return None
        parts = self.inputs(op.name)[_JOINS[op.type]]
        keys = {self._graph.variables.get(name) for part in parts for name in self.sources(part)}
        return keys.pop() if len(keys) == 1 else None


def op_of(tensor: str) -> str:
    """Return the name of the op that outputs a tensor."""
    return tensor.partition(":")[0]


def _shortest(array: NDArray[np.generic]) -> float:
    """Return the only value of an array, with as few digits as restore it in the array's dtype."""
    value = array.reshape(-1)[0]
    exact = float(value)
    for digits in range(1, 17):
        candidate = float(f"{exact:.{digits}g}")
        if array.dtype.type(candidate) == value:
            return candidate
    return exact
