"""The graph of an ONNX model in the common form, with all bodies put in the place of their calls.

ONNX names tensors, not outputs of nodes: a body of `If`, `Loop` or `Scan` uses those of the graphs
around it, a function's body only its own inputs. Here each node has a name of its own, and a
tensor is called `node`, or `node:1` for a second output; an initializer is a `Const`.

Sources: docs/IR.md of ONNX; docs/Operators.md for what bodies take and give.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import prod

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import BnstatError, UnsupportedError
from bnstat.formats.contents import Op
from bnstat.formats.onnx.messages import Attribute, Function, Graph, Model, Node, Tensor, read_array
from bnstat.formats.protobuf.wire import WireError, damaged
from bnstat.storage.files import File

_BODIES: Mapping[str, tuple[str, ...]] = {
    "If": ("then_branch", "else_branch"),
    "Loop": ("body",),
    "Scan": ("body",),
}

_LARGEST_INLINED = 300_000
"""Nodes that calls may add in all: a few functions can call for billions."""

_NAMES_OF_A_NODE = 10
"""So many names of tensors count as a node."""

_DEEPEST = 50
"""Calls and bodies within each other."""


@dataclass
class _Leaf:
    """A tensor that the file holds (`Const`), or that it is given (`Placeholder`)."""

    name: str
    type: str
    inputs: Sequence[str] = ()

    def attribute(self, name: str) -> None:
        """It has none."""


@dataclass
class _Choice:
    """What a node gives that has several bodies: one of several tensors."""

    name: str
    inputs: Sequence[str]
    type: str = "Merge"

    def attribute(self, name: str) -> None:
        """It has none."""


@dataclass
class _Frame:
    """Where a node stands: what names and attributes mean there.

    Attributes:
        tensors: name -> tensor.
        outer: the frame around it, whose names it sees; None for a function and at the top.
        call: the node that calls the function whose body this is, and that node's frame.
    """

    tensors: dict[str, str]
    outer: _Frame | None = None
    call: tuple[Node, _Frame, Mapping[str, Attribute]] | None = None

    def tensor(self, name: str) -> str | None:
        """The tensor of that name."""
        frame: _Frame | None = self
        while frame is not None:
            if name in frame.tensors:
                return frame.tensors[name]
            frame = frame.outer
        return None

    def attribute(self, attribute: Attribute) -> Attribute | None:
        """The attribute that gives the value of one of a function's node."""
        frame: _Frame | None = self
        found: Attribute | None = attribute
        while found is not None and (reference := found.reference) is not None:
            while frame is not None and frame.call is None:
                frame = frame.outer
            if frame is None or frame.call is None:
                return None
            node, frame, defaults = frame.call
            found = node.attributes.get(reference) or defaults.get(reference)
        return found


@dataclass
class NodeOp:
    """A node where it stands."""

    name: str
    node: Node
    frame: _Frame
    inputs: Sequence[str]

    @property
    def type(self) -> str:
        domain = self.node.domain
        return f"{domain}.{self.node.type}" if domain else self.node.type

    def attribute(self, name: str) -> float | int | bool | str | None:
        """The value of a simple attribute.

        Raises:
            DamagedError: the node's attributes, which are read only now, are none.
        """
        try:
            found = self._found(name)
            return None if found is None else found.value
        except WireError as error:
            path = self.node.messages.window.file.path
            raise damaged(path, f"the node {self.name}", error) from error

    def numbers(self, name: str) -> list[float] | list[int]:
        """The list of numbers in an attribute; empty if the node does not have it.

        Raises:
            WireError: the attribute is damaged.
        """
        found = self._found(name)
        numbers = None if found is None else found.numbers
        return [] if numbers is None else numbers.tolist()

    def tensor(self, name: str) -> Tensor | None:
        """The tensor in an attribute. Raises as `numbers`."""
        found = self._found(name)
        return None if found is None else found.tensor

    def _found(self, name: str) -> Attribute | None:
        attribute = self.node.attributes.get(name)
        return None if attribute is None else self.frame.attribute(attribute)


@dataclass
class Inlined:
    """A model's nodes, and the tensors that its file holds.

    Attributes:
        ops: by name.
        constants: name of a `Const` -> its tensor, in the order of the file.
        labels: name of a `Const` -> the tensor's name in the file.
        keys: the same, with a number behind those that are called like an earlier one.
        computed: name of a `Const` that the file computes -> its numbers.
    """

    ops: dict[str, Op] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    computed: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)
    _uses: dict[str, int] = field(default_factory=dict)

    def compute(self, name: str, label: str, array: NDArray[np.generic]) -> None:
        """Let an op of that name be a constant that the file calls `label`."""
        key = self._free_key(label)
        self.ops[name] = _Leaf(name, "Const")
        self.labels[name], self.keys[name], self.computed[name] = label, key, array

    def _free_key(self, label: str) -> str:
        """A key that no constant has. All constants of the file have theirs by then."""
        if not self._taken:
            self._taken.update(self.keys.values())
        key = label
        while key in self._taken:
            self._uses[label] = self._uses.get(label, 1) + 1
            key = f"{label}#{self._uses[label]}"
        self._taken.add(key)
        return key


def inline(model: Model, path: str) -> Inlined:
    """The nodes of a model, with those of its functions and nested graphs.

    Args:
        model: the model.
        path: of its file, for errors.

    Raises:
        UnsupportedError: its bodies are nested too deep, or call for too many nodes.
        WireError: a part that is read only now is damaged.
    """
    inliner = _Inliner(model.functions, path)
    inliner.graph(model.graph, _Frame({}), 1, "")
    for listed in inliner.listed:
        inliner.result.compute(*listed)
    return inliner.result


class _Inliner:
    def __init__(self, functions: Iterable[Function], path: str) -> None:
        self._functions = {function.key: function for function in functions}
        self._path = path
        self._left = _LARGEST_INLINED
        self._consts: dict[int, str] = {}
        self._uses: dict[str, int] = {}
        self.result = Inlined()
        self.listed: list[tuple[str, str, NDArray[np.generic]]] = []

    def graph(self, graph: Graph, frame: _Frame, depth: int, prefix: str) -> Sequence[str]:
        """Take up a graph; gives the tensors that it gives."""
        if depth > _DEEPEST:
            raise UnsupportedError(self._path, "its graphs and functions are nested too deep")
        if depth > 1:
            self._count(len(graph.nodes) + graph.names // _NAMES_OF_A_NODE)
        # Until version 4 of the format an initializer is an input as well: its default.
        defaults = {tensor.name for tensor in graph.initializers}
        for name in graph.inputs:
            if name not in frame.tensors and name not in defaults:
                given = frame.tensors[name] = self._unique(name)
                self.result.ops[given] = _Leaf(given, "Placeholder")
        for tensor in graph.initializers:
            frame.tensors[tensor.name] = self._constant(tensor, tensor.name)
        for node in _in_order(graph.nodes):
            self._count(1)
            self._node(node, frame, depth, prefix)
        return [frame.tensor(name) or "" for name in graph.outputs]

    def _count(self, nodes: int) -> None:
        """Count nodes before they are added.

        Raises:
            UnsupportedError: there are too many.
        """
        self._left -= nodes
        if self._left < 0:
            raise UnsupportedError(self._path, "its functions call for too many nodes")

    def _node(self, node: Node, frame: _Frame, depth: int, prefix: str) -> None:
        function = self._functions.get((node.domain, node.type, node.overload))
        if function is not None:
            given = self._called(function, node, frame, depth, prefix)
        elif node.domain == "" and node.type in _BODIES:
            given = self._bodies(node, frame, depth, prefix)
        elif node.domain == "" and node.type == "Constant":
            given = self._held(node, frame)
        else:
            inputs = [frame.tensor(name) or "" for name in node.inputs]
            name = self._unique(prefix + (node.name or self._scope(inputs) or _first(node)))
            self.result.ops[name] = NodeOp(name, node, frame, inputs)
            given = [f"{name}:{index}" if index else name for index in range(len(node.outputs))]
        frame.tensors.update(zip(node.outputs, given, strict=False))
        frame.tensors.pop("", None)

    def _called(
        self, function: Function, node: Node, frame: _Frame, depth: int, prefix: str
    ) -> Sequence[str]:
        passed = zip(function.body.inputs, node.inputs, strict=False)
        tensors = {inner: frame.tensor(outer) or "" for inner, outer in passed}
        inner = _Frame(tensors, call=(node, frame, function.defaults))
        return self.graph(function.body, inner, depth + 1, f"{prefix}{node.name or _first(node)}/")

    def _bodies(self, node: Node, frame: _Frame, depth: int, prefix: str) -> Sequence[str]:
        given: list[list[str]] = []
        for name in _BODIES[node.type]:
            attribute = node.attributes.get(name)
            found = None if attribute is None else frame.attribute(attribute)
            body = None if found is None else found.graph(depth + 1)
            if body is None:
                continue
            passed = zip(reversed(body.inputs), reversed(node.inputs), strict=False)
            tensors = {inner: frame.tensor(outer) or "" for inner, outer in passed}
            inner = _Frame(tensors, outer=frame)
            results = self.graph(body, inner, depth + 1, prefix)
            given.append(list(results[1:] if node.type == "Loop" else results))
        named = self._unique(prefix + (node.name or _first(node)))
        merged = []
        for index in range(len(node.outputs)):
            choices = [results[index] for results in given if index < len(results)]
            name = self._unique(f"{named}/{index}")
            self.result.ops[name] = _Choice(name, [choice for choice in choices if choice])
            merged.append(name)
        return merged

    def _held(self, node: Node, frame: _Frame) -> Sequence[str]:
        """The tensor of a `Constant`, or the numbers in its stead; texts are left out."""
        for name, attribute in node.attributes.items():
            found = frame.attribute(attribute)
            tensor = found.tensor if found is not None and name == "value" else None
            if tensor is not None:
                return [self._constant(tensor, _first(node))]
            array = _numbers_of(found, name) if found is not None else None
            if array is not None:
                given = self._unique(_first(node))
                self.result.ops[given] = _Leaf(given, "Const")
                self.listed.append((given, _first(node), array))
                return [given]
        return [self._unique(node.name or _first(node))]

    def _constant(self, tensor: Tensor, label: str) -> str:
        # A body that is inlined twice has each of its tensors once.
        if tensor.begin not in self._consts:
            name = self._consts[tensor.begin] = self._unique(label)
            tensor.name = label
            self.result.ops[name] = _Leaf(name, "Const")
            self.result.constants[name] = tensor
            self.result.labels[name] = label
            numbered = "" if name == label.replace(":", "_") else name.rpartition("#")[2]
            self.result.keys[name] = f"{label}#{numbered}" if numbered else label
        return self._consts[tensor.begin]

    def _scope(self, inputs: Sequence[str]) -> str:
        """What the names of several tensors that a node takes from the file have in common."""
        labels = [self.result.labels[name] for name in inputs if name in self.result.labels]
        if len(labels) < 2:
            return ""
        shared = min(labels)
        while shared and not all(label.startswith(shared) for label in labels):
            shared = shared[:-1]
        return shared[: max(map(shared.rfind, "./_:"))] if shared else ""

    def _unique(self, label: str) -> str:
        """A name that no op has, without what separates a name from an output."""
        name = base = label.replace(":", "_")
        while not name or name in self.result.ops:
            self._uses[base] = self._uses.get(base, 1) + 1
            name = f"{base}#{self._uses[base]}"
        return name


def _in_order(nodes: Sequence[Node]) -> Sequence[Node]:
    """Return the nodes so that each follows those whose outputs it takes.

    ONNX demands this order of a file, but runtimes accept any. Nodes keep their order otherwise.
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
    # A circle of nodes leads nowhere: the nodes that need it stay behind the others.
    left = waiting.keys() - set(order)
    return [nodes[index] for index in (*order, *sorted(left))]


def _numbers_of(attribute: Attribute, name: str) -> NDArray[np.generic] | None:
    """The value of a `Constant` that is not a tensor: `value_float`, `value_ints`, ..."""
    if name in ("value_floats", "value_ints"):
        return attribute.numbers
    number = attribute.value
    if name in ("value_float", "value_int") and isinstance(number, float | int):
        return np.array(number, np.float32 if name == "value_float" else np.int64)
    return None


def constant(inlined: Inlined, file: File, name: str, most: int) -> NDArray[np.generic] | None:
    """The numbers of a `Const`; None if it has more than `most`, or they cannot be read."""
    if name in inlined.computed:
        return inlined.computed[name]
    tensor = inlined.constants.get(name)
    if tensor is None or tensor.shape is None or prod(tensor.shape) > most:
        return None
    try:
        return read_array(file, tensor)
    except BnstatError:
        return None


def _first(node: Node) -> str:
    """A name for a node that has none, by its output; exporters often only number those."""
    name = next((name for name in node.outputs if name), node.type)
    return f"{node.type}_{name}" if name.isdecimal() and node.type != "Constant" else name
