"""The numbers of a TensorProto, as graphs and version 1 checkpoints hold them.

Source: tensorflow/core/framework/tensor.proto and `Tensor::FromProto` in tensor.cc.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import BnstatError, DamagedError
from bnstat.formats.dtypes import dtype_name, numpy_dtype

_HIGHEST_RANK = 32

_MOST_SMALL = 1 << 18

_LARGEST_REPEATED = 1 << 28
"""Bytes of the largest array that a few values are repeated into."""

_AS_BITS = frozenset({"float16", "bfloat16"})
"""Types whose values are listed as the 16 bits of each."""

_VALUES = {
    "float32": "float_val",
    "float64": "double_val",
    "int32": "int_val",
    "int16": "int_val",
    "int8": "int_val",
    "uint8": "int_val",
    "uint16": "int_val",
    "int64": "int64_val",
    "bool": "bool_val",
    "float16": "half_val",
    "bfloat16": "half_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
}
"""Element type -> the field of a TensorProto that lists such values."""


def shape_of(tensor: Any) -> tuple[int, ...] | None:
    """The shape of a `TensorProto`; None where it is not whole, or of too many dimensions."""
    sizes = tuple(dim.size for dim in tensor.tensor_shape.dim)
    known = not tensor.tensor_shape.unknown_rank and min(sizes, default=0) >= 0
    return sizes if known and len(sizes) <= _HIGHEST_RANK else None


def decode_tensor(tensor: Any, where: str) -> NDArray[np.generic]:
    """The numbers of a `TensorProto`, in its own dtype.

    They are either the raw little-endian bytes `tensor_content` or a list of values of which
    the last one stands for all that are left out.

    Args:
        tensor: the message.
        where: what holds it, for errors.

    Raises:
        DamagedError: it has another number of values than its shape says, or its shape says
            more than its bytes can be meant for.
        UnsupportedError: its elements are no numbers.
    """
    name = dtype_name(tensor.dtype)
    dtype = numpy_dtype(name, where)
    shape = shape_of(tensor)
    if shape is None:
        raise DamagedError(where, "a constant of unknown shape")
    count = prod(shape)
    if tensor.tensor_content:
        if len(tensor.tensor_content) != count * dtype.itemsize:
            raise DamagedError(where, f"a constant of shape {shape} has other bytes than it needs")
        return (
            np.frombuffer(tensor.tensor_content, _little_endian(dtype)).astype(dtype).reshape(shape)
        )
    values = getattr(tensor, _VALUES.get(name, ""), ())
    if len(values) > count or (count > len(values) and count * dtype.itemsize > _LARGEST_REPEATED):
        raise DamagedError(where, f"a constant of shape {shape} has {len(values)} values")
    listed = np.array(values, np.uint16 if name in _AS_BITS else dtype)
    result = np.zeros(count, dtype)
    if listed.size:
        result[: listed.size] = listed.view(dtype)
        result[listed.size :] = result[listed.size - 1]
    return result.reshape(shape)


def small_array(tensor: Any, where: str) -> NDArray[np.generic] | None:
    """The numbers of a `TensorProto`; None where it holds none, or so many that it is weights."""
    if not is_small(tensor):
        return None
    try:
        return decode_tensor(tensor, where)
    except BnstatError:
        return None


def is_small(tensor: Any) -> bool:
    """Whether a `TensorProto` may be part of a graph's structure, by its number of elements."""
    shape = shape_of(tensor)
    return shape is not None and prod(shape) <= _MOST_SMALL


def _little_endian(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """The dtype as the file stores it (NumPy cannot swap the bytes of ml_dtypes' types)."""
    return dtype.newbyteorder("<") if dtype.kind in "iufcb" else dtype
