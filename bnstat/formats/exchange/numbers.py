"""Bytes of a file as an array of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray


def bytes_needed(shape: Sequence[int], dtype: np.dtype[np.generic]) -> int:
    """The bytes of an array of that shape."""
    return prod(shape) * dtype.itemsize


def from_little_endian(
    data: bytes, dtype: np.dtype[np.generic], shape: Sequence[int]
) -> NDArray[np.generic]:
    """An array from its bytes; there must be as many as `bytes_needed` says."""
    # NumPy cannot swap the bytes of ml_dtypes' types, and files of theirs are little-endian.
    stored = dtype.newbyteorder("<") if dtype.kind in "iufcb" else dtype
    return np.frombuffer(data, stored).astype(dtype).reshape(shape)
