"""Slices of partitioned variables: their extents, and the keys that they are stored under.

A partitioned variable is stored as several slices, each under a key that encodes the
variable's name and the slice (`EncodeTensorNameSlice`, tensorflow/core/util/
saved_tensor_slice_util.cc) in order-preserving form (tsl/lib/strings/ordered_code.cc):

    key    := 00, name, rank as NumIncreasing, (start, length) of each dim as SignedNumIncreasing
    name   := its bytes with 00 -> 00 FF and FF -> FF 00, then 00 01
    NumIncreasing(n)       := number of bytes, then n big-endian in as few as possible
    SignedNumIncreasing(n) := n in two's complement, big-endian, in the fewest bytes whose
                              leading bits can hold the count: 7 bits of n a byte, the first
                              bits (1, 11, 111, ...) counting the bytes, inverted for n < 0

A dimension that the slice covers whole has start 0 and length -1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bnstat.errors import DamagedError
from bnstat.formats.protobuf.wire import WireError, fields, signed
from bnstat.model import Array

Extent = tuple[int, int]
FULL: Extent = (0, -1)


class TensorSlice(NamedTuple):
    """A box in a tensor: (start, length) a dimension, length -1 for all of it."""

    extents: tuple[Extent, ...]

    def box(self, shape: Sequence[int], where: str) -> tuple[slice, ...]:
        """The indices of the slice in a tensor of that shape.

        Raises:
            DamagedError: it is not inside the tensor.
        """
        if len(self.extents) != len(shape):
            raise DamagedError(where, f"a slice of {len(self.extents)} dimensions in {shape}")
        box = []
        for (start, length), size in zip(self.extents, shape, strict=True):
            stop = size if length == -1 else start + length
            if not 0 <= start <= stop <= size:
                raise DamagedError(where, f"a slice from {start} to {stop} of {size}")
            box.append(slice(start, stop))
        return tuple(box)


def parse_slice(message: bytes) -> TensorSlice:
    """A `TensorSliceProto`. Raises `WireError` for anything else."""
    extents = []
    for number, value in fields(message):
        if number == 1 and isinstance(value, bytes):
            extent = dict(fields(value))
            start, length = extent.get(1, 0), extent.get(2, -1)
            if not isinstance(start, int) or not isinstance(length, int):
                raise WireError("a slice's extent is no number")
            extents.append((signed(start), signed(length) if length != -1 else -1))
    return TensorSlice(tuple(extents))


def slice_key(name: str, part: TensorSlice) -> bytes:
    """The key under which a slice of the variable `name` is stored."""
    escaped = name.encode("utf-8", "surrogateescape")
    escaped = b"".join(_ESCAPES.get(byte, bytes((byte,))) for byte in escaped)
    numbers = b"".join(
        _signed_increasing(start) + _signed_increasing(length) for start, length in part.extents
    )
    return b"\0" + escaped + b"\0\1" + _increasing(len(part.extents)) + numbers


def assemble(
    shape: tuple[int, ...],
    dtype: np.dtype[np.generic],
    parts: Sequence[tuple[TensorSlice, Array]],
    where: str,
) -> Array:
    """The whole tensor from its slices, each an array of the slice's shape.

    Raises:
        DamagedError: the slices leave a part of the tensor out, or overlap.
    """
    boxes = [(part.box(shape, where), array) for part, array in parts]
    if sum(array.size for _, array in boxes) != math.prod(shape):
        raise DamagedError(where, "its slices do not make up the whole tensor")
    whole = np.empty(shape, dtype)
    covered = np.zeros(shape, bool)
    for box, array in boxes:
        if covered[box].any():
            raise DamagedError(where, "its slices overlap")
        whole[box] = array
        covered[box] = True
    return whole


_ESCAPES = {0x00: b"\x00\xff", 0xFF: b"\xff\x00"}


def _increasing(number: int) -> bytes:
    width = (number.bit_length() + 7) // 8
    return bytes((width,)) + number.to_bytes(width, "big")


def _signed_increasing(number: int) -> bytes:
    width = 1
    while not -(1 << (7 * width - 1)) <= number < 1 << (7 * width - 1):
        width += 1
    # Of the 8 * width bits, the sign fills those above the number's own; the count of bytes
    # is written into them by inverting the first `width` bits.
    header = ((1 << width) - 1) << (7 * width)
    return ((number & ((1 << 8 * width) - 1)) ^ header).to_bytes(width, "big")
