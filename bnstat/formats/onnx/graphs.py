"""The graph of an ONNX model as ops, and its tensors, whose values are read on demand.

Each call is replaced by the body of the called function. A body of `If`, `Loop` or `Scan` can use
the tensors of the graphs around it; a function's body can use only the function's inputs. bnstat
gives each node a unique name, which is also the name of the node's first output; the second output
is `node:1`. An initializer becomes an op of type `Const`.

A tensor stores its numbers as raw bytes, as a list of values, or in a file beside the model. An
attribute stores a number, a string, a list of numbers, a tensor, or a graph.

Sources: onnx/onnx.proto; docs/IR.md of ONNX; docs/Operators.md for the inputs and outputs of
bodies; docs/ExternalData.md (`location`, relative to the model's folder, `offset`, `length`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from math import prod
from typing import Any, Final

import numpy as np

from bnstat.errors import BnstatError, DamagedError, NotFoundError, UnsupportedError
from bnstat.formats.dtypes import (
    as_shape,
    by_code,
    bytes_needed,
    extents,
    find_dtype,
    from_little_endian,
    numpy_dtype,
)
from bnstat.formats.protobuf.protos import find_fields, parse, scalar, skeleton
from bnstat.model import Array, Variable
from bnstat.storage.files import File, Range

TENSOR: Final = (5, "OnnxTensor")
_GRAPH: Final = (6, "OnnxGraph")
"""The field number and the message type of a tensor or graph that an attribute stores."""
DTYPES: Final = by_code(
    """
    - float32 uint8 int8 uint16 int16 int32 int64 string bool float16 float64 uint32 uint64
    complex64 complex128 bfloat16 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz - - -
    float8_e8m0fnu
    """
)
"""Value of ONNX's `DataType` -> name, for types whose elements take whole bytes."""
_LONGEST_LIST: Final = 1 << 17
_RAW: Final = 9
_EXTERNAL: Final = 1
_LISTS: Final[Mapping[str, type[np.generic]]] = {
    "float_data": np.float32,
    "int32_data": np.int32,
    "int64_data": np.int64,
    "double_data": np.float64,
    "uint64_data": np.uint64,
}
"""Field of a TensorProto that lists values -> dtype of the listed values."""
_DECIMAL_DIGITS: Final = 18
_BODIES: Final = {"If": ("then_branch", "else_branch"), "Loop": ("body",), "Scan": ("body",)}
_NUMBERS: Final = ("value_float", "value_floats", "value_int", "value_ints")
_MAX_INLINED: Final = 300_000
"""The maximum number of nodes and stored tensors; a few nested functions can expand to billions."""
_NAMES_PER_NODE: Final = 10
"""This many names of tensors and attributes count as one node of `_MAX_INLINED`."""
_MAX_DEPTH: Final = 50


@dataclass
class _Scope:
    """The tensors and attributes that the nodes of a graph or a function can refer to.

    `tensors` maps names in the file to names in the inlined graph. `outer` is the scope around a
    body of `If`, `Loop` or `Scan`. Inside a function, `call` is (calling node, the node's scope,
    default attributes). The names of ops start with `prefix`. `depth` is 1 in the model's graph.
    """

    tensors: dict[str, str]
    outer: _Scope | None = None
    call: tuple[Any, _Scope, Sequence[Any]] | None = None
    prefix: str = ""
    depth: int = 1

    def tensor(self, name: str) -> str:
        """Return a tensor's name in the inlined graph; empty if no tensor has the name `name`."""
        if name in self.tensors or self.outer is None:
            return self.tensors.get(name, "")
        return self.outer.tensor(name)

    def attribute(self, node: Any, name: str) -> Any | None:
        """Return an attribute, or None; resolve references to attributes of the calling node."""
        scope, attribute = self, _named(node.attribute, name)
        while attribute is not None and attribute.ref_attr_name:
            if scope.call is None:
                return None
            call, scope, defaults = scope.call
            reference = attribute.ref_attr_name
            attribute = _named(call.attribute, reference) or _named(defaults, reference)
        return attribute


def _named(attributes: Sequence[Any], name: str) -> Any | None:
    return next((each for each in reversed(attributes) if each.name == name), None)


@dataclass
class NodeOp:
    """An op of the inlined graph.

    `node` is the NodeProto in the file. `node` is None for a stored tensor (`Const`), an input
    (`Placeholder`), and an output of an `If`, `Loop` or `Scan` (`Merge`).
    """

    name: str
    type: str
    inputs: Sequence[str] = ()
    node: Any = None
    scope: _Scope | None = None

    def attribute(self, name: str) -> float | int | bool | str | None:
        attribute = self.find(name)
        return None if attribute is None else scalar(attribute, "f", "i", "s")

    def find(self, name: str) -> Any | None:
        return None if self.scope is None else self.scope.attribute(self.node, name)


class Inlined:
    """The nodes of a model, of its functions and of its nested graphs, as one graph.

    `ops` maps names to ops. `constants` maps the names of constant ops to (key, tensor).
    `arrays` maps the names of computed ops to (name in the file, values).
    """

    def __init__(self, model: Any, file: File) -> None:
        self.file = file
        self.ops: dict[str, NodeOp] = {}
        self.constants: dict[str, tuple[str, Any]] = {}
        self.arrays: dict[str, tuple[str, Array]] = {}
        self._functions = {
            (_domain(each), each.name, each.overload): each for each in model.functions
        }
        self._left = _MAX_INLINED
        self._messages: dict[tuple[int, tuple[int, str]], Any | None] = {}
        self._names: dict[int, str] = {}
        self._uses: dict[str, int] = {}
        self._graph(model.graph, _Scope({}))

    def compute(self, name: str, label: str, array: Array) -> None:
        """Replace the op `name` by a constant; `label` is the constant's name in the file."""
        self.ops[name] = NodeOp(name, "Const")
        self.arrays[name] = label, array

    def constant(self, name: str, largest: int) -> Array | None:
        """Return the values of a `Const` of up to `largest` elements; None if unreadable."""
        if name in self.arrays:
            return self.arrays[name][1]
        _, tensor = self.constants.get(name, ("", None))
        shape = None if tensor is None else _shape_of(tensor)
        if shape is None or prod(shape) > largest:
            return None
        try:
            return read_array(self.file, tensor)
        except BnstatError:
            return None

    def variables(self) -> tuple[dict[str, Variable], dict[str, str]]:
        """Return two dicts: key -> variable, and name of a constant op -> key of its variable."""
        variables, keys = {}, {}
        for name, (key, tensor) in self.constants.items():
            if (shape := _shape_of(tensor)) is not None:
                read = partial(read_array, self.file, tensor)
                find = partial(_find_array, self.file, tensor)
                # Converters keep the `:0` of TensorFlow's names.
                plain_name = key.removesuffix(":0")
                variables[key] = Variable(key, plain_name, _dtype_of(tensor), shape, read, find)
                keys[name] = key
        used, uses = {key for key, _ in self.constants.values()}, dict[str, int]()
        for name, (label, array) in self.arrays.items():
            key = _unused(label, used, uses)
            used.add(key)
            if array.ndim:
                plain_name, dtype = key.removesuffix(":0"), array.dtype.name
                variables[key] = Variable(key, plain_name, dtype, array.shape, array.copy)
                keys[name] = key
        return variables, keys

    def _graph(self, graph: Any, scope: _Scope) -> Sequence[str]:
        """Add the nodes of a graph; return the names of the graph's outputs after inlining."""
        self._count(len(graph.initializer), len(graph.input) + len(graph.output))
        # Until version 4 of the format an initializer is an input as well: its default.
        defaults = {tensor.name for tensor in graph.initializer}
        self._placeholders([each.name for each in graph.input if each.name not in defaults], scope)
        for tensor in graph.initializer:
            scope.tensors[tensor.name] = self._constant(tensor, tensor.name)
        self._nodes(graph.node, scope)
        return [scope.tensor(each.name) for each in graph.output]

    def _count(self, nodes: int, names: int) -> None:
        """Count nodes and names; raise `UnsupportedError` for more than `_MAX_INLINED` in total."""
        self._left -= nodes + names // _NAMES_PER_NODE
        if self._left < 0:
            problem = "has too many nodes after its functions are inlined"
            raise UnsupportedError(self.file.path, problem)

    def _placeholders(self, inputs: Iterable[str], scope: _Scope) -> None:
        for name in inputs:
            if name not in scope.tensors:
                given = scope.tensors[name] = self._unique(name)
                self.ops[given] = NodeOp(given, "Placeholder")

    def _nodes(self, nodes: Sequence[Any], scope: _Scope) -> None:
        if scope.depth > _MAX_DEPTH:
            raise UnsupportedError(self.file.path, "its graphs and functions are nested too deeply")
        names = (len(node.input) + len(node.output) + len(node.attribute) for node in nodes)
        self._count(len(nodes), sum(names))
        for node in _in_order(list(nodes)):
            scope.tensors.update(zip(node.output, self._node(node, scope), strict=False))
            scope.tensors.pop("", None)

    def _node(self, node: Any, scope: _Scope) -> Sequence[str]:
        """Add a node, or the function that it calls; return the outputs' names after inlining."""
        domain = _domain(node)
        function = self._functions.get((domain, node.op_type, node.overload))
        inputs = [scope.tensor(name) for name in node.input]
        if function is not None:
            prefix = f"{scope.prefix}{node.name or _default_name(node)}/"
            call = (node, scope, function.attribute_proto)
            tensors = dict(zip(function.input, inputs, strict=False))
            inner = _Scope(tensors, None, call, prefix, scope.depth + 1)
            self._placeholders(function.input, inner)
            self._nodes(function.node, inner)
            return [inner.tensor(name) for name in function.output]
        if domain == "" and node.op_type in _BODIES:
            return self._bodies(node, scope, inputs)
        if domain == "" and node.op_type == "Constant":
            return [self._constant_node(node, scope)]
        own_name = node.name or self._common(inputs) or _default_name(node)
        name = self._unique(scope.prefix + own_name)
        kind = f"{domain}.{node.op_type}" if domain else node.op_type
        self.ops[name] = NodeOp(name, kind, inputs, node, scope)
        return [f"{name}:{index}" if index else name for index in range(len(node.output))]

    def _bodies(self, node: Any, scope: _Scope, inputs: Sequence[str]) -> Sequence[str]:
        """Add the bodies of a node, and a `Merge` op per output; return the names of these ops."""
        results: list[Sequence[str]] = []
        for name in _BODIES[node.op_type]:
            body = self.message(scope.attribute(node, name), _GRAPH)
            if body is None:
                continue
            names = [each.name for each in body.input]
            tensors = dict(zip(reversed(names), reversed(inputs), strict=False))
            inner = _Scope(tensors, scope, scope.call, scope.prefix, scope.depth + 1)
            outputs = self._graph(body, inner)
            results.append(outputs[1:] if node.op_type == "Loop" else outputs)
        base = self._unique(scope.prefix + (node.name or _default_name(node)))
        merged = []
        for index in range(len(node.output)):
            choices = [outputs[index] for outputs in results if index < len(outputs)]
            name = self._unique(f"{base}/{index}")
            self.ops[name] = NodeOp(name, "Merge", [*filter(None, choices)])
            merged.append(name)
        return merged

    def _constant_node(self, node: Any, scope: _Scope) -> str:
        """Return the name of a `Constant` node's op; add a `Const` op if the values are numbers."""
        label = _default_name(node)
        tensor = self.message(scope.attribute(node, "value"), TENSOR)
        if tensor is not None:
            return self._constant(tensor, label)
        for name in _NUMBERS:
            array = numbers_in(self.file, scope.attribute(node, name))
            if array is not None:
                given = self._unique(label)
                self.compute(given, label, array)
                return given
        return self._unique(node.name or label)

    def message(self, attribute: Any | None, kind: tuple[int, str]) -> Any | None:
        """Return the tensor or graph that an attribute stores, or None. Results are cached."""
        if attribute is None:
            return None
        key = attribute.begin, kind
        if key not in self._messages:
            number, name = kind
            fields = find_fields(self.file, attribute, number)
            spans = [(each.start, each.end) for each in fields if each.kind == 2]
            message = skeleton(self.file, *spans[-1], name, "the model") if spans else None
            self._messages[key] = message
        return self._messages[key]

    def _constant(self, tensor: Any, label: str) -> str:
        # A body that is inlined twice has each of its tensors once.
        if tensor.begin not in self._names:
            name = self._names[tensor.begin] = self._unique(label)
            tensor.name = label
            self.ops[name] = NodeOp(name, "Const")
            number = "" if name == label.replace(":", "_") else name.rpartition("#")[2]
            self.constants[name] = f"{label}#{number}" if number else label, tensor
        return self._names[tensor.begin]

    def _common(self, inputs: Sequence[str]) -> str:
        """Return the common prefix of the names of constant inputs, such as `layer1.bn`, or ""."""
        labels = [self.constants[name][1].name for name in inputs if name in self.constants]
        shared = min(labels) if len(labels) > 1 else ""
        while not all(label.startswith(shared) for label in labels):
            shared = shared[:-1]
        return shared[: max(map(shared.rfind, "./_:"))] if shared else ""

    def _unique(self, label: str) -> str:
        return _unused(label.replace(":", "_"), self.ops, self._uses)


def _unused(base: str, used: Container[str], uses: dict[str, int]) -> str:
    """Return a name that is not in `used`: `base`, or `base` with a number appended, as in `bn#2`.

    `uses` stores the last number appended to each base, so that many equal names take linear time.
    """
    name = base
    while not name or name in used:
        uses[base] = uses.get(base, 1) + 1
        name = f"{base}#{uses[base]}"
    return name


def _in_order(nodes: Sequence[Any]) -> Sequence[Any]:
    """Return the nodes in topological order; files may store nodes in any order."""
    producers: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in filter(None, node.output):
            producers.setdefault(name, index)
    waiting: dict[int, int] = {}
    consumers: dict[int, list[int]] = {}
    for index, node in enumerate(nodes):
        needed = {producers[name] for name in node.input if name in producers} - {index}
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


def _domain(message: Any) -> str:
    return "" if message.domain == "ai.onnx" else str(message.domain)


def _default_name(node: Any) -> str:
    """Return the name of a node's first output; the name `12` of a `Conv` becomes `Conv_12`."""
    name = next((name for name in node.output if name), node.op_type)
    is_number = name.isdecimal() and node.op_type != "Constant"
    return f"{node.op_type}_{name}" if is_number else str(name)


def _dtype_of(tensor: Any) -> str:
    return DTYPES.get(tensor.data_type, f"type {tensor.data_type}")


def _shape_of(tensor: Any) -> tuple[int, ...] | None:
    return as_shape(list(tensor.dims))


def read_array(file: File, tensor: Any) -> Array:
    """Read the numbers of a tensor, in the stored shape and dtype."""
    where = f"{file.path}: {tensor.name}"
    dtype, shape = numpy_dtype(_dtype_of(tensor), where), _shape_of(tensor)
    if shape is None:
        raise DamagedError(where, "has an impossible shape")
    needed = bytes_needed(shape, dtype)
    place = _place(file, tensor, needed)
    if place is None:
        return _listed(file, tensor, prod(shape), dtype, where).reshape(shape)
    holder, start = place
    return from_little_endian(holder.read(start, needed), dtype, shape)


def _find_array(file: File, tensor: Any) -> Sequence[Range]:
    """Return the range of a tensor's raw bytes; without raw bytes, the range of the TensorProto."""
    dtype, shape = find_dtype(_dtype_of(tensor)), _shape_of(tensor)
    if dtype is None or shape is None:
        return ()
    needed = bytes_needed(shape, dtype)
    place = _place(file, tensor, needed)
    if place is None:
        return extents(file, tensor.begin, tensor.end - tensor.begin, None, shape)
    return extents(*place, needed, dtype, shape)


def _place(file: File, tensor: Any, needed: int) -> tuple[File, int] | None:
    """Return (file, offset) of a tensor's `needed` raw bytes; None if the tensor lists values."""
    where = f"{file.path}: {tensor.name}"
    if tensor.data_location == _EXTERNAL:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        start = _number(entries.get("offset", "0"), where)
        length = _number(entries.get("length", str(needed)), where)
        holder = file.part(location)
        if holder is None:
            problem = "the file with the model's tensors is missing"
            raise NotFoundError(f"{file.path}: {location}", problem, "copy the missing file, too")
    else:
        raw = [each for each in find_fields(file, tensor, _RAW) if each.kind == 2]
        if not raw:
            return None
        holder, start, length = file, raw[-1].start, raw[-1].end - raw[-1].start
    # Extents are fetched before a tensor is read, so a false length must not become one.
    if length != needed:
        raise DamagedError(where, f"has {length} bytes, but its shape needs {needed}")
    return holder, start


def _number(digits: str, where: str) -> int:
    if not digits.isascii() or not digits.isdecimal() or len(digits) > _DECIMAL_DIGITS:
        raise DamagedError(where, f"{digits[:40]!r} is not a valid offset or length")
    return int(digits)


def _listed(file: File, tensor: Any, count: int, dtype: np.dtype[np.generic], where: str) -> Array:
    """Return the values that a tensor lists, as a vector of `count` elements.

    A complex number is listed as two floats. An int32 holds the bits of a float of up to 16 bits.
    """
    is_complex = dtype.kind == "c"
    part = np.dtype(f"f{dtype.itemsize // 2}") if is_complex else dtype
    needed = 2 * count if is_complex else count
    data = file.read(tensor.begin, tensor.end - tensor.begin)
    lists = parse("OnnxTensorLists", data, where, "a list of values")
    values: Array = np.zeros(0, part)
    for name, kind in _LISTS.items():
        if listed := getattr(lists, name):
            values = np.array(listed, kind)
    if values.size != needed:
        raise DamagedError(where, f"has {values.size} values, but its shape needs {needed}")
    if values.dtype.kind == "f" and values.dtype != part:
        raise DamagedError(where, f"is a tensor of {dtype}, but lists its values as {values.dtype}")
    if values.dtype.kind == "f" or dtype.kind in "iub":
        return values.astype(part).view(dtype)
    return values.astype(f"u{dtype.itemsize}").view(dtype)


def numbers_in(file: File, attribute: Any | None) -> Array | None:
    """Return an attribute's numbers, as float32 or int64; None if there are none or too many."""
    if attribute is None:
        return None
    if (number := scalar(attribute, "f", "i")) is not None:
        return np.array(number, np.float32 if isinstance(number, float) else np.int64)
    length = attribute.end - attribute.begin
    if length > _LONGEST_LIST:
        return None
    lists = parse("OnnxAttributeLists", file.read(attribute.begin, length), file.path)
    if lists.floats:
        return np.array(lists.floats, np.float32)
    return np.array(lists.ints, np.int64) if lists.ints else None
