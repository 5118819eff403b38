"""Decimal numbers in text, as the nearest elements of a binary type."""

from __future__ import annotations

import math
import re
from typing import Final

import numpy as np

from bnstat.errors import DamagedError
from bnstat.model import Array
from bnstat.output.channels import labels
from bnstat.output.numbers import WORDS

_NUMBER: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,9})?", re.ASCII)
_LONGEST: Final = 1000
_WORDS: Final = frozenset(word for word in WORDS.values() if word not in ("true", "false"))


def nearest(texts: Array, dtype: np.dtype[np.generic], where: str) -> Array:
    """For each text the element of `dtype` that is nearest to its number; of two, the even one.

    Args:
        texts: of `object`: decimal numbers, `NaN`, `Infinity`, `-Infinity`.
        dtype: a type of floats.
        where: names what the numbers are, for messages.

    Raises:
        DamagedError: a text is not a number, or one that is too large for the type.
    """
    doubles = np.empty(texts.shape, np.float64)
    listed: list[str] = texts.reshape(-1).tolist()
    for position, text in enumerate(listed):
        if text not in _WORDS and (len(text) > _LONGEST or not _NUMBER.fullmatch(text)):
            raise _wrong(texts, position, f"{text[:40]!r} is not a number", where)
        doubles.flat[position] = float(text)
    with np.errstate(all="ignore"):
        result = doubles.astype(dtype)
        rounded = result.astype(np.float64)
    for position in np.flatnonzero(~np.isfinite(rounded)).tolist():
        text = listed[position]
        if text not in _WORDS:
            raise _wrong(texts, position, f"{text[:40]} is too large for {dtype.name}", where)
    # Rounded twice, a number that the first rounding moved half-way between two elements of
    # the type may have gone to the wrong one.
    with np.errstate(all="ignore"):
        other = 2 * doubles - rounded
        half_way = (other.astype(dtype).astype(np.float64) == other) & (other != rounded)
    for position in np.flatnonzero(half_way).tolist():
        from decimal import Decimal

        number, middle = Decimal(listed[position]), Decimal(doubles.flat[position].item())
        if number != middle:
            pair = (rounded.flat[position], other.flat[position])
            result.flat[position] = (max if number > middle else min)(pair)
    return result


def significant_digits(text: str) -> int:
    """How many digits a decimal number has, zeros at its ends aside; 0 for what is none."""
    mantissa = re.split("[eE]", text)[0] if text not in _WORDS else ""
    digits = re.sub(r"[^0-9]", "", mantissa)
    return len(digits.strip("0"))


def most_digits(dtype: np.dtype[np.generic]) -> int:
    """How many digits tell any two elements of a type apart."""
    import ml_dtypes

    precision: int = ml_dtypes.finfo(dtype).nmant + 1  # type: ignore[no-untyped-call]
    return math.ceil(precision * math.log10(2)) + 1


def _wrong(texts: Array, position: int, what: str, where: str) -> DamagedError:
    channel = labels(texts.shape, position, position + 1)[0]
    return DamagedError(f"{where}, channel {channel}", what)
