"""Numbers of one type as those of another, exactly or not at all."""

from __future__ import annotations

import numpy as np

from bnstat.errors import UnsupportedError
from bnstat.model import Array, as_float64
from bnstat.output.channels import labels

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
