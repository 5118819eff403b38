"""Numbers as text: losslessly for programs, briefly for people.

The names of a layer's channels.

A channel of a vector is called by its index, also where the vector is stored with dimensions of
size 1 around it (`[1, 1, 1, 32]`). An element of any other shape is called by its index in each
dimension, with colons between them: `0:3:1`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Final

import numpy as np

from bnstat.errors import UnsupportedError
from bnstat.model import Array

CHUNK: Final = 1 << 16
"""How many elements are put into text at a time."""

_MOST_DIGITS: Final = 4

WORDS: Final = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
"""Python's names of NaN and the infinities -> the names in protobuf's JSON."""

_QUOTED: Final = {name: f'"{word}"' for name, word in WORDS.items()}


def chunks(array: Array, size: int = CHUNK) -> Iterator[Array]:
    """The elements in C order, in flat pieces of at most `size`."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, size):
        yield flat[start : start + size]


def shortest(array: Array, words: Mapping[str, str] = WORDS) -> list[str]:
    """Return for each element the shortest decimal number that reads back as the same element.

    The element is one of this dtype: float32 0.1 is `0.1`, not `0.10000000149011612`.

    Args:
        array: integers, booleans or floats (bfloat16, float8, ... too), of one dimension.
        words: what to write instead of `nan`, `inf` and `-inf`.

    Raises:
        UnsupportedError: the elements are neither integers, booleans nor floats.
    """
    return _encode(array, words)[1:-1].split(",") if array.size else []


def nested_json(array: Array) -> str:
    """Return an array of at least one dimension as nested lists in JSON.

    The numbers are those of `shortest`; NaN and the infinities are strings.

    Raises:
        UnsupportedError: the elements are neither integers, booleans nor floats.
    """
    return _encode(array, _QUOTED).replace(",", ", ")


def _encode(array: Array, words: Mapping[str, str]) -> str:
    import orjson

    numbers = portable(array)
    dtype = numbers.dtype
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise UnsupportedError(str(array.dtype), "elements of this type are not numbers")
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


_MOST_DECIMALS: Final = 9
"""Significant digits that are enough for any float32."""


def _shortest_float32(array: Array) -> Array:
    """Return float32 numbers whose shortest texts read back as the elements of a narrower type.

    Each is the nearest float32 of the element rounded to as few decimal digits as possible.
    """
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
    """The same numbers in a dtype that NumPy knows by itself.

    bfloat16 and the smaller floats become float32, the small integers int8: both exactly.
    """
    if array.dtype.isbuiltin != 2:
        return array
    with np.errstate(invalid="ignore"):
        return array.astype(np.int8 if _is_integer(array.dtype) else np.float32)


def compact_pair(mean: float, deviation: float, digits: int) -> tuple[str, str]:
    """Return a mean and its deviation for a table, with as many decimals as the deviation allows.

    Args:
        mean: any number.
        deviation: not negative.
        digits: significant digits of the deviation.
    """
    spread = compact(deviation, digits)
    sizes = (abs(mean), deviation)
    if not deviation or not all(map(math.isfinite, sizes)) or not 1e-3 <= max(sizes) < 1e5:
        return compact(mean, digits), spread
    decimals = _decimals(deviation, digits)
    if mean:
        decimals = min(decimals, _decimals(mean, _MOST_DIGITS))
    # Adding 0 makes 0 of a -0, which is what a small negative mean may be rounded to.
    return f"{round(mean, decimals) + 0.0:.{decimals}f}", spread


def compact(number: float, digits: int) -> str:
    """Return a number for a table, with this number of significant digits.

    It has at most one decimal more than that, and none if it is an integer.
    """
    if not math.isfinite(number):
        return str(number)
    size = abs(number)
    if number == int(number) and size < 1e5:
        return str(int(number))
    if not 1e-3 <= size < 1e5:
        mantissa, exponent = f"{number:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{number:.{_decimals(number, digits)}f}"


def _decimals(number: float, digits: int) -> int:
    """Return the number of decimals that shows the given digits of a number other than 0."""
    return min(max(0, digits - 1 - math.floor(math.log10(abs(number)))), digits + 1)


def _is_integer(dtype: np.dtype[np.generic]) -> bool:
    return isinstance(np.zeros((), dtype).item(), int)


def labels(shape: tuple[int, ...], start: int, stop: int, step: int = 1) -> list[str]:
    """Return the names of the elements of an array from position `start` to `stop`, in C order."""
    positions = np.arange(start, stop, step)
    if sum(size != 1 for size in shape) <= 1:
        return list(map(str, positions.tolist()))
    indices = [axis.tolist() for axis in np.unravel_index(positions, shape)]
    return [":".join(map(str, index)) for index in zip(*indices, strict=True)]
