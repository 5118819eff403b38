"""Calls in a computation graph, replaced by the bodies that they call.

A node that calls functions (PartitionedCall, If, While, ...) names them in an attribute; their
bodies are FunctionDefs in the graph's library. TensorFlow puts the bodies in the calls' places
before it runs a graph. Here too, so that whoever follows a tensor crosses no border: an
argument is what the caller passes, a result of several branches is a `Merge` of theirs.

A NodeDef names its inputs `node` or `node:1` in a top-level graph, `argument` or
`node:output_name:0` in a function's body, and `^node` where it only waits for it.

Sources: tensorflow/core/framework/{node_def,function,attr_value}.proto.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bnstat.formats.contents import Op

_LARGEST_INLINED = 300_000
"""Nodes that calls may add in all: a library of a few functions can call for billions."""

_COST_OF_CALL = 20
"""What a call counts for, in nodes."""

_NAMES_OF_A_NODE = 10
"""So many inputs, arguments and results of a body count as a node."""

_DEEPEST_CALL = 50

_LONGEST_HANDOVER = 200
"""Arguments and results that a tensor may be handed through: a cycle of calls has no end."""

_BRANCHES = {
    "PartitionedCall": ("f",),
    "StatefulPartitionedCall": ("f",),
    "TPUPartitionedCall": ("f",),
    "If": ("then_branch", "else_branch"),
    "StatelessIf": ("then_branch", "else_branch"),
    "Case": ("branches",),
    "StatelessCase": ("branches",),
    "While": ("body",),
    "StatelessWhile": ("body",),
}
_CHOOSES_FIRST = frozenset({"If", "StatelessIf", "Case", "StatelessCase"})
_LOOPS = frozenset({"While", "StatelessWhile"})

_OUTPUTS = {"batch_mean": 1, "batch_variance": 2, "output_true": 1, "value_index": 1}
"""Outputs that functions' bodies call by name and that are not their op's first."""


class Node:
    """An op as its NodeDef says it, with its inputs as the inlined graph names them."""

    __slots__ = ("_frame", "_node", "name", "type")

    def __init__(self, node: Any, frame: _Frame) -> None:
        self.name: str = frame.prefix + node.name
        self.type: str = node.op
        self._node = node
        self._frame = frame

    @property
    def home(self) -> tuple[str, str]:
        """The function whose body the node is of, empty for the graph itself, and its own name."""
        return self._frame.function, self._node.name

    @property
    def inputs(self) -> Sequence[str]:
        """Data inputs as `op` or `op:output`."""
        return [self._frame.tensor(name) for name in data_inputs(self._node)]

    @property
    def controls(self) -> Sequence[str]:
        """The ops that the op waits for without taking their outputs."""
        waits = (name[1:] for name in self._node.input if name.startswith("^"))
        return [self._frame.prefix + name for name in waits]

    def attribute(self, name: str) -> float | int | bool | str | None:
        """The value of a simple attribute; floats in the fewest digits that float32 needs."""
        if name not in self._node.attr:
            return None
        value = self._node.attr[name]
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
        """The `TensorProto` that a constant holds; None for other ops."""
        if self.type != "Const" or "value" not in self._node.attr:
            return None
        return self._node.attr["value"].tensor


class _Merge:
    """What a call gives that has several branches, or loops: one of several tensors."""

    __slots__ = ("_choices", "name", "type")

    def __init__(self, name: str, choices: Sequence[Reference]) -> None:
        self.name = name
        self.type = "Merge"
        self._choices = choices

    @property
    def inputs(self) -> Sequence[str]:
        """The tensors that it may be."""
        return [frame.tensor(name) for frame, name in self._choices]

    def attribute(self, name: str) -> None:
        """A choice has none."""
        return None


Reference = tuple["_Frame", str]
"""A tensor: its name, and where that name stands."""


class _Frame:
    """A body where it is called: what its names stand for.

    Attributes:
        prefix: stands before the names of its nodes.
        arguments: the body's argument -> the tensor that the caller passes, and its frame.
        results: node of the body that is a call -> the tensors that come back.
        function: the name of the function whose body it is; empty for a graph.
    """

    __slots__ = ("arguments", "function", "prefix", "results")

    def __init__(self, prefix: str, arguments: Mapping[str, Reference], function: str = "") -> None:
        self.prefix = prefix
        self.function = function
        self.arguments = arguments
        self.results: dict[str, Sequence[Reference]] = {}

    def tensor(self, name: str) -> str:
        """The tensor that `name` stands for, as `op` or `op:output` of the inlined graph."""
        frame = self
        for _ in range(_LONGEST_HANDOVER):
            node, _, output = name.partition(":")
            if node in frame.arguments:
                frame, name = frame.arguments[node]
                continue
            index = _output(output) if output else 0
            results = frame.results.get(node)
            if results is None or index >= len(results):
                return f"{frame.prefix}{node}:{index}" if index else frame.prefix + node
            frame, name = results[index]
        return ""


Binding = tuple[str, tuple[str | None, ...]]
"""A function's name, and the keys of the variables that it gets as arguments."""


class Inliner:
    """Replaces calls by the bodies of what they call, up to a total number of nodes."""

    def __init__(self, functions: Mapping[str, Any]) -> None:
        self._functions = functions
        self._costs: dict[str, int] = {}
        self._left = _LARGEST_INLINED

    def affords(self, *names: str) -> bool:
        """Whether these functions' bodies may still be added; if so, they count as added."""
        size = sum(map(self._cost, names))
        if size > self._left:
            return False
        self._left -= size
        return True

    def _cost(self, name: str) -> int:
        """What a call of a function counts for, in nodes."""
        if name not in self._costs:
            body, signature = self._functions[name].node_def, self._functions[name].signature
            names = len(signature.input_arg) + len(signature.output_arg)
            names += sum(len(node.input) for node in body)
            self._costs[name] = _COST_OF_CALL + len(body) + names // _NAMES_OF_A_NODE
        return self._costs[name]

    def inline(
        self,
        nodes: Iterable[Any],
        variables: Mapping[str, str] | None = None,
        seen: set[Binding] | None = None,
    ) -> dict[str, Op]:
        """The ops of a body and of all that it calls, by name, in stored order.

        Args:
            nodes: the body's `NodeDef` messages.
            variables: the body's argument -> key of the variable that it stands for.
            seen: takes up what was called with which variables.
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
            given = [(frame, name) for name in data_inputs(node)]
            if op.type in _CHOOSES_FIRST:
                given = given[1:]
            alone = len(callees) == 1 and op.type not in _LOOPS
            branches = []
            for number, callee in enumerate(callees):
                function = self._functions[callee]
                names = arguments(function)
                body = _Frame(
                    f"{op.name}/" if alone else f"{op.name}/branch_{number}/",
                    dict(zip(names, given, strict=False)),
                    callee,
                )
                passed = (variables.get(body.tensor(name)) for name in names)
                seen.add((callee, tuple(passed)))
                self._add(function.node_def, body, (*active, callee), ops, variables, seen)
                branches.append([(body, name) for name in _results(function)])
            if op.type in _LOOPS:
                branches.append(given)
            if alone:
                frame.results[node.name] = branches[0]
                continue
            outputs = []
            for number, choices in enumerate(zip(*branches, strict=False)):
                merged = f"{node.name}/output_{number}"
                ops.setdefault(frame.prefix + merged, _Merge(frame.prefix + merged, choices))
                outputs.append((frame, merged))
            frame.results[node.name] = outputs

    def _callees(self, node: Any, active: tuple[str, ...]) -> list[str]:
        """The functions that an op calls; none where they cannot be inlined."""
        kind = node.op
        if kind in _BRANCHES:
            names = _named_functions(node, _BRANCHES[kind])
        elif kind in self._functions:
            names = [kind]
        else:
            return []
        if len(active) >= _DEEPEST_CALL or any(
            name in active or name not in self._functions for name in names
        ):
            return []
        return names if self.affords(*names) else []


def data_inputs(node: Any) -> list[str]:
    """The tensors that a NodeDef takes; what it only waits for is left out."""
    return [name for name in node.input if not name.startswith("^")]


def _named_functions(node: Any, attributes: Sequence[str]) -> list[str]:
    """The functions that these attributes of a NodeDef name."""
    names: list[str] = []
    for attribute in attributes:
        if attribute in node.attr:
            value = node.attr[attribute]
            listed = value.list.func if value.HasField("list") else (value.func,)
            names.extend(function.name for function in listed)
    return names


def arguments(function: Any) -> list[str]:
    """The names of a FunctionDef's arguments."""
    return [argument.name for argument in function.signature.input_arg]


def _results(function: Any) -> list[str]:
    """The tensors of its body that a function returns, in order."""
    return [function.ret.get(argument.name, "") for argument in function.signature.output_arg]


def _output(reference: str) -> int:
    """The number of an output: `1` as top-level graphs say it, `batch_mean:0` as bodies do."""
    name, _, index = reference.rpartition(":")
    number = int(index) if index.isdecimal() and len(index) < 6 else 0
    return number + _OUTPUTS.get(name, 0)
