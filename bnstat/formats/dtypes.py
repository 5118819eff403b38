"""The element types of every format: one fixed table of dtypes, and TensorFlow's codes for them.

A name or code in a file is looked up here and never passed to NumPy, whose own parser also accepts
objects and structures. Types that NumPy lacks come from ml_dtypes. A quantized type counts
as the integer type that stores it. In an array, each element of 4 or 2 bits takes a whole byte.

The module of a format with codes of its own has a table `DTYPES`: code -> name in this table.

Sources: tensorflow/core/framework/types.proto; numpy/lib/format.py, `dtype_to_descr`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.model import Array, Variable
from bnstat.storage.files import File, Range

_NUMPY: Final = {
    name: np.dtype(name)
    for name in (
        "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
        "float16", "float32", "float64", "complex64", "complex128",
    )
}  # fmt: skip
_DTYPES: Final = _NUMPY | {
    f"q{name}": _NUMPY[name] for name in ("int8", "int16", "int32", "uint8", "uint16")
}
_ML_DTYPES: Final = {
    "bfloat16", "float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn", "float8_e3m4", "float8_e4m3",
    "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
    "float8_e8m0fnu", "int2", "int4", "uint2", "uint4",
}  # fmt: skip
NUMERIC: Final = frozenset(_DTYPES) | _ML_DTYPES
"""The names of all numeric types."""


def by_code(names: str) -> dict[int, str]:
    """Return position -> name for the words of `names`; `-` marks a code without a name."""
    return {code: name for code, name in enumerate(names.split()) if name != "-"}


DATA_TYPES: Final = """
INVALID FLOAT DOUBLE INT32 UINT8 INT16 INT8 STRING COMPLEX64 INT64 BOOL QINT8 QUINT8 QINT32
BFLOAT16 QINT16 QUINT16 UINT16 COMPLEX128 HALF RESOURCE VARIANT UINT32 UINT64 FLOAT8_E5M2
FLOAT8_E4M3FN FLOAT8_E4M3FNUZ FLOAT8_E4M3B11FNUZ FLOAT8_E5M2FNUZ INT4 UINT4 INT2 UINT2
FLOAT4_E2M1FN
"""
"""The names of the values of `DataType` in TensorFlow's types.proto, from 0 on, without `DT_`."""

_RENAMED: Final = {"FLOAT": "float32", "DOUBLE": "float64", "HALF": "float16"}
TENSORFLOW: Final = {
    code: _RENAMED.get(name, name.lower()) for code, name in enumerate(DATA_TYPES.split()[1:], 1)
}
"""Value of TensorFlow's `DataType` -> name of the type."""

_DESCR: Final = re.compile(r"(?P<order>[<>|=]?)(?P<kind>[?a-z]\d{0,2})")
_DESCR_KINDS: Final = {"?": np.dtype(bool)} | {kind.str[1:]: kind for kind in _NUMPY.values()}
"""NumPy's code of a kind and a size (`f4`) -> dtype."""


def dtype_name(code: int) -> str:
    """Return the name of a value of TensorFlow's `DataType`; `type 99` for an unknown value."""
    return TENSORFLOW.get(code, f"type {code}")


def numpy_dtype(name: str, where: str = "") -> np.dtype[np.generic]:
    """Return the dtype of a numeric type; for other types, raise an `UnsupportedError`."""
    dtype = find_dtype(name)
    if dtype is None:
        raise UnsupportedError(where, f"bnstat does not read elements of type {name:.40}")
    return dtype


def find_dtype(name: str) -> np.dtype[np.generic] | None:
    """Return the dtype of a numeric type, or None if the name is not one of `NUMERIC`."""
    if name not in _ML_DTYPES:
        return _DTYPES.get(name)
    import ml_dtypes

    dtype: np.dtype[np.generic] = np.dtype(getattr(ml_dtypes, name))
    return dtype


def dtype_of_descr(descr: str) -> np.dtype[np.generic] | None:
    """Return the dtype for NumPy's code (`<f4`) or name (`float32`); None if not numeric."""
    match = _DESCR.fullmatch(descr)
    if match is None:
        return find_dtype(descr)
    dtype = _DESCR_KINDS.get(match["kind"])
    return dtype.newbyteorder(">") if dtype is not None and match["order"] == ">" else dtype


_MOST_DIMS: Final = 32
_MOST_ELEMENTS: Final = 1 << 58
"""NumPy counts the bytes of an array in 63 bits, and an element has at most 16 bytes."""


def within_budget(
    file: File, variables: Mapping[str, Variable], sizes: Mapping[str, int]
) -> dict[str, Variable]:
    """Return the variables; those that need too much memory raise an `UnsupportedError` when read.

    `sizes` maps keys to the bytes that arrays need in memory, which can exceed the file's size.
    All arrays together may need twice the file's size plus 256 MiB; the largest are refused first.
    """
    left = 2 * file.size + (256 << 20)
    limited = dict(variables)
    for key in sorted(sizes, key=sizes.__getitem__):
        left -= sizes[key]
        if left < 0:
            limited[key] = replace(variables[key], reader=partial(_refuse, f"{file.path}: {key}"))
    return limited


def _refuse(where: str) -> Array:
    problem = "bnstat does not read this tensor, because it needs far more memory than the file"
    raise UnsupportedError(where, problem)


def bytes_needed(shape: Sequence[int], dtype: np.dtype[np.generic]) -> int:
    """Return the size of an array in bytes."""
    return prod(shape) * dtype.itemsize


def from_little_endian(data: bytes, dtype: np.dtype[Any], shape: Sequence[int]) -> Array:
    """Make an array from exactly `bytes_needed` little-endian bytes."""
    # NumPy cannot swap the bytes of ml_dtypes' types.
    stored = dtype.newbyteorder("<") if dtype.kind in "iufcb" else dtype
    return np.frombuffer(data, stored).astype(dtype).reshape(shape)


def extents(
    file: File, start: int, length: int, dtype: np.dtype[np.generic] | None, shape: Sequence[int]
) -> Sequence[Range]:
    """Return the extent of `length` bytes at `start`, or `()` if the file is compressed.

    A `dtype` of None means that the bytes are not contiguous elements, so the extent has no `part`.
    """
    is_plain = dtype is not None and length == bytes_needed(shape, dtype)
    part = tuple(slice(0, size) for size in shape) if is_plain else None
    extent = file.place(start, length, part)
    return () if extent is None else (extent,)


def as_shape(value: object) -> tuple[int, ...] | None:
    """Return `value` as a shape; None if it is not a list or tuple of sizes that NumPy accepts."""
    shape = as_sizes(value)
    # NumPy refuses an empty array, too, if the other axes are too long.
    return shape if shape is None or prod(size or 1 for size in shape) <= _MOST_ELEMENTS else None


def as_sizes(value: object) -> tuple[int, ...] | None:
    """Return a list or tuple of sizes, offsets or strides as a tuple; None for invalid values."""
    if not isinstance(value, (list, tuple)) or len(value) > _MOST_DIMS:
        return None
    is_valid = all(type(size) is int and 0 <= size < 1 << 63 for size in value)
    return tuple(value) if is_valid else None


def contiguous_variable(
    file: File, start: int, length: int, dtype: str, shape: tuple[int, ...], key: str
) -> Variable:
    """Return the variable whose elements are `length` little-endian bytes at `start`."""
    where = f"{file.path}: {key}"

    def read() -> Array:
        kind = numpy_dtype(dtype, where)
        if length != bytes_needed(shape, kind):
            raise DamagedError(where, f"the {length} bytes of this tensor do not fit its shape")
        return from_little_endian(file.read(start, length), kind, shape)

    def find() -> Sequence[Range]:
        return extents(file, start, length, find_dtype(dtype), shape)

    return Variable(key, key, dtype, shape, read, find)


class Scales(NamedTuple):
    """An array's quantization: value = (stored - zero) * scale.

    `scales` and `zeros` contain one number, or one for each index along `axis`.
    """

    scales: NDArray[np.float64]
    zeros: NDArray[np.float64]
    axis: int = 0

    def unpack(self, stored: Array, where: str) -> NDArray[np.float32]:
        """Return the values of stored integers, computed in float64 and then rounded to float32."""
        scales = self._along(self.scales, stored.shape, where)
        zeros = self._along(self.zeros, stored.shape, where)
        with np.errstate(over="ignore", invalid="ignore"):
            return ((stored.astype(np.float64) - zeros) * scales).astype(np.float32)

    def step(self, shape: Sequence[int], where: str) -> NDArray[np.float64]:
        """Return the quantization step, as an array that broadcasts to `shape`."""
        return np.abs(self._along(self.scales, shape, where))

    def _along(
        self, values: NDArray[np.float64], shape: Sequence[int], where: str
    ) -> NDArray[np.float64]:
        if values.size == 1:
            return values.reshape(())
        if not 0 <= self.axis < len(shape) or shape[self.axis] != values.size:
            raise DamagedError(where, "the number of quantization scales does not fit the shape")
        return values.reshape([-1 if axis == self.axis else 1 for axis in range(len(shape))])
