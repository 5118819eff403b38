"""The messages of an ONNX file, as far as reading needs them; numbers of tensors are left there.

Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. An attribute of a node is
read when it is asked for; most never are.

The numbers of an ONNX TensorProto: raw, listed by value, or in a file beside the model.

Sources: onnx.proto; docs/ExternalData.md of ONNX (`location`, relative to the model's folder,
`offset`, `length`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import DamagedError, NotFoundError, UnsupportedError
from bnstat.formats.dtypes import (
    ONNX,
    bytes_needed,
    extents,
    find_dtype,
    from_little_endian,
    numpy_dtype,
)
from bnstat.formats.protobuf.wire import (
    Field,
    Window,
    WireError,
    damaged,
    scan,
    signed,
    text,
    varint,
)
from bnstat.storage.files import File, Range

MOST_NODES = 250_000
"""A model of more, or of as many tensors, is not read."""

_DEEPEST = 50
"""Graphs within nodes of graphs."""

_MOST_DIMS = 32

_FLOAT, _INT, _STRING, _TENSOR, _GRAPH, _FLOATS, _INTS, _REFERENCE = 2, 3, 4, 5, 6, 7, 8, 21
"""Fields of an AttributeProto."""

_LONGEST_LIST = 1 << 17
"""Bytes of a list of numbers in an attribute."""

_LISTS = (4, 5, 7, 10, 11)
"""The fields of a TensorProto that list values: as float, int32, int64, double, uint64."""


class Messages:
    """Reads messages from a file, and counts what it reads."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self._left = MOST_NODES

    def fields(self, outer: Field) -> Iterator[Field]:
        """The fields of a nested message."""
        if outer.kind != 2:
            raise WireError("a message is expected")
        return scan(self.window, outer.start, outer.end)

    def text(self, each: Field) -> str:
        """A string."""
        return text(self.bytes(each))

    def bytes(self, each: Field) -> bytes:
        """The bytes of a field's value."""
        return self.window.read(each.start, each.end)

    def number(self, each: Field) -> int:
        """A varint, as the int64 it stands for."""
        if each.kind != 0:
            raise WireError("a number is expected")
        return signed(varint(self.bytes(each), 0)[0])

    def numbers(self, each: Field) -> Sequence[int]:
        """Numbers of a repeated field: one, or packed."""
        if each.kind != 2:
            return (self.number(each),)
        data, position, found = self.bytes(each), 0, []
        while position < len(data):
            value, position = varint(data, position)
            found.append(signed(value))
        return found

    def count(self) -> None:
        """Count a node or tensor.

        Raises:
            UnsupportedError: there were too many.
        """
        self._left -= 1
        if self._left < 0:
            raise UnsupportedError(self.window.file.path, "an ONNX model of this size is not read")


@dataclass
class Tensor:
    """A TensorProto.

    Attributes:
        name: its name; empty in an attribute.
        type: the code of its element type.
        dims: its shape as the file has it.
        raw: where its bytes lie, if they do in one piece.
        lists: where its values lie, if they are listed.
        external: what is said of where they lie beside the file; empty if they do not.
        begin: where the message begins, which no other tensor's does.
    """

    name: str = ""
    type: int = 0
    dims: list[int] = field(default_factory=list)
    raw: Field | None = None
    lists: list[Field] = field(default_factory=list)
    external: dict[str, str] = field(default_factory=dict)
    begin: int = -1

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape; None where it is impossible."""
        fits = len(self.dims) <= _MOST_DIMS and min(self.dims, default=0) >= 0
        return tuple(self.dims) if fits else None


class Attribute:
    """An AttributeProto."""

    def __init__(self, messages: Messages, each: Field) -> None:
        self._messages = messages
        self._all = list(messages.fields(each))
        self._fields = {inner.number: inner for inner in self._all}
        self._graph: Graph | None = None

    @property
    def name(self) -> str:
        return self._messages.text(self._fields[1]) if 1 in self._fields else ""

    @property
    def reference(self) -> str | None:
        """In a function: the name of the attribute of the call that gives the value."""
        each = self._fields.get(_REFERENCE)
        return None if each is None else self._messages.text(each) or None

    @property
    def value(self) -> float | int | str | None:
        """A single number or text; floats in the fewest digits that float32 needs."""
        read = self._messages
        if (each := self._fields.get(_FLOAT)) is not None and each.kind == 5:
            return float(str(np.float32(struct.unpack("<f", read.bytes(each))[0])))
        if (each := self._fields.get(_INT)) is not None:
            return read.number(each)
        if (each := self._fields.get(_STRING)) is not None:
            return read.bytes(each).decode("utf-8", "replace")
        return None

    @cached_property
    def numbers(self) -> NDArray[np.generic] | None:
        """The list of numbers that it holds, as float32 or int64; None if it is very long."""
        read = self._messages
        listed = [each for each in self._all if each.number in (_FLOATS, _INTS)]
        if sum(each.end - each.start for each in listed) > _LONGEST_LIST:
            return None
        floats = [read.bytes(each) for each in self._all if each.number == _FLOATS]
        if floats:
            data = b"".join(floats)
            if len(data) % 4:
                raise WireError("a list of floats is cut short")
            return np.frombuffer(data, "<f4").astype(np.float32)
        ints = [read.numbers(each) for each in self._all if each.number == _INTS]
        return np.array([number for each in ints for number in each], np.int64) if ints else None

    @cached_property
    def tensor(self) -> Tensor | None:
        """The tensor that it holds."""
        each = self._fields.get(_TENSOR)
        return None if each is None else read_tensor(self._messages, each)

    def graph(self, depth: int) -> Graph | None:
        """The graph that it holds, which is `depth` graphs deep."""
        each = self._fields.get(_GRAPH)
        if each is not None and self._graph is None:
            self._graph = read_graph(self._messages, each, depth)
        return self._graph


@dataclass
class Node:
    """A NodeProto; the domain of ONNX's own operators is empty."""

    messages: Messages
    name: str = ""
    type: str = ""
    domain: str = ""
    overload: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attribute_fields: list[Field] = field(default_factory=list)

    @cached_property
    def attributes(self) -> Mapping[str, Attribute]:
        """By name."""
        found = [Attribute(self.messages, each) for each in self.attribute_fields]
        return {attribute.name: attribute for attribute in found}


@dataclass
class Graph:
    """A GraphProto, or the body of a FunctionProto."""

    nodes: list[Node] = field(default_factory=list)
    initializers: list[Tensor] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    @cached_property
    def names(self) -> int:
        """How many names of tensors it has, each as often as it stands there."""
        own = len(self.initializers) + len(self.inputs) + len(self.outputs)
        return own + sum(len(node.inputs) + len(node.outputs) for node in self.nodes)


@dataclass
class Function:
    """A FunctionProto: its name with domain and overload, its body, its attributes' defaults."""

    key: tuple[str, str, str]
    body: Graph
    defaults: Mapping[str, Attribute]


@dataclass
class Model:
    """A ModelProto.

    Attributes:
        producer: name and version of the program that wrote it; may be empty.
        opset: the version of ONNX's own operators that it is written in.
    """

    graph: Graph
    functions: Sequence[Function]
    producer: str
    opset: int | None


def read_model(window: Window) -> Model:
    """The model in a file.

    Raises:
        WireError: the file holds no such message.
        UnsupportedError: it is too large or too deep.
    """
    read = Messages(window)
    model = Model(Graph(), [], "", None)
    functions, producer = [], ["", ""]
    for each in scan(window, 0, window.file.size):
        if each.number in (2, 3):
            producer[each.number - 2] = read.text(each)
        elif each.number == 7:
            model.graph = read_graph(read, each, 1)
        elif each.number == 8:
            model.opset = _own_opset(read, each) or model.opset
        elif each.number == 25:
            functions.append(_read_function(read, each))
    model.functions = functions
    model.producer = " ".join(part for part in producer if part)
    return model


def read_graph(read: Messages, outer: Field, depth: int) -> Graph:
    """A GraphProto."""
    if depth > _DEEPEST:
        raise UnsupportedError(read.window.file.path, "its graphs are nested too deep")
    graph = Graph()
    for each in read.fields(outer):
        if each.number == 1:
            graph.nodes.append(_read_node(read, each))
        elif each.number == 5:
            graph.initializers.append(read_tensor(read, each))
        elif each.number in (11, 12):
            names = (read.text(inner) for inner in read.fields(each) if inner.number == 1)
            (graph.inputs if each.number == 11 else graph.outputs).append(next(names, ""))
    return graph


def read_tensor(read: Messages, outer: Field) -> Tensor:
    """A TensorProto."""
    read.count()
    tensor, is_external = Tensor(begin=outer.begin), False
    for each in read.fields(outer):
        if each.number == 1:
            tensor.dims.extend(read.numbers(each))
        elif each.number == 2:
            tensor.type = read.number(each)
        elif each.number in _LISTS:
            tensor.lists.append(each)
        elif each.number == 8:
            tensor.name = read.text(each)
        elif each.number == 9:
            tensor.raw = each
        elif each.number == 13:
            entry = {inner.number: read.text(inner) for inner in read.fields(each)}
            tensor.external[entry.get(1, "")] = entry.get(2, "")
        elif each.number == 14:
            is_external = read.number(each) == 1
    if not is_external:
        tensor.external = {}
    elif not tensor.external:
        raise WireError("a tensor beside the file, and nothing says where")
    return tensor


def _read_node(read: Messages, outer: Field) -> Node:
    read.count()
    node = Node(read)
    for each in read.fields(outer):
        if each.number == 1:
            node.inputs.append(read.text(each))
        elif each.number == 2:
            node.outputs.append(read.text(each))
        elif each.number == 3:
            node.name = read.text(each)
        elif each.number == 4:
            node.type = read.text(each)
        elif each.number == 5:
            node.attribute_fields.append(each)
        elif each.number == 7:
            node.domain = _domain(read.text(each))
        elif each.number == 8:
            node.overload = read.text(each)
    return node


def _read_function(read: Messages, outer: Field) -> Function:
    name = domain = overload = ""
    body, defaults = Graph(), []
    for each in read.fields(outer):
        if each.number == 1:
            name = read.text(each)
        elif each.number in (4, 5):
            (body.inputs if each.number == 4 else body.outputs).append(read.text(each))
        elif each.number == 7:
            body.nodes.append(_read_node(read, each))
        elif each.number == 10:
            domain = _domain(read.text(each))
        elif each.number == 11:
            defaults.append(Attribute(read, each))
        elif each.number == 13:
            overload = read.text(each)
    return Function((domain, name, overload), body, {each.name: each for each in defaults})


def _own_opset(read: Messages, outer: Field) -> int | None:
    """The version that an OperatorSetIdProto gives, if it is that of ONNX's own operators."""
    found = {each.number: each for each in read.fields(outer)}
    domain = _domain(read.text(found[1])) if 1 in found else ""
    return read.number(found[2]) if not domain and 2 in found else None


def _domain(name: str) -> str:
    """A domain of operators; empty for ONNX's own, which has two names."""
    return "" if name == "ai.onnx" else name


_LISTED: dict[int, np.dtype[np.generic]] = {4: np.dtype("<f4"), 10: np.dtype("<f8")}
"""Fields that list values of fixed length; the others list varints."""

_DECIMAL_DIGITS = 18


def type_name(tensor: Tensor) -> str:
    """NumPy's or ml_dtypes' name of a tensor's elements; `type 99` for what has none."""
    return ONNX.get(tensor.type, f"type {tensor.type}")


def read_array(file: File, tensor: Tensor) -> NDArray[np.generic]:
    """The numbers of a tensor, in its own shape and dtype.

    Args:
        file: the model's file.
        tensor: a tensor of it.

    Raises:
        DamagedError: the tensor has other bytes than its shape says, or they are said to lie
            where they cannot.
        NotFoundError: the file that they lie in is missing.
        UnsupportedError: its elements are no numbers, or take less than a byte.
    """
    where = f"{file.path}: {tensor.name}"
    dtype = numpy_dtype(type_name(tensor), where)
    shape = tensor.shape
    if shape is None:
        raise DamagedError(where, "is of no possible shape")
    needed = bytes_needed(shape, dtype)
    if tensor.external:
        beside, offset = _outside(file, tensor, needed, where)
        data = beside.read(offset, needed)
    elif tensor.raw is not None or not tensor.lists:
        start, end = (tensor.raw.start, tensor.raw.end) if tensor.raw else (0, 0)
        if end - start != needed:
            raise DamagedError(where, f"{end - start} bytes where its shape needs {needed}")
        data = file.read(start, needed)
    else:
        return _listed(file, tensor.lists, prod(shape), dtype, where).reshape(shape)
    return from_little_endian(data, dtype, shape)


def find_array(file: File, tensor: Tensor) -> Sequence[Range]:
    """Where the numbers of a tensor lie; see `Variable.extents`. Raises as `read_array` does."""
    dtype, shape = find_dtype(type_name(tensor)), tensor.shape
    if dtype is None or shape is None:
        return ()
    if tensor.external:
        needed = bytes_needed(shape, dtype)
        beside, offset = _outside(file, tensor, needed, f"{file.path}: {tensor.name}")
        return extents(beside, offset, needed, dtype, shape)
    if tensor.raw is not None:
        return extents(file, tensor.raw.start, tensor.raw.end - tensor.raw.start, dtype, shape)
    lists = (extents(file, each.start, each.end - each.start, None, ()) for each in tensor.lists)
    return [place for places in lists for place in places]


def _outside(file: File, tensor: Tensor, needed: int, where: str) -> tuple[File, int]:
    """Return the file in or below the model's folder that holds a tensor, and the offset there.

    Raises:
        DamagedError: the tensor's place is outside of the folder, or is contradictory.
        NotFoundError: there is no such file.
        BnstatError: the file is a link that leads out of the folder.
    """
    location = tensor.external.get("location", "")
    offset = _number(tensor.external.get("offset", "0"), where)
    length = _number(tensor.external.get("length", str(needed)), where)
    if length != needed:
        raise DamagedError(where, f"{length} bytes where its shape needs {needed}")
    beside = file.part(location)
    if beside is None:
        raise NotFoundError(
            f"{file.path}: {location}", "the file with its tensors is missing", "copy it as well"
        )
    return beside, offset


def _number(digits: str, where: str) -> int:
    if not digits.isascii() or not digits.isdecimal() or len(digits) > _DECIMAL_DIGITS:
        raise DamagedError(where, f"{digits[:40]!r} is no offset or length")
    return int(digits)


def _listed(
    file: File, lists: Sequence[Field], count: int, dtype: np.dtype[np.generic], where: str
) -> NDArray[np.generic]:
    """Values of a repeated field, which may come in several pieces.

    Complex numbers are listed as two each, what is smaller than an int32 as one, and the
    floats among that by their bits.
    """
    arrays = []
    try:
        for each in lists:
            data = file.read(each.start, each.end - each.start)
            fixed = _LISTED.get(each.number)
            arrays.append(_varints(data) if fixed is None else np.frombuffer(data, fixed))
    except (WireError, ValueError) as error:
        raise damaged(where, "a list of values", WireError(error)) from error
    values = np.concatenate(arrays)
    is_complex = dtype.kind == "c"
    part = np.dtype(f"f{dtype.itemsize // 2}") if is_complex else dtype
    needed = 2 * count if is_complex else count
    if values.size != needed:
        raise DamagedError(where, f"{values.size} values where its shape needs {needed}")
    if values.dtype.kind == "f" and values.dtype.newbyteorder("=") != part:
        raise DamagedError(where, f"numbers of {dtype} are listed as numbers of another type")
    if values.dtype.kind == "f" or dtype.kind in "iub":
        return values.astype(part).view(dtype)
    return values.astype(f"u{dtype.itemsize}").view(dtype)


def _varints(data: bytes) -> NDArray[np.int64]:
    position, found = 0, []
    while position < len(data):
        value, position = varint(data, position)
        found.append(signed(value))
    return np.array(found, np.int64)
