"""Values that `apply` writes, converted to a variable's dtype from numbers or decimal strings."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.exchange.decimals import WORDS, channel_of, nearest
from bnstat.exchange.naming import NAMINGS, PARTS_FOLDED
from bnstat.formats.dtypes import numpy_dtype
from bnstat.model import ROLES, Array, Variable, as_float64, printable, squeezed

_MOST_WHOLE: Final = 1 << 53


def converted(array: Array, dtype: np.dtype[np.generic], where: str) -> Array:
    """Convert numbers exactly to a floating-point dtype, or raise an `UnsupportedError`."""
    if array.dtype == dtype:
        return array
    if not _is_float(dtype):
        raise UnsupportedError(where, f"bnstat does not write variables of type {dtype.name}")
    if not _is_float(array.dtype) and array.dtype.kind not in "iu":
        raise UnsupportedError(where, f"values of type {array.dtype} are not numbers")
    with np.errstate(all="ignore"):
        result = array.astype(dtype)
        if array.dtype.kind in "iu":
            is_exact = (as_float64(result) == as_float64(array)) & (abs(array) <= _MOST_WHOLE)
        else:
            wide = array.dtype if array.dtype.itemsize > 8 else np.dtype(np.float64)
            back, given = result.astype(wide), array.astype(wide)
            is_exact = (back == given) | ((back != back) & (given != given))
    if not is_exact.all():
        position = int(np.argmin(is_exact.reshape(-1)))
        raise UnsupportedError(
            channel_of(array, position, where),
            f"{dtype.name} cannot represent {array.reshape(-1)[position]!s} exactly; the nearest "
            f"number is {result.reshape(-1)[position]!s}",
            f"round the values to {dtype.name} first",
        )
    return result


def _is_float(dtype: np.dtype[np.generic]) -> bool:
    return dtype.kind == "f" or (dtype.isbuiltin == 2 and "float" in dtype.name)


@dataclass(frozen=True, slots=True)
class Given:
    """The values of one role of one layer.

    Attributes:
        array: numbers, or an object array of decimal strings.
        dtype: the name of the dtype to which strings are rounded; None for the variable's dtype.
        any_rank: True if the file does not store dimensions of size 1.
    """

    array: Array
    dtype: str | None = None
    any_rank: bool = False

    def fitted(self, variable: Variable, stored: Array, where: str) -> Array:
        """Return the values in the variable's shape and dtype; `stored` is the variable's array.

        If the dtypes differ, a stored NaN keeps its bits where the new value is also NaN.
        """
        array = self.array
        if array.shape != variable.shape:
            if not self.any_rank or squeezed(array.shape) != squeezed(variable.shape):
                new, old = list(array.shape), list(variable.shape)
                raise DamagedError(where, f"the new values have shape {new}, the stored ones {old}")
            array = array.reshape(variable.shape)
        numbers = array
        if array.dtype == object:
            dtype = stored.dtype if self.dtype is None else numpy_dtype(self.dtype, where)
            if self.dtype is None:
                _refuse_long(array, dtype, where)
            numbers = nearest(array, dtype, where)
        fitted = converted(numbers, stored.dtype, where)
        if array.dtype == stored.dtype:
            return fitted
        with np.errstate(invalid="ignore"):
            return np.where((fitted != fitted) & (stored != stored), stored, fitted)


@dataclass(frozen=True, slots=True)
class Document:
    """Values from a file or from memory.

    Attributes:
        layers: layer name, spelled as in the document -> role, or key of an undecided variable ->
            values.
        spelt: converts a layer's name in a model to the document's spelling.
    """

    where: str
    layers: Mapping[str, Mapping[str, Given]]
    spelt: Callable[[str], str] = field(default=str)


def document_of(
    arrays: Mapping[str, Array], where: str, as_stored: Callable[[str], str] = str
) -> Document:
    """Return the values in named arrays, whose keys all follow one naming.

    `as_stored` returns the name that `dump` writes for a layer's name.

    Raises:
        DamagedError: keys do not name a layer and a role.
        UnsupportedError: the file contains scale and shift.
    """
    for naming in NAMINGS.values():
        parsed = naming.parse_all(arrays)
        if parsed or not arrays:
            break
    else:
        keras = NAMINGS["keras"]
        key = next(key for key in arrays if keras.parse(key) is None)
        what, hint = "is not named LAYER/ROLE", f"the roles are {', '.join(ROLES)}"
        raise DamagedError(f"{where}, {printable(key[:200])}", what, hint)
    layers: dict[str, dict[str, Given]] = {}
    for key, (name, part) in parsed.items():
        if part in PARTS_FOLDED:
            raise refused_folded(where)
        layers.setdefault(name, {})[part] = Given(arrays[key])
    return Document(where, layers, lambda name: as_stored(naming.spell(name)))


def refused_folded(where: str) -> UnsupportedError:
    """Return the error for scale and shift, which no variable stores."""
    return UnsupportedError(
        where, "was exported with --folded, which cannot be applied", "export without --folded"
    )


def _refuse_long(texts: Array, dtype: np.dtype[np.generic], where: str) -> None:
    if dtype.itemsize >= 4 or not _is_float(dtype):
        return
    import ml_dtypes

    precision: int = ml_dtypes.finfo(dtype).nmant + 1  # type: ignore[no-untyped-call]
    most = math.ceil(precision * math.log10(2)) + 1
    for position, text in enumerate(texts.reshape(-1).tolist()):
        mantissa = re.split("[eE]", text)[0] if text not in WORDS.values() else ""
        if len(re.sub(r"[^0-9]", "", mantissa).strip("0")) > most:
            what = f"{text} has more digits than {dtype.name} holds"
            place = channel_of(texts, position, where)
            raise UnsupportedError(place, what, f"round it to {most} digits")
