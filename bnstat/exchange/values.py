"""Decimal numbers in text, as the nearest elements of a binary type."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.model import Array, Variable, as_float64, squeezed
from bnstat.output.numbers import WORDS, labels

_NUMBER: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,9})?", re.ASCII)
_LONGEST: Final = 1000
_WORDS: Final = frozenset(WORDS.values())


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


_MOST_WHOLE = 1 << 53
"""Up to here float64 holds every whole number."""


def converted(array: Array, dtype: np.dtype[np.generic], where: str) -> Array:
    """The same numbers in another type; NaN and the infinities as such.

    Args:
        array: numbers of any real type.
        dtype: a type of floats.
        where: names what the numbers are, for messages.

    Raises:
        UnsupportedError: a number is none of that type, or one of the types is not for this.
    """
    if array.dtype == dtype:
        return array
    if not _is_float(dtype):
        raise UnsupportedError(where, f"new values for {dtype.name} are not known")
    if not _is_float(array.dtype) and array.dtype.kind not in "iu":
        raise UnsupportedError(where, f"values of {array.dtype} are not numbers")
    with np.errstate(all="ignore"):
        result = array.astype(dtype)
        if array.dtype.kind in "iu":
            exact = (as_float64(result) == as_float64(array)) & (abs(array) <= _MOST_WHOLE)
        else:
            wide = array.dtype if array.dtype.itemsize > 8 else np.dtype(np.float64)
            back, given = result.astype(wide), array.astype(wide)
            exact = (back == given) | ((back != back) & (given != given))
    if not exact.all():
        position = int(np.argmin(exact.reshape(-1)))
        channel = labels(array.shape, position, position + 1)[0]
        raise UnsupportedError(
            f"{where}, channel {channel}",
            f"{array.reshape(-1)[position]!s} is not exactly a {dtype.name}, which would be "
            f"{result.reshape(-1)[position]!s}",
            f"round the values to {dtype.name} first",
        )
    return result


def _is_float(dtype: np.dtype[np.generic]) -> bool:
    """Whether a type is of floats, NumPy's own or those of ml_dtypes."""
    return dtype.kind == "f" or (dtype.isbuiltin == 2 and "float" in dtype.name)


@dataclass(frozen=True, slots=True)
class Given:
    """The values of one role of one layer.

    Attributes:
        array: numbers, or the texts of decimal numbers (an array of `object`).
        dtype: for texts, the name of the type whose nearest element each of them stands for;
            None for the stored one.
        any_rank: whether dimensions of 1 do not count, for forms that do not tell them.
    """

    array: Array
    dtype: str | None = None
    any_rank: bool = False

    @property
    def is_text(self) -> bool:
        """Whether the values are texts."""
        return self.array.dtype == object

    def fitted(self, variable: Variable, stored: Array, where: str) -> Array:
        """The values in the variable's own shape and dtype.

        A NaN in text form, or of another type, stands for whichever NaN is stored in its place.

        Args:
            variable: what the values are for.
            stored: its array so far.
            where: names it, for messages.

        Raises:
            DamagedError: the values have another shape.
            UnsupportedError: a value is not exactly one of the stored type.
        """
        array = self._shaped(variable.shape, where)
        if not self.is_text:
            return _with_stored_nans(converted(array, stored.dtype, where), array, stored)
        dtype = stored.dtype if self.dtype is None else _dtype(self.dtype, where)
        if self.dtype is None:
            _refuse_long(array, dtype, where)
        fitted = converted(nearest(array, dtype, where), stored.dtype, where)
        return _with_stored_nans(fitted, array, stored)

    def _shaped(self, shape: tuple[int, ...], where: str) -> Array:
        if self.array.shape == shape:
            return self.array
        if self.any_rank and squeezed(self.array.shape) == squeezed(shape):
            return self.array.reshape(shape)
        raise DamagedError(
            where, f"the values have shape {list(self.array.shape)}, it is stored as {list(shape)}"
        )


@dataclass(frozen=True, slots=True)
class Document:
    """What a file of values, or a mapping, gives.

    Attributes:
        where: what it is, for messages.
        form: what it is called: `JSON`, `CSV`, `NPZ`.
        layers: a layer's name as the document spells it -> role -> values. An undecided
            variable has its key in the model's file in place of a role.
        spelt: how the document spells a layer's name.
    """

    where: str
    form: str
    layers: Mapping[str, Mapping[str, Given]]
    spelt: Callable[[str], str] = field(default=str)


def refused_folded(where: str) -> UnsupportedError:
    """Return the error for values that are scale and shift, which no variable stores."""
    return UnsupportedError(
        where, "holds scale and shift, which no variable stores", "export without --folded"
    )


def _dtype(name: str, where: str) -> np.dtype[np.generic]:
    from bnstat.formats.dtypes import numpy_dtype

    return numpy_dtype(name, where)


def _refuse_long(texts: Array, dtype: np.dtype[np.generic], where: str) -> None:
    """Refuse numbers of a wider type than a narrow one that they are to be stored in.

    Of float32 and wider no such thing is said: people type and compute decimals as they like.
    """
    if dtype.itemsize >= 4:
        return
    most = most_digits(dtype)
    listed: list[str] = texts.reshape(-1).tolist()
    for position, text in enumerate(listed):
        if significant_digits(text) > most:
            channel = labels(texts.shape, position, position + 1)[0]
            raise UnsupportedError(
                f"{where}, channel {channel}",
                f"{text} has more digits than {dtype.name} holds",
                f"round it to {most} digits",
            )


def _with_stored_nans(fitted: Array, given: Array, stored: Array) -> Array:
    """Return the fitted values with the stored NaNs, unless `given` has NaNs of the same type."""
    if given.dtype == stored.dtype:
        return fitted
    return np.where(np.logical_and(_is_nan(fitted), _is_nan(stored)), stored, fitted)


def _is_nan(array: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return np.asarray(array != array)
