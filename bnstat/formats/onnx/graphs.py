"""The graph of an ONNX model in the common form, with the body of each call in place of the call.

ONNX names tensors, not outputs of nodes. A body of `If`, `Loop` or `Scan` uses the names of the
graphs around it; a function's body uses only its own inputs. Here each node has a unique name, and
a tensor is called `node`, or `node:1` for a second output; an initializer is a `Const`.

Sources: docs/IR.md of ONNX; docs/Operators.md for the inputs and outputs of bodies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import prod
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import BnstatError, UnsupportedError
from bnstat.formats.contents import Op
from bnstat.formats.onnx.messages import Attribute, Function, Graph, Model, Node, Tensor, read_array
from bnstat.formats.protobuf.wire import WireError, damaged
from bnstat.storage.files import File

_BODIES: Final[Mapping[str, tuple[str, ...]]] = {
    "If": ("then_branch", "else_branch"),
    "Loop": ("body",),
    "Scan": ("body",),
}

_MAX_INLINED: Final = 300_000
"""Nodes that inlining may add in total; a few nested functions can expand to billions."""

_NAMES_PER_NODE: Final = 10
"""This many names of tensors count as a node."""

_MAX_DEPTH: Final = 50
"""The maximum nesting of calls and bodies."""


@dataclass
class _PlainOp:
    """An op without attributes: a stored tensor (`Const`), an input of the model (`Placeholder`),
    or an output of a node with several bodies (`Merge`).
    """

    name: str
    type: str
    inputs: Sequence[str] = ()

    def attribute(self, name: str) -> None:
        """Return None."""


@dataclass
class _Scope:
    """The names and attributes that a node can refer to.

    Attributes:
        tensors: name in the scope -> name in the inlined graph.
        outer: the enclosing scope, whose names are visible; None for a function and at the top
            level.
        call: for a function's body: the calling node, the scope of this node, and the attributes'
            defaults.
    """

    tensors: dict[str, str]
    outer: _Scope | None = None
    call: tuple[Node, _Scope, Mapping[str, Attribute]] | None = None

    def tensor(self, name: str) -> str:
        """Return the tensor with this name, or an empty string."""
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.tensors:
                return scope.tensors[name]
            scope = scope.outer
        return ""

    def attribute(self, node: Node, name: str) -> Attribute | None:
        """Return a node's attribute; a reference to the calling node's attribute is resolved."""
        scope: _Scope | None = self
        attribute = node.attributes.get(name)
        while attribute is not None and attribute.reference:
            while scope is not None and scope.call is None:
                scope = scope.outer
            if scope is None or scope.call is None:
                return None
            call, scope, defaults = scope.call
            reference = attribute.reference
            attribute = call.attributes.get(reference) or defaults.get(reference)
        return attribute


@dataclass
class NodeOp:
    """A node with its scope."""

    name: str
    node: Node
    scope: _Scope
    inputs: Sequence[str]

    @property
    def type(self) -> str:
        domain = self.node.domain
        return f"{domain}.{self.node.type}" if domain else self.node.type

    def attribute(self, name: str) -> float | int | bool | str | None:
        """Return the value of a simple attribute.

        Raises:
            DamagedError: the node's attributes, which are parsed here, are invalid.
        """
        try:
            attribute = self.find(name)
            return None if attribute is None else attribute.value
        except WireError as error:
            path = self.node.reader.window.file.path
            raise damaged(path, f"the node {self.name}", error) from error

    def find(self, name: str) -> Attribute | None:
        """Return an attribute; reading its values raises `WireError` if they are damaged."""
        return self.scope.attribute(self.node, name)


class Constant(NamedTuple):
    """A tensor of the model.

    Attributes:
        label: the name in the file.
        key: the label; a number is appended to repeated labels.
        value: the stored tensor, or the numbers that the graph computes.
    """

    label: str
    key: str
    value: Tensor | NDArray[np.generic]


@dataclass
class Inlined:
    """An inlined model. `ops`: name -> op. `constants`: name of a `Const` op -> tensor."""

    ops: dict[str, Op] = field(default_factory=dict)
    constants: dict[str, Constant] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)
    _uses: dict[str, int] = field(default_factory=dict)

    def compute(self, name: str, label: str, array: NDArray[np.generic]) -> None:
        """Replace an op by a constant. Call this after all stored tensors have keys."""
        if not self._taken:
            self._taken.update(constant.key for constant in self.constants.values())
        key = label
        while key in self._taken:
            self._uses[label] = self._uses.get(label, 1) + 1
            key = f"{label}#{self._uses[label]}"
        self._taken.add(key)
        self.ops[name] = _PlainOp(name, "Const")
        self.constants[name] = Constant(label, key, array)


def inline(model: Model, path: str) -> Inlined:
    """Return the nodes of a model, its functions and its nested graphs.

    Args:
        model: the model.
        path: the model's file, for messages.

    Raises:
        UnsupportedError: bodies are nested too deeply, or inlining makes too many nodes.
        WireError: a message that is parsed here is damaged.
    """
    inliner = _Inliner(model.functions, path)
    inliner.graph(model.graph, _Scope({}), 1, "")
    for numbers in inliner.numbers:
        inliner.result.compute(*numbers)
    return inliner.result


class _Inliner:
    """Inlines graphs into `result`. `numbers`: constants without a stored tensor."""

    def __init__(self, functions: Iterable[Function], path: str) -> None:
        self._functions = {function.key: function for function in functions}
        self._path = path
        self._left = _MAX_INLINED
        self._consts: dict[int, str] = {}
        self._uses: dict[str, int] = {}
        self.result = Inlined()
        self.numbers: list[tuple[str, str, NDArray[np.generic]]] = []

    def graph(self, graph: Graph, scope: _Scope, depth: int, prefix: str) -> Sequence[str]:
        """Add a graph's nodes; return the tensors that are its outputs."""
        if depth > _MAX_DEPTH:
            raise UnsupportedError(self._path, "its graphs and functions are nested too deeply")
        if depth > 1:
            self._count(len(graph.nodes) + graph.names // _NAMES_PER_NODE)
        # Until version 4 of the format an initializer is an input as well: its default.
        defaults = {tensor.name for tensor in graph.initializers}
        for name in graph.inputs:
            if name not in scope.tensors and name not in defaults:
                given = scope.tensors[name] = self._unique(name)
                self.result.ops[given] = _PlainOp(given, "Placeholder")
        for tensor in graph.initializers:
            scope.tensors[tensor.name] = self._constant(tensor, tensor.name)
        for node in _in_order(graph.nodes):
            self._count(1)
            self._node(node, scope, depth, prefix)
        return [scope.tensor(name) for name in graph.outputs]

    def _count(self, nodes: int) -> None:
        """Count nodes before they are added; raise if there are too many."""
        self._left -= nodes
        if self._left < 0:
            raise UnsupportedError(self._path, "inlining its functions makes too many nodes")

    def _node(self, node: Node, scope: _Scope, depth: int, prefix: str) -> None:
        function = self._functions.get((node.domain, node.type, node.overload))
        if function is not None:
            outputs = self._called(function, node, scope, depth, prefix)
        elif node.domain == "" and node.type in _BODIES:
            outputs = self._bodies(node, scope, depth, prefix)
        elif node.domain == "" and node.type == "Constant":
            outputs = [self._constant_node(node, scope)]
        else:
            inputs = [scope.tensor(name) for name in node.inputs]
            name = self._unique(prefix + (node.name or self._common(inputs) or _default_name(node)))
            self.result.ops[name] = NodeOp(name, node, scope, inputs)
            outputs = [f"{name}:{index}" if index else name for index in range(len(node.outputs))]
        scope.tensors.update(zip(node.outputs, outputs, strict=False))
        scope.tensors.pop("", None)

    def _called(
        self, function: Function, node: Node, scope: _Scope, depth: int, prefix: str
    ) -> Sequence[str]:
        """Add the nodes of a called function; return the output tensors."""
        passed = zip(function.body.inputs, node.inputs, strict=False)
        tensors = {inner: scope.tensor(outer) for inner, outer in passed}
        inner = _Scope(tensors, call=(node, scope, function.defaults))
        prefix = f"{prefix}{node.name or _default_name(node)}/"
        return self.graph(function.body, inner, depth + 1, prefix)

    def _bodies(self, node: Node, scope: _Scope, depth: int, prefix: str) -> Sequence[str]:
        """Add the nodes of a node's subgraphs; return one `Merge` per output of the node."""
        results: list[Sequence[str]] = []
        for name in _BODIES[node.type]:
            attribute = scope.attribute(node, name)
            body = None if attribute is None else attribute.graph(depth + 1)
            if body is None:
                continue
            passed = zip(reversed(body.inputs), reversed(node.inputs), strict=False)
            tensors = {inner: scope.tensor(outer) for inner, outer in passed}
            outputs = self.graph(body, _Scope(tensors, outer=scope), depth + 1, prefix)
            results.append(outputs[1:] if node.type == "Loop" else outputs)
        base = self._unique(prefix + (node.name or _default_name(node)))
        merged = []
        for index in range(len(node.outputs)):
            choices = [outputs[index] for outputs in results if index < len(outputs)]
            name = self._unique(f"{base}/{index}")
            self.result.ops[name] = _PlainOp(name, "Merge", [*filter(None, choices)])
            merged.append(name)
        return merged

    def _constant_node(self, node: Node, scope: _Scope) -> str:
        """Add the tensor or the numbers of a `Constant` node; strings are skipped."""
        label = _default_name(node)
        for name in node.attributes:
            attribute = scope.attribute(node, name)
            tensor = attribute.tensor if attribute is not None and name == "value" else None
            if tensor is not None:
                return self._constant(tensor, label)
            array = _numbers_of(attribute, name) if attribute is not None else None
            if array is not None:
                given = self._unique(label)
                self.result.ops[given] = _PlainOp(given, "Const")
                self.numbers.append((given, label, array))
                return given
        return self._unique(node.name or label)

    def _constant(self, tensor: Tensor, label: str) -> str:
        # A body that is inlined twice has each of its tensors once.
        if tensor.begin not in self._consts:
            name = self._consts[tensor.begin] = self._unique(label)
            tensor.name = label
            self.result.ops[name] = _PlainOp(name, "Const")
            number = "" if name == label.replace(":", "_") else name.rpartition("#")[2]
            key = f"{label}#{number}" if number else label
            self.result.constants[name] = Constant(label, key, tensor)
        return self._consts[tensor.begin]

    def _common(self, inputs: Sequence[str]) -> str:
        """Return the common scope in the names of a node's stored tensors; may be empty."""
        constants = self.result.constants
        labels = [constants[name].label for name in inputs if name in constants]
        if len(labels) < 2:
            return ""
        shared = min(labels)
        while shared and not all(label.startswith(shared) for label in labels):
            shared = shared[:-1]
        return shared[: max(map(shared.rfind, "./_:"))] if shared else ""

    def _unique(self, label: str) -> str:
        """Return an unused op name made from `label`, without `:`."""
        name = base = label.replace(":", "_")
        while not name or name in self.result.ops:
            self._uses[base] = self._uses.get(base, 1) + 1
            name = f"{base}#{self._uses[base]}"
        return name


def _in_order(nodes: Sequence[Node]) -> Sequence[Node]:
    """Sort nodes topologically; otherwise keep the order.

    ONNX requires topological order, but runtimes accept any order.
    """
    producers: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in filter(None, node.outputs):
            producers.setdefault(name, index)
    waiting: dict[int, int] = {}
    consumers: dict[int, list[int]] = {}
    for index, node in enumerate(nodes):
        needed = {producers[name] for name in node.inputs if name in producers} - {index}
        waiting[index] = len(needed)
        for producer in needed:
            consumers.setdefault(producer, []).append(index)
    ready = [index for index, count in waiting.items() if not count]
    order: list[int] = []
    while ready:
        order.append(heappop(ready))
        for index in consumers.get(order[-1], ()):
            waiting[index] -= 1
            if not waiting[index]:
                heappush(ready, index)
    # Nodes in a cycle, and nodes that depend on one, come last.
    left = waiting.keys() - set(order)
    return [nodes[index] for index in (*order, *sorted(left))]


def _numbers_of(attribute: Attribute, name: str) -> NDArray[np.generic] | None:
    """Return the value of a `Constant` that is not a tensor: `value_float`, `value_ints`, ..."""
    if name in ("value_floats", "value_ints"):
        return attribute.numbers
    number = attribute.value
    if name in ("value_float", "value_int") and isinstance(number, float | int):
        return np.array(number, np.float32 if name == "value_float" else np.int64)
    return None


def constant(inlined: Inlined, file: File, name: str, largest: int) -> NDArray[np.generic] | None:
    """Return the numbers of a `Const`; None if more than `largest`, or not readable."""
    value = inlined.constants[name].value if name in inlined.constants else None
    if not isinstance(value, Tensor):
        return value
    if value.shape is None or prod(value.shape) > largest:
        return None
    try:
        return read_array(file, value)
    except BnstatError:
        return None


def _default_name(node: Node) -> str:
    """Return a default name for an unnamed node, made from its type and output."""
    name = next((name for name in node.outputs if name), node.type)
    return f"{node.type}_{name}" if name.isdecimal() and node.type != "Constant" else name
