"""Values as they are given, before they are those of any stored variable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.mending.values.decimals import most_digits, nearest, significant_digits
from bnstat.mending.values.exact import converted
from bnstat.model import Array, Variable, squeezed
from bnstat.output.channels import labels


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
