"""The messages of an ONNX file. The values of tensors are read on demand.

Protobuf parses nodes, tensors and names without their long fields. Graphs are parsed here, because
the positions of tensors in the file must be known.

A tensor stores its numbers as raw bytes, as a list of values, or in a file beside the model.

Sources: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto; docs/ExternalData.md of ONNX
(`location`, relative to the model's folder, `offset`, `length`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

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
from bnstat.formats.protobuf.protos import parse, without_long_fields
from bnstat.formats.protobuf.wire import Field, Window, WireError, damaged, scan, signed, varint
from bnstat.storage.files import File, Range

_MAX_NODES = 250_000
"""Nodes and tensors of a model."""

_MAX_DEPTH = 50
"""Graphs within nodes of graphs."""

_MAX_DIMS = 32

_LONGEST_LIST = 1 << 17
"""Bytes of a list of numbers in an attribute."""

_TENSOR, _GRAPH, _FLOATS, _INTS = 5, 6, 7, 8
"""Fields of an AttributeProto."""

_RAW = 9
_LISTS = {4: np.dtype("<f4"), 5: None, 7: None, 10: np.dtype("<f8"), 11: None}
"""The fields of a TensorProto that list values: floats and doubles, else varints."""

_DECIMAL_DIGITS = 18


class Reader:
    """Reads messages from a file, and counts nodes and tensors.

    Attributes:
        window: the file.
    """

    def __init__(self, window: Window) -> None:
        self.window = window
        self._left = _MAX_NODES

    def message(self, message: Field, name: str) -> Any:
        """Parse a message without its long fields."""
        if message.kind != 2:
            raise WireError("a message is expected")
        data = without_long_fields(self.window, message, name)
        return parse(name, data, self.window.file.path, "the model")

    def fields(self, message: Field, *numbers: int) -> Iterator[Field]:
        """Yield the fields of a message with these numbers."""
        fields = scan(self.window, message.start, message.end)
        return (each for each in fields if each.number in numbers)

    def last(self, message: Field, number: int) -> Field | None:
        """Return a message's last field with this number and wire type 2; None if there is none."""
        fields = [each for each in self.fields(message, number) if each.kind == 2]
        return fields[-1] if fields else None

    def count(self) -> None:
        """Count a node or tensor; raise if there are too many."""
        self._left -= 1
        if self._left < 0:
            raise UnsupportedError(self.window.file.path, "an ONNX model of this size is not read")


class Tensor:
    """A TensorProto.

    Attributes:
        name: the name; empty in an attribute.
        dtype: NumPy's or ml_dtypes' name of the elements; `type 99` for an unknown type.
        shape: the shape, or None if it is invalid.
        external: the location, offset and length of values in another file; empty if the values are
            in this file.
        begin: the start of the message, which identifies the tensor.
    """

    def __init__(self, reader: Reader, position: Field) -> None:
        reader.count()
        message = reader.message(position, "OnnxTensor")
        self._reader = reader
        self._position = position
        self.begin = position.begin
        self.name = message.name
        self.dtype = ONNX.get(message.data_type, f"type {message.data_type}")
        dims = tuple(message.dims)
        is_possible = len(dims) <= _MAX_DIMS and min(dims, default=0) >= 0
        self.shape = dims if is_possible else None
        self.external: Mapping[str, str] = {}
        if message.data_location == 1:
            self.external = {entry.key: entry.value for entry in message.external_data}
            if not self.external:
                raise WireError("a tensor beside the file lacks its location")

    @property
    def raw(self) -> Field | None:
        """The position of the raw bytes."""
        return self._reader.last(self._position, _RAW)

    @property
    def lists(self) -> list[Field]:
        """The positions of listed values, which may be split over several fields."""
        return [*self._reader.fields(self._position, *_LISTS)]


class Attribute:
    """An AttributeProto.

    Attributes:
        reference: in a function, the calling node's attribute that has the value; else empty.
    """

    def __init__(self, reader: Reader, message: Any, position: Field) -> None:
        self._reader = reader
        self._message = message
        self._position = position
        self._graph: Graph | None = None
        self.reference: str = message.ref_attr_name

    @property
    def value(self) -> float | int | str | None:
        """A single number or string; floats in the fewest digits that float32 needs."""
        if self._message.HasField("f"):
            return float(str(np.float32(self._message.f)))
        if self._message.HasField("i"):
            return int(self._message.i)
        if self._message.HasField("s"):
            return str(self._message.s.decode("utf-8", "replace"))
        return None

    @cached_property
    def numbers(self) -> NDArray[np.generic] | None:
        """The list of numbers, as float32 or int64; None if missing or very long."""
        window = self._reader.window
        fields = [*self._reader.fields(self._position, _FLOATS, _INTS)]
        if sum(each.end - each.start for each in fields) > _LONGEST_LIST or not fields:
            return None
        if any(each.number == _FLOATS for each in fields):
            pieces = [
                window.read(each.start, each.end) for each in fields if each.number == _FLOATS
            ]
            if len(data := b"".join(pieces)) % 4:
                raise WireError("a list of floats is cut short")
            return np.frombuffer(data, "<f4").astype(np.float32)
        return np.concatenate([_varints(window.read(each.start, each.end)) for each in fields])

    @cached_property
    def tensor(self) -> Tensor | None:
        """The tensor in the attribute."""
        position = self._reader.last(self._position, _TENSOR)
        return None if position is None else Tensor(self._reader, position)

    def graph(self, depth: int) -> Graph | None:
        """Return the graph in the attribute; `depth` is its nesting level."""
        position = self._reader.last(self._position, _GRAPH)
        if self._graph is None and position is not None:
            self._graph = _read_graph(self._reader, position, depth)
        return self._graph


class Node:
    """A NodeProto. `domain` is empty for ONNX's own operators."""

    def __init__(self, reader: Reader, position: Field) -> None:
        reader.count()
        message = reader.message(position, "OnnxNode")
        self.reader = reader
        self._message = message
        self._position = position
        self.name: str = message.name
        self.type: str = message.op_type
        self.domain = _domain(message.domain)
        self.overload: str = message.overload
        self.inputs: Sequence[str] = [*message.input]
        self.outputs: Sequence[str] = [*message.output]

    @cached_property
    def attributes(self) -> Mapping[str, Attribute]:
        """Attributes by name."""
        return _attributes(self.reader, self._message.attribute, self._position, 5)


def _attributes(
    reader: Reader, messages: Sequence[Any], position: Field, number: int
) -> dict[str, Attribute]:
    pairs = zip(messages, reader.fields(position, number), strict=False)
    return {message.name: Attribute(reader, message, each) for message, each in pairs}


@dataclass
class Graph:
    """A GraphProto, or the body of a FunctionProto."""

    nodes: list[Node] = field(default_factory=list)
    initializers: list[Tensor] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    @cached_property
    def names(self) -> int:
        """The number of references to tensors."""
        own = len(self.initializers) + len(self.inputs) + len(self.outputs)
        return own + sum(len(node.inputs) + len(node.outputs) for node in self.nodes)


@dataclass
class Function:
    """A FunctionProto: its domain, name and overload, its body, the defaults of its attributes."""

    key: tuple[str, str, str]
    body: Graph
    defaults: Mapping[str, Attribute]


@dataclass
class Model:
    """A ModelProto.

    Attributes:
        producer: the name and version of the program that wrote the file; may be empty.
        opset: the version of ONNX's own operators.
    """

    graph: Graph
    functions: list[Function] = field(default_factory=list)
    producer: str = ""
    opset: int | None = None


def read_model(window: Window) -> Model:
    """Read the model in a file.

    Raises:
        DamagedError, WireError, UnicodeDecodeError: the file does not contain a valid ModelProto.
        UnsupportedError: the model is too large or nested too deeply.
    """
    reader = Reader(window)
    model = Model(Graph())
    producer = ["", ""]
    for each in scan(window, 0, window.file.size):
        if each.kind != 2:
            continue
        if each.number in (2, 3):
            producer[each.number - 2] = window.read(each.start, each.end).decode()
        elif each.number == 7:
            model.graph = _read_graph(reader, each, 1)
        elif each.number == 8:
            operators = reader.message(each, "OnnxOperatorSet")
            if not _domain(operators.domain):
                model.opset = operators.version or model.opset
        elif each.number == 25:
            model.functions.append(_read_function(reader, each))
    model.producer = " ".join(part for part in producer if part)
    return model


def _read_graph(reader: Reader, position: Field, depth: int) -> Graph:
    if depth > _MAX_DEPTH:
        raise UnsupportedError(reader.window.file.path, "its graphs are nested too deeply")
    graph = Graph()
    for each in reader.fields(position, 1, 5, 11, 12):
        if each.number == 1:
            graph.nodes.append(Node(reader, each))
        elif each.number == 5:
            graph.initializers.append(Tensor(reader, each))
        else:
            names = graph.inputs if each.number == 11 else graph.outputs
            names.append(reader.message(each, "OnnxValueInfo").name)
    return graph


def _read_function(reader: Reader, position: Field) -> Function:
    message = reader.message(position, "OnnxFunction")
    nodes = [Node(reader, each) for each in reader.fields(position, 7)]
    body = Graph(nodes, inputs=[*message.input], outputs=[*message.output])
    defaults = _attributes(reader, message.attribute_proto, position, 11)
    return Function((_domain(message.domain), message.name, message.overload), body, defaults)


def _domain(name: str) -> str:
    """Normalize a domain of operators: both names of ONNX's own domain become empty."""
    return "" if name == "ai.onnx" else name


def read_array(file: File, tensor: Tensor) -> NDArray[np.generic]:
    """Read the numbers of a tensor, in the stored shape and dtype.

    Raises:
        DamagedError: the number of bytes does not fit the shape, or the position is invalid.
        NotFoundError: the external file is missing.
        UnsupportedError: the elements are not numbers, or take less than a byte.
    """
    where = f"{file.path}: {tensor.name}"
    dtype, shape = numpy_dtype(tensor.dtype, where), tensor.shape
    if shape is None:
        raise DamagedError(where, "has an impossible shape")
    needed = bytes_needed(shape, dtype)
    if tensor.external:
        external_file, offset = _external(file, tensor, needed, where)
        data = external_file.read(offset, needed)
    else:
        raw, lists = tensor.raw, tensor.lists
        if raw is None and lists:
            return _listed(file, lists, prod(shape), dtype, where).reshape(shape)
        start, end = (raw.start, raw.end) if raw is not None else (0, 0)
        if end - start != needed:
            raise DamagedError(where, f"{end - start} bytes, but its shape needs {needed}")
        data = file.read(start, needed)
    return from_little_endian(data, dtype, shape)


def find_array(file: File, tensor: Tensor) -> Sequence[Range]:
    """Return the ranges of a tensor's bytes; see `Variable.extents`. Raises as `read_array`."""
    dtype, shape = find_dtype(tensor.dtype), tensor.shape
    if dtype is None or shape is None:
        return ()
    if tensor.external:
        needed = bytes_needed(shape, dtype)
        external_file, offset = _external(file, tensor, needed, f"{file.path}: {tensor.name}")
        return extents(external_file, offset, needed, dtype, shape)
    if (raw := tensor.raw) is not None:
        return extents(file, raw.start, raw.end - raw.start, dtype, shape)
    lists = (extents(file, each.start, each.end - each.start, None, ()) for each in tensor.lists)
    return [place for places in lists for place in places]


def _external(file: File, tensor: Tensor, needed: int, where: str) -> tuple[File, int]:
    """Return the file with a tensor, in or below the model's folder, and the offset."""
    location = tensor.external.get("location", "")
    offset = _number(tensor.external.get("offset", "0"), where)
    length = _number(tensor.external.get("length", str(needed)), where)
    if length != needed:
        raise DamagedError(where, f"{length} bytes, but its shape needs {needed}")
    external_file = file.part(location)
    if external_file is None:
        raise NotFoundError(
            f"{file.path}: {location}", "the file with its tensors is missing", "copy it as well"
        )
    return external_file, offset


def _number(digits: str, where: str) -> int:
    if not digits.isascii() or not digits.isdecimal() or len(digits) > _DECIMAL_DIGITS:
        raise DamagedError(where, f"{digits[:40]!r} is not a valid offset or length")
    return int(digits)


def _listed(
    file: File, lists: Sequence[Field], count: int, dtype: np.dtype[np.generic], where: str
) -> NDArray[np.generic]:
    """Read the values of a repeated field.

    Complex numbers are listed as two values each, types smaller than int32 as int32, and small
    floats as bit patterns.
    """
    arrays: list[NDArray[np.generic]] = []
    try:
        for each in lists:
            data = file.read(each.start, each.end - each.start)
            fixed = _LISTS[each.number]
            arrays.append(_varints(data) if fixed is None else np.frombuffer(data, fixed))
    except (WireError, ValueError) as error:
        raise damaged(where, "a list of values", WireError(error)) from error
    values = np.concatenate(arrays)
    is_complex = dtype.kind == "c"
    part = np.dtype(f"f{dtype.itemsize // 2}") if is_complex else dtype
    needed = 2 * count if is_complex else count
    if values.size != needed:
        raise DamagedError(where, f"{values.size} values, but its shape needs {needed}")
    if values.dtype.kind == "f" and values.dtype.newbyteorder("=") != part:
        raise DamagedError(where, f"numbers of {dtype} are listed as numbers of another type")
    if values.dtype.kind == "f" or dtype.kind in "iub":
        return values.astype(part).view(dtype)
    return values.astype(f"u{dtype.itemsize}").view(dtype)


def _varints(data: bytes) -> NDArray[np.int64]:
    position, values = 0, []
    while position < len(data):
        value, position = varint(data, position)
        values.append(signed(value))
    return np.array(values, np.int64)
