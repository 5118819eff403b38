"""Conversion to the shortest decimal numbers that restore the stored bits, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain
from typing import Final

import numpy as np

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.model import Array

WORDS: Final = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
"""Python's words for NaN and the infinities -> words in protobuf's JSON."""
QUOTED: Final = {name: f'"{word}"' for name, word in WORDS.items()}
"""The same, as JSON's strings."""

_NUMBER: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,9})?", re.ASCII)
_INTEGER: Final = re.compile(r"-?[0-9]{1,20}")
_LONGEST: Final = 1000


def shortest(array: Array, words: Mapping[str, str] = WORDS) -> list[str]:
    """Return each element of a vector as the shortest decimal number that reads back the same.

    The number is read back in the array's dtype: float32 0.1 is `0.1`, not `0.10000000149011612`.
    `words` maps `nan`, `inf` and `-inf` to the words that are written instead.
    """
    return _encode(array, words)[1:-1].split(",") if array.size else []


def nested_json(array: Array) -> str:
    """Return an array of at least one dimension as nested JSON lists, with NaN as a string."""
    return _encode(array, QUOTED).replace(",", ", ")


def _encode(array: Array, words: Mapping[str, str]) -> str:
    import orjson

    numbers = portable(array)
    dtype = numbers.dtype
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise UnsupportedError(str(array.dtype), "cannot be written as decimal numbers")
    if dtype == np.float16 or (dtype != array.dtype and dtype.kind == "f"):
        numbers = _shortest_float32(array)
    numbers = numbers.astype(numbers.dtype.newbyteorder("="), order="C", copy=False)
    text = orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY).decode()
    is_finite = np.isfinite(numbers)
    if is_finite.all():
        return text
    # orjson writes NaN and the infinities as null.
    names = [words.get(name, name) for name in map(str, numbers[~is_finite].tolist())]
    return "".join(chain.from_iterable(zip(text.split("null"), [*names, ""], strict=True)))


_MOST_DECIMALS: Final = 9  # significant digits that suffice for any float32


def _shortest_float32(array: Array) -> Array:
    """Convert narrower floats to float32 numbers whose shortest decimals read back the same."""
    with np.errstate(all="ignore"):
        exact = array.astype(np.float64)
        result = exact.astype(np.float32)
        is_left = np.isfinite(exact) & (exact != 0)
        exponents = np.floor(np.log10(np.abs(exact)))
        for digits in range(1, _MOST_DECIMALS + 1):
            scale = 10.0 ** (digits - 1 - exponents)
            rounded = (np.rint(exact * scale) / scale).astype(np.float32)
            is_same = is_left & (rounded.astype(array.dtype) == array)
            result[is_same] = rounded[is_same]
            is_left &= ~is_same
            if not is_left.any():
                break
    return result


def portable(array: Array) -> Array:
    """Convert dtypes that NumPy lacks, exactly: small floats to float32, small integers to int8."""
    if array.dtype.isbuiltin != 2:
        return array
    is_integer = isinstance(np.zeros((), array.dtype).item(), int)
    with np.errstate(invalid="ignore"):
        return array.astype(np.int8 if is_integer else np.float32)


def labels(shape: tuple[int, ...], start: int, stop: int, step: int = 1) -> list[str]:
    """Return the names of channels in C order: `3`, or one index per dimension `2:0:5`."""
    positions = np.arange(start, stop, step)
    if sum(size != 1 for size in shape) <= 1:
        return list(map(str, positions.tolist()))
    indices = [axis.tolist() for axis in np.unravel_index(positions, shape)]
    return [":".join(map(str, index)) for index in zip(*indices, strict=True)]


def nearest(texts: Array, dtype: np.dtype[np.generic], where: str) -> Array:
    """Round decimal strings to the nearest numbers of a dtype; ties go to the even last bit.

    Strings for an integer dtype are not rounded: each must be an integer in the dtype's range.
    """
    if dtype.kind in "iu":
        return _integers(texts, dtype, where)
    doubles = np.empty(texts.shape, np.float64)
    listed: list[str] = texts.reshape(-1).tolist()
    for position, text in enumerate(listed):
        if text not in WORDS.values() and (len(text) > _LONGEST or not _NUMBER.fullmatch(text)):
            place = channel_of(texts, position, where)
            raise DamagedError(place, f"{text[:40]!r} is not a number")
        doubles.flat[position] = float(text)
    with np.errstate(all="ignore"):
        result = doubles.astype(dtype)
        rounded = result.astype(np.float64)
    for position in np.flatnonzero(~np.isfinite(rounded)).tolist():
        text = listed[position]
        if text not in WORDS.values():
            place = channel_of(texts, position, where)
            raise DamagedError(place, f"{text[:40]} is too large for {dtype.name}")
    # The number was rounded twice. If the first rounding moved it half-way between two elements of
    # the dtype, the second may have chosen the wrong one.
    with np.errstate(all="ignore"):
        other = 2 * doubles - rounded
        is_element = other.astype(dtype).astype(np.float64) == other
        is_half_way = is_element & (other != rounded) & np.isfinite(other)
    for position in np.flatnonzero(is_half_way).tolist():
        from decimal import Decimal

        number, middle = Decimal(listed[position]), Decimal(doubles.flat[position].item())
        if number != middle:
            pair = (rounded.flat[position], other.flat[position])
            result.flat[position] = (max if number > middle else min)(pair)
    return result


def _integers(texts: Array, dtype: np.dtype[np.generic], where: str) -> Array:
    limits = np.iinfo(dtype.name)
    result = np.empty(texts.shape, dtype)
    for position, text in enumerate(texts.reshape(-1).tolist()):
        number = int(text) if _INTEGER.fullmatch(text) else None
        if number is None or not limits.min <= number <= limits.max:
            place = channel_of(texts, position, where)
            raise DamagedError(place, f"{text[:40]!r} is not an integer of type {dtype.name}")
        result.flat[position] = number
    return result


def channel_of(array: Array, position: int, where: str) -> str:
    """Return `WHERE, channel N` for the element at an index in C order."""
    return f"{where}, channel {labels(array.shape, position, position + 1)[0]}"
