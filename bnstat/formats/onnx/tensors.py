"""The tensors of an ONNX model, whose values are read on demand, also those in attributes.

A tensor stores its numbers as raw bytes, as a list of values, or in a file beside the model. An
attribute stores a number, a string, a list of numbers, a tensor, or a graph.

Sources: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto; docs/ExternalData.md of ONNX
(`location`, relative to the model's folder, `offset`, `length`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Final

import numpy as np

from bnstat.errors import DamagedError, NotFoundError
from bnstat.formats.dtypes import (
    ONNX,
    as_shape,
    bytes_needed,
    extents,
    find_dtype,
    from_little_endian,
    numpy_dtype,
)
from bnstat.formats.protobuf.protos import find_fields, parse, skeleton
from bnstat.model import Array
from bnstat.storage.files import File, Range

TENSOR: Final = (5, "OnnxTensor")
GRAPH: Final = (6, "OnnxGraph")
"""The field number and the message type of a tensor or graph that an attribute stores."""
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


def dtype_of(tensor: Any) -> str:
    """Return the name of a tensor's dtype in NumPy or ml_dtypes; `type 99` for an unknown dtype."""
    return ONNX.get(tensor.data_type, f"type {tensor.data_type}")


def shape_of(tensor: Any) -> tuple[int, ...] | None:
    """Return the shape of a tensor, or None if the shape is invalid."""
    return as_shape(list(tensor.dims))


def read_array(file: File, tensor: Any) -> Array:
    """Read the numbers of a tensor, in the stored shape and dtype."""
    where = f"{file.path}: {tensor.name}"
    dtype, shape = numpy_dtype(dtype_of(tensor), where), shape_of(tensor)
    if shape is None:
        raise DamagedError(where, "has an impossible shape")
    needed = bytes_needed(shape, dtype)
    place = _place(file, tensor, needed)
    if place is None:
        return _listed(file, tensor, prod(shape), dtype, where).reshape(shape)
    holder, start = place
    return from_little_endian(holder.read(start, needed), dtype, shape)


def find_array(file: File, tensor: Any) -> Sequence[Range]:
    """Return the range of a tensor's raw bytes; if there are none, the range of the TensorProto."""
    dtype, shape = find_dtype(dtype_of(tensor)), shape_of(tensor)
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
            raise NotFoundError(f"{file.path}: {location}", problem, "copy it too")
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

    A complex number is listed as two floats, a float of 16 or fewer bits as its bits in an int32.
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
    """Return an attribute's numbers, as float32 or int64; None for a long list or no numbers."""
    if attribute is None:
        return None
    if attribute.HasField("f"):
        return np.array(attribute.f, np.float32)
    if attribute.HasField("i"):
        return np.array(attribute.i, np.int64)
    length = attribute.end - attribute.begin
    if length > _LONGEST_LIST:
        return None
    lists = parse("OnnxAttributeLists", file.read(attribute.begin, length), file.path)
    if lists.floats:
        return np.array(lists.floats, np.float32)
    return np.array(lists.ints, np.int64) if lists.ints else None


def message_in(file: File, attribute: Any | None, kind: tuple[int, str]) -> Any | None:
    """Return the `skeleton` of an attribute's tensor or graph; None if the attribute has none."""
    if attribute is None:
        return None
    number, name = kind
    fields = [each for each in find_fields(file, attribute, number) if each.kind == 2]
    return skeleton(file, fields[-1].start, fields[-1].end, name, "the model") if fields else None
