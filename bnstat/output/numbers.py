"""Numbers as text: losslessly for programs, briefly for people.

The names of a layer's channels.

A channel of a vector is called by its index, also where the vector is stored with dimensions of
size 1 around it (`[1, 1, 1, 32]`). An element of any other shape is called by its index in each
dimension, with colons between them: `0:3:1`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from bnstat.errors import UnsupportedError
from bnstat.model import Array

CHUNK: Final = 1 << 16
"""How many elements are put into text at a time."""

_MOST_DIGITS: Final = 4

WORDS: Final = {
    "nan": "NaN",
    "inf": "Infinity",
    "-inf": "-Infinity",
    "True": "true",
    "False": "false",
}
"""Names of what is not a number, as in protobuf's JSON."""


def chunks(array: Array, size: int = CHUNK) -> Iterator[Array]:
    """The elements in C order, in flat pieces of at most `size`."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, size):
        yield flat[start : start + size]


def shortest(array: Array, words: Mapping[str, str] = WORDS) -> list[str]:
    """For each element, the shortest decimal number that reads back as the very same element.

    That is, as the same element of this dtype: float32 0.1 is `0.1`, not `0.10000000149011612`.

    Args:
        array: of one dimension, and of integers, booleans or floats (bfloat16, float8, ... too).
        words: what to write for NaN, the infinities and booleans instead of Python's words.

    Raises:
        UnsupportedError: the elements are neither integers, booleans nor floats.
    """
    if array.dtype.isbuiltin == 2:
        texts = _shortest_extended(array)
        plain = False
    elif array.dtype.kind in "biuf":
        with np.printoptions(legacy=False):
            texts = list(map(str, array))
        plain = array.dtype.kind != "b" and bool(np.isfinite(array).all())
    else:
        raise UnsupportedError(str(array.dtype), "elements of this type are not numbers")
    return texts if plain else [words.get(text, text) for text in texts]


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


def _shortest_extended(array: Array) -> list[str]:
    """As `shortest` for the types of ml_dtypes, which have few distinct elements."""
    bits, positions = np.unique(array.view(f"u{array.dtype.itemsize}"), return_inverse=True)
    texts = [_shortest_of_extended(element) for element in bits.view(array.dtype)]
    return [texts[position] for position in positions.tolist()]


def _shortest_of_extended(element: np.generic) -> str:
    number = element.item()
    if isinstance(number, int) or not math.isfinite(number):
        return str(number)
    for digits in range(1, 9):
        rounded = float(f"{number:.{digits}g}")
        if type(element)(rounded) == element:
            return repr(rounded)
    return repr(number)


def labels(shape: tuple[int, ...], start: int, stop: int, step: int = 1) -> list[str]:
    """Return the names of the elements of an array from position `start` to `stop`, in C order."""
    positions = np.arange(start, stop, step)
    if sum(size != 1 for size in shape) <= 1:
        return list(map(str, positions.tolist()))
    indices = [axis.tolist() for axis in np.unravel_index(positions, shape)]
    return [":".join(map(str, index)) for index in zip(*indices, strict=True)]
