"""NumPy's arrays in pickles, JAX's as well: what would rebuild them tells all of them.

    numpy._core.multiarray._reconstruct(ndarray, ...)   then the state (version, shape, dtype,
                                                        whether columns come first, bytes)
    numpy._core.numeric._frombuffer(bytes, dtype, shape, order)             of protocol 5
    jax._src.array._reconstruct_array(_reconstruct, arguments, state, ...)  of the first kind

The dtype is `numpy.dtype("f4", ...)` with its byte order in the state, or `numpy.dtype` of a type
of ml_dtypes. Before NumPy 2 the modules were `numpy.core.*`.

Sources: numpy/_core/src/multiarray/methods.c, `array_reduce_ex`; jax/_src/array.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import DamagedError
from bnstat.formats.dtypes import dtype_of_descr, find_dtype
from bnstat.formats.exchange.numbers import bytes_needed
from bnstat.formats.exchange.pytorch.pickled import Global, Opaque, bytes_of

_RECONSTRUCT: Final = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_FROM_BUFFER: Final = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")
_JAX: Final = ("jax._src.array._reconstruct_array", "jax._src.array._reconstruct_device_array")
BUILDERS: Final = (*_RECONSTRUCT, *_FROM_BUFFER, *_JAX)
"""The functions that rebuild arrays."""

_MOST_DIMS: Final = 32


@dataclass(frozen=True, slots=True, eq=False)
class Array:
    """An array whose numbers are in the pickle.

    Attributes:
        stored: the dtype of its bytes, byte order included.
        shape: its shape.
        order: which index comes first in the bytes, the last ("C") or the first.
        data: the bytes.
    """

    stored: np.dtype[np.generic]
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    data: bytes

    @property
    def nbytes(self) -> int:
        """The bytes that reading takes."""
        return len(self.data)

    @property
    def dtype(self) -> str:
        """The name of the element type."""
        return self.stored.name

    def read(self, where: str) -> NDArray[np.generic]:
        """The numbers.

        Raises:
            DamagedError: the bytes do not fit the shape; `where` names the array.
        """
        if len(self.data) != bytes_needed(self.shape, self.stored):
            raise DamagedError(where, f"{len(self.data)} bytes do not fit its shape")
        found = np.frombuffer(self.data, self.stored).reshape(self.shape, order=self.order)
        return found.astype(self.stored.newbyteorder("="), order="C")


def array_of(value: Opaque) -> Array | None:
    """The array that an object would have been; None where it would have been none."""
    name = str(value.kind)
    match value.arguments:
        case (data, dtype, shape, order) if name in _FROM_BUFFER:
            return _array(shape, dtype, order == "F", data)
        case (_, _, state, *_) if name in _JAX:
            return _of_state(state)
    return _of_state(value.state) if name in _RECONSTRUCT else None


def _of_state(state: Any) -> Array | None:
    match state:
        case (int(), shape, dtype, bool(is_turned), data) | (shape, dtype, bool(is_turned), data):
            return _array(shape, dtype, is_turned, data)
    return None


def _array(shape: Any, dtype: Any, is_turned: bool, data: Any) -> Array | None:
    stored, data = _dtype(dtype), bytes_of(data)
    if stored is None or data is None or not isinstance(shape, tuple):
        return None
    if len(shape) > _MOST_DIMS or not all(type(n) is int and 0 <= n < 1 << 63 for n in shape):
        return None
    return Array(stored, shape, "F" if is_turned else "C", data)


def _dtype(value: Any) -> np.dtype[np.generic] | None:
    """NumPy's type for numbers; None for objects, texts and records."""
    if not isinstance(value, Opaque) or str(value.kind) != "numpy.dtype" or not value.arguments:
        return None
    name = value.arguments[0]
    if isinstance(name, Global):
        return find_dtype(name.name) if name.module == "ml_dtypes" else None
    dtype = dtype_of_descr(name) if isinstance(name, str) else None
    if dtype is None or dtype.kind not in "biufc":
        return None
    is_big = isinstance(value.state, tuple) and value.state[1:2] == (">",)
    return dtype.newbyteorder(">" if is_big else "<")
