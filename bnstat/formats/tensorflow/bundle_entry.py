"""The entries of a bundle's index: where each tensor lies."""

from __future__ import annotations

import math
from typing import NamedTuple

from bnstat.errors import DamagedError
from bnstat.formats.protobuf.wire import WireError, damaged, fields, signed
from bnstat.formats.tensorflow.tensor_slice import TensorSlice, parse_slice

_MAX_RANK = 32
_MAX_ELEMENTS = 1 << 58


class Entry(NamedTuple):
    """Where a tensor lies, from its `BundleEntryProto`."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int
    slices: tuple[TensorSlice, ...]


def parse_entry(message: bytes, where: str) -> Entry:
    """A `BundleEntryProto`; `bundle` tells its fields.

    Raises:
        DamagedError: it is none, or has an impossible shape.
    """
    numbers = dict.fromkeys((1, 3, 4, 5, 6), 0)
    shape: tuple[int, ...] = ()
    slices = []
    try:
        for number, value in fields(message):
            if isinstance(value, int):
                if number in numbers:
                    numbers[number] = signed(value)
            elif number == 2:
                shape = _shape(value)
            elif number == 7:
                slices.append(parse_slice(value))
    except WireError as error:
        raise damaged(where, "its entry", error) from error
    if (
        len(shape) > _MAX_RANK
        or any(size < 0 for size in shape)
        or math.prod(size or 1 for size in shape) > _MAX_ELEMENTS
    ):
        raise DamagedError(where, f"has an impossible shape {list(shape)}")
    return Entry(
        numbers[1],
        shape,
        numbers[3],
        numbers[4],
        numbers[5],
        numbers[6],
        tuple(slices),
    )


def _shape(message: bytes) -> tuple[int, ...]:
    sizes = []
    for number, value in fields(message):
        if number == 2 and isinstance(value, bytes):
            size = dict(fields(value)).get(1, 0)
            if isinstance(size, int):
                sizes.append(signed(size))
    return tuple(sizes)
