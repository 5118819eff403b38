"""Names, shapes and plain bytes of the arrays in files of any format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import DamagedError
from bnstat.formats.dtypes import bytes_needed, extents, find_dtype, from_little_endian, numpy_dtype
from bnstat.model import Variable
from bnstat.storage.files import File

_MOST_DIMS: Final = 32
_BRANCHES: Final = frozenset(
    {"params", "batch_stats", "state", "trainable_variables", "non_trainable_variables"}
)
"""The top-level collections into which Flax, Haiku and Keras divide a layer's variables."""


def name_of_path(path: Sequence[str]) -> str:
    """Return a variable's name: the path without the collections of Flax, Haiku and Keras."""
    parts = list(path)
    while len(parts) > 2 and parts[0] in _BRANCHES:
        del parts[0]
    if len(parts) > 1 and parts[-1] == "value":  # of Flax NNX
        parts.pop()
    return "/".join(parts)


def as_shape(value: object) -> tuple[int, ...] | None:
    """Return a list or tuple of sizes as a shape; None if it is not a possible shape."""
    if not isinstance(value, (list, tuple)) or len(value) > _MOST_DIMS:
        return None
    is_valid = all(type(size) is int and 0 <= size < 1 << 63 for size in value)
    return tuple(value) if is_valid else None


def contiguous_variable(
    file: File,
    start: int,
    length: int,
    dtype: str,
    shape: tuple[int, ...],
    key: str,
    name: str | None = None,
) -> Variable:
    """Return the variable whose elements are the `length` bytes from `start` on, little-endian.

    Reading the variable raises `DamagedError` if the length does not fit the shape, and
    `UnsupportedError` if the dtype is not numeric.
    """
    where = f"{file.path}: {key}"

    def read() -> NDArray[np.generic]:
        kind = numpy_dtype(dtype, where)
        if length != bytes_needed(shape, kind):
            raise DamagedError(where, f"{length} bytes do not fit its shape")
        return from_little_endian(file.read(start, length), kind, shape)

    return Variable(
        key,
        key if name is None else name,
        dtype,
        shape,
        read,
        lambda: extents(file, start, length, find_dtype(dtype), shape),
    )
