"""The numbers of an ONNX TensorProto: raw, listed by value, or in a file beside the model.

Sources: onnx.proto; docs/ExternalData.md of ONNX (`location`, relative to the model's folder,
`offset`, `length`).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import DamagedError, NotFoundError
from bnstat.formats.dtypes import ONNX, find_dtype, numpy_dtype
from bnstat.formats.exchange.numbers import bytes_needed, extents, from_little_endian
from bnstat.formats.exchange.onnx.messages import Tensor
from bnstat.formats.protobuf.scan import Field
from bnstat.formats.protobuf.wire import WireError, damaged, signed, varint
from bnstat.storage.files import File
from bnstat.storage.ranges import Range

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
