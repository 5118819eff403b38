"""Inlining: calls in a computation graph, replaced by the bodies of the functions.

A node that calls functions (PartitionedCall, If, While, ...) names them in an attribute; their
bodies are FunctionDefs in the graph's library. TensorFlow inlines them before it runs a graph. Here
an argument becomes the tensor that the caller passes, and the result of several branches becomes a
`Merge`.

A NodeDef names its inputs `node` or `node:1` in a top-level graph, `argument` or
`node:output_name:0` in a function's body, and `^node` if it only waits for that node.

Sources: tensorflow/core/framework/{node_def,function,attr_value}.proto.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bnstat.formats.contents import Op

CALLS = ("PartitionedCall", "StatefulPartitionedCall")

_MAX_INLINED = 300_000
"""Nodes that calls may add: a few nested functions can expand to billions."""

_COST_OF_CALL = 20
"""The nodes that inlining one call counts as."""

_NAMES_PER_NODE = 10
"""This many inputs, arguments and results of a body count as one node."""

_MAX_DEPTH = 50

_MAX_HOPS = 200
"""The limit on arguments and results that a tensor passes through, because calls can be cyclic."""

_FUNCTIONS = {
    **dict.fromkeys((*CALLS, "TPUPartitionedCall"), ("f",)),
    **dict.fromkeys(("If", "StatelessIf"), ("then_branch", "else_branch")),
    **dict.fromkeys(("Case", "StatelessCase"), ("branches",)),
    **dict.fromkeys(("While", "StatelessWhile"), ("body",)),
}
"""The attributes that name functions, by the op's type."""
_CHOICES = frozenset({"If", "StatelessIf", "Case", "StatelessCase"})
"""Ops whose first input chooses a branch."""
_LOOPS = frozenset({"While", "StatelessWhile"})

_OUTPUTS = {"batch_mean": 1, "batch_variance": 2, "output_true": 1, "value_index": 1}
"""Output name -> index, if not 0."""


class Node:
    """A NodeDef as an op, with its inputs named as in the inlined graph.

    Attributes:
        node: the NodeDef.
    """

    __slots__ = ("_frame", "name", "node", "type")

    def __init__(self, node: Any, frame: _Frame) -> None:
        self.name: str = frame.prefix + node.name
        self.type: str = node.op
        self.node = node
        self._frame = frame

    @property
    def function(self) -> str:
        """The name of the enclosing function; empty for the graph."""
        return self._frame.function

    @property
    def inputs(self) -> Sequence[str]:
        """Data inputs as `op` or `op:output`."""
        return [self._frame.tensor(name) for name in data_inputs(self.node)]

    @property
    def controls(self) -> Sequence[str]:
        """The ops that the op waits for without reading their outputs."""
        waits = (name[1:] for name in self.node.input if name.startswith("^"))
        return [self._frame.prefix + name for name in waits]

    def attribute(self, name: str) -> float | int | bool | str | None:
        """Return a simple attribute; a float has the fewest digits that identify a float32."""
        if name not in self.node.attr:
            return None
        value = self.node.attr[name]
        if value.HasField("f"):
            return float(str(np.float32(value.f)))
        if value.HasField("s"):
            text: str = value.s.decode("utf-8", "replace")
            return text
        for kind in ("i", "b", "type"):
            if value.HasField(kind):
                number: int | bool = getattr(value, kind)
                return number
        return None

    @property
    def tensor(self) -> Any | None:
        """The `TensorProto` of a constant; None for other ops."""
        if self.type != "Const" or "value" not in self.node.attr:
            return None
        return self.node.attr["value"].tensor


class _Merge:
    """The result of a call with several branches, or of a loop: one of several tensors."""

    __slots__ = ("_choices", "name", "type")

    def __init__(self, name: str, choices: Sequence[_Reference]) -> None:
        self.name = name
        self.type = "Merge"
        self._choices = choices

    @property
    def inputs(self) -> Sequence[str]:
        return [frame.tensor(name) for frame, name in self._choices]

    def attribute(self, name: str) -> None:
        return None


_Reference = tuple["_Frame", str]
"""A frame, and the name of a tensor in this frame."""


class _Frame:
    """An inlined function body, or the top-level graph, whose `function` is empty.

    Attributes:
        prefix: prepended to the names of the body's nodes.
        arguments: name of an argument -> tensor that the caller passes.
        results: name of a calling node in the body -> tensors that the call returns.
    """

    __slots__ = ("arguments", "function", "prefix", "results")

    def __init__(
        self, prefix: str, arguments: Mapping[str, _Reference], function: str = ""
    ) -> None:
        self.prefix = prefix
        self.function = function
        self.arguments = arguments
        self.results: dict[str, Sequence[_Reference]] = {}

    def tensor(self, name: str) -> str:
        """Return a tensor's name in the inlined graph, `op` or `op:output`."""
        frame = self
        for _ in range(_MAX_HOPS):
            node, _, output = name.partition(":")
            if node in frame.arguments:
                frame, name = frame.arguments[node]
                continue
            index = _output_index(output) if output else 0
            results = frame.results.get(node)
            if results is None or index >= len(results):
                return f"{frame.prefix}{node}:{index}" if index else frame.prefix + node
            frame, name = results[index]
        return ""


Binding = tuple[str, tuple[str | None, ...]]
"""A function's name, and the keys of the variables that are passed as its arguments."""


class Inliner:
    """Replaces calls by bodies, up to a total number of nodes."""

    def __init__(self, functions: Mapping[str, Any]) -> None:
        self._functions = functions
        self._costs: dict[str, int] = {}
        self._left = _MAX_INLINED

    def affords(self, *names: str) -> bool:
        """Count these bodies as added, and return True, if the limit permits."""
        size = sum(map(self._cost, names))
        if size > self._left:
            return False
        self._left -= size
        return True

    def _cost(self, name: str) -> int:
        if name not in self._costs:
            body, signature = self._functions[name].node_def, self._functions[name].signature
            names = len(signature.input_arg) + len(signature.output_arg)
            names += sum(len(node.input) for node in body)
            self._costs[name] = _COST_OF_CALL + len(body) + names // _NAMES_PER_NODE
        return self._costs[name]

    def inline(
        self,
        nodes: Iterable[Any],
        variables: Mapping[str, str] | None = None,
        seen: set[Binding] | None = None,
    ) -> dict[str, Op]:
        """Return the ops of a body and of everything that it calls, by name, in stored order.

        `variables` maps the body's arguments to keys. `seen` collects the functions that are
        called.
        """
        ops: dict[str, Op] = {}
        self._add(nodes, _Frame("", {}), (), ops, variables or {}, set() if seen is None else seen)
        return ops

    def _add(
        self,
        nodes: Iterable[Any],
        frame: _Frame,
        active: tuple[str, ...],
        ops: dict[str, Op],
        variables: Mapping[str, str],
        seen: set[Binding],
    ) -> None:
        for node in nodes:
            op = Node(node, frame)
            callees = self._callees(node, active)
            if not callees:
                ops.setdefault(op.name, op)
                continue
            inputs = [(frame, name) for name in data_inputs(node)]
            if op.type in _CHOICES:
                inputs = inputs[1:]
            is_single = len(callees) == 1 and op.type not in _LOOPS
            branches = []
            for number, callee in enumerate(callees):
                function = self._functions[callee]
                names = arguments(function)
                prefix = f"{op.name}/" if is_single else f"{op.name}/branch_{number}/"
                body = _Frame(prefix, dict(zip(names, inputs, strict=False)), callee)
                seen.add((callee, tuple(variables.get(body.tensor(name)) for name in names)))
                self._add(function.node_def, body, (*active, callee), ops, variables, seen)
                results = [result.name for result in function.signature.output_arg]
                branches.append([(body, function.ret.get(name, "")) for name in results])
            if op.type in _LOOPS:
                branches.append(inputs)
            if is_single:
                frame.results[node.name] = branches[0]
                continue
            outputs = []
            for number, choices in enumerate(zip(*branches, strict=False)):
                merged = f"{node.name}/output_{number}"
                ops.setdefault(frame.prefix + merged, _Merge(frame.prefix + merged, choices))
                outputs.append((frame, merged))
            frame.results[node.name] = outputs

    def _callees(self, node: Any, active: tuple[str, ...]) -> list[str]:
        """Return the functions that an op calls; an empty list if they cannot be inlined."""
        names: list[str] = []
        if node.op in _FUNCTIONS:
            for attribute in _FUNCTIONS[node.op]:
                if attribute in node.attr:
                    value = node.attr[attribute]
                    functions = value.list.func if value.HasField("list") else (value.func,)
                    names += [function.name for function in functions]
        elif node.op in self._functions:
            names = [node.op]
        if len(active) >= _MAX_DEPTH or any(
            name in active or name not in self._functions for name in names
        ):
            return []
        return names if names and self.affords(*names) else []


def data_inputs(node: Any) -> list[str]:
    """Return the data inputs of a NodeDef, without control inputs."""
    return [name for name in node.input if not name.startswith("^")]


def arguments(function: Any) -> list[str]:
    """Return the names of a FunctionDef's arguments."""
    return [argument.name for argument in function.signature.input_arg]


def _output_index(reference: str) -> int:
    """Return the index of an output: `1` in top-level graphs, `batch_mean:0` in bodies."""
    name, _, index = reference.rpartition(":")
    number = int(index) if index.isdecimal() and len(index) < 6 else 0
    return number + _OUTPUTS.get(name, 0)
