"""A model as a data frame, of pandas or of Polars."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import UnsupportedError
from bnstat.model import ROLES, Array, BatchNorm, Model
from bnstat.output.numbers import portable

Library = Literal["pandas", "polars"]

_LIBRARIES: Final[tuple[Library, ...]] = ("pandas", "polars")


def frame(model: Model, library: Library | None = None) -> Any:
    """See `Model.to_frame`."""
    chosen = library or _at_hand()
    if find_spec(chosen) is None:
        raise UnsupportedError(chosen, "is not installed", f"pip install {chosen}")
    model.read(model.layers)
    sizes = [_size(layer) for layer in model.layers]
    names = np.array([layer.name for layer in model.layers], object)
    channels = [np.arange(size, dtype=np.int64) for size in sizes]
    columns: dict[str, Any] = {
        "layer": np.repeat(names, sizes),
        "channel": np.concatenate([np.empty(0, np.int64), *channels]),
    }
    numbers = {role: _column(model, role, sizes) for role in ROLES}
    if chosen == "pandas":
        import pandas

        columns |= {role: _with_nan(*numbers[role]) for role in ROLES}
        return pandas.DataFrame(columns)
    import polars

    table = polars.DataFrame(
        {"layer": columns["layer"].tolist(), "channel": columns["channel"]},
        schema={"layer": polars.String, "channel": polars.Int64},
    )
    return table.with_columns(
        polars.when(polars.Series(present)).then(polars.Series(values)).alias(role)
        for role, (values, present) in numbers.items()
    )


def _at_hand() -> Library:
    """The library that the program uses already, else one that is installed."""
    for library in _LIBRARIES:
        if library in sys.modules:
            return library
    for library in _LIBRARIES:
        if find_spec(library) is not None:
            return library
    raise UnsupportedError(
        "to_frame", "neither pandas nor Polars is installed", "pip install pandas, or polars"
    )


def _column(model: Model, role: str, sizes: list[int]) -> tuple[Array, NDArray[np.bool_]]:
    """The numbers of all layers, 0 where one lacks them, and where they are there."""
    arrays = [layer.array(role) for layer in model.layers]
    flat = [None if array is None else portable(array).ravel() for array in arrays]
    kinds = [array.dtype for array in flat if array is not None]
    values = np.zeros(sum(sizes), np.result_type(*kinds) if kinds else np.float32)
    present = np.zeros(values.size, bool)
    start = 0
    for array, size in zip(flat, sizes, strict=True):
        if array is not None:
            values[start : start + array.size] = array
            present[start : start + array.size] = True
        start += size
    return values, present


def _with_nan(values: Array, present: NDArray[np.bool_]) -> Array:
    if present.all():
        return values
    kind = np.result_type(values.dtype, np.float16)
    return np.where(present, values.astype(kind), np.array(np.nan, kind))


def _size(layer: BatchNorm) -> int:
    """The number of the layer's channels, of its longest variable if they do not agree."""
    arrays = (layer.array(role) for role in ROLES)
    return max((array.size for array in arrays if array is not None), default=0)
