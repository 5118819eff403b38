"""A model as a data frame, of pandas or of Polars."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import UnsupportedError
from bnstat.exchange.decimals import portable
from bnstat.model import ROLES, Array, Model

Library = Literal["pandas", "polars"]

_LIBRARIES: Final[tuple[Library, ...]] = ("pandas", "polars")


def frame(model: Model, library: Library | None = None) -> Any:
    """See `Model.to_frame`."""
    library = library or _default_library()
    if find_spec(library) is None:
        raise UnsupportedError(library, "is not installed", f"pip install {library}")
    model.read(model.layers)
    layers = [
        {role: array for role in ROLES if (array := layer.array(role)) is not None}
        for layer in model.layers
    ]
    sizes = [max((array.size for array in arrays.values()), default=0) for arrays in layers]
    names = np.array([layer.name for layer in model.layers], object)
    columns: dict[str, Any] = {
        "layer": np.repeat(names, sizes),
        "channel": np.concatenate([np.arange(size) for size in (0, *sizes)]).astype(np.int64),
    }
    numbers = {role: _column([arrays.get(role) for arrays in layers], sizes) for role in ROLES}
    if library == "pandas":
        import pandas

        columns |= {role: _with_nan(*numbers[role]) for role in ROLES}
        return pandas.DataFrame(columns)
    import polars

    table = polars.DataFrame(
        {"layer": columns["layer"].tolist(), "channel": columns["channel"]},
        schema={"layer": polars.String, "channel": polars.Int64},
    )
    return table.with_columns(
        polars.when(polars.Series(is_stored)).then(polars.Series(values)).alias(role)
        for role, (values, is_stored) in numbers.items()
    )


def _default_library() -> Library:
    """Return the data-frame library that is already imported, or else an installed one."""
    imported = [library for library in _LIBRARIES if library in sys.modules]
    for library in (*imported, *_LIBRARIES):
        if library in imported or find_spec(library) is not None:
            return library
    raise UnsupportedError(
        "to_frame", "neither pandas nor Polars is installed", "pip install pandas, or polars"
    )


def _column(arrays: list[Array | None], sizes: list[int]) -> tuple[Array, NDArray[np.bool_]]:
    """Return the numbers of all layers (0 where not stored), and a mask of stored numbers."""
    flat = [None if array is None else portable(array).ravel() for array in arrays]
    kinds = [array.dtype for array in flat if array is not None]
    values = np.zeros(sum(sizes), np.result_type(*kinds) if kinds else np.float32)
    is_stored = np.zeros(values.size, bool)
    start = 0
    for array, size in zip(flat, sizes, strict=True):
        if array is not None:
            values[start : start + array.size] = array
            is_stored[start : start + array.size] = True
        start += size
    return values, is_stored


def _with_nan(values: Array, is_stored: NDArray[np.bool_]) -> Array:
    if is_stored.all():
        return values
    kind = np.result_type(values.dtype, np.float16)
    return np.where(is_stored, values.astype(kind), np.array(np.nan, kind))
