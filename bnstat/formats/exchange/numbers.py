"""Bytes of a file as an array of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import UnsupportedError
from bnstat.storage.files import File
from bnstat.storage.ranges import Range

_BYTES_PER_BYTE: Final = 2
_BYTES_FLOOR: Final = 1 << 28


def beyond_budget(sizes: Mapping[str, int], file_size: int) -> set[str]:
    """Return the keys of tensors that would take too much memory for the size of the file.

    Tensors may repeat one number, as after `expand`, or share their bytes. The tensors of a file,
    the smallest first, may take twice the bytes of the file plus 256 MiB.

    Args:
        sizes: key -> the bytes that reading a tensor takes.
        file_size: the bytes of the file.
    """
    left = _BYTES_PER_BYTE * file_size + _BYTES_FLOOR
    if sum(sizes.values()) <= left:
        return set()
    refused = set()
    for key in sorted(sizes, key=sizes.__getitem__):
        left -= sizes[key]
        if left < 0:
            refused.add(key)
    return refused


def refuse(where: str) -> NDArray[np.generic]:
    """Refuse to read a tensor that is `beyond_budget`. `where` names the tensor.

    Raises:
        UnsupportedError: always.
    """
    raise UnsupportedError(
        where, "is not read, because the file repeats a few numbers into far more than it stores"
    )


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


def extents(
    file: File, start: int, length: int, dtype: np.dtype[np.generic] | None, shape: Sequence[int]
) -> Sequence[Range]:
    """Where an array lies whose elements are stored in a row, little-endian; see `Variable`.

    Args:
        file: the file.
        start: where its bytes begin.
        length: how many there are.
        dtype: the array's; None where they are no plain elements.
        shape: the array's.
    """
    is_plain = dtype is not None and length == bytes_needed(shape, dtype)
    part = tuple(slice(0, size) for size in shape) if is_plain else None
    place = file.place(start, length, part)
    return () if place is None else (place,)
