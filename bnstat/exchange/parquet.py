"""A model as Parquet, the same table as in CSV: one row a channel, by the library `pyarrow`.

Columns `layer` and `channel` are text, the others float32, or float64 where a layer is of that.
A cell is null where the layer lacks the role.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from math import prod
from typing import Any, BinaryIO, Final

import numpy as np

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.exchange.csv import header, layer_of, naming_of
from bnstat.exchange.form import Form
from bnstat.exchange.values import Document
from bnstat.model import Array, BatchNorm, Model, as_float64, printable
from bnstat.output.numbers import labels
from bnstat.storage.files import File


def dump(
    model: Model,
    file: BinaryIO,
    form: Form,
    *,
    track: Callable[[Sequence[BatchNorm]], Iterable[BatchNorm]] = iter,
) -> None:
    """Write a model as Parquet.

    Args:
        model: what to write.
        file: open for writing bytes.
        form: what is written, and under which names.
        track: passes the layers on, such as to show progress.

    Raises:
        BnstatError: a variable cannot be read, or `pyarrow` is not installed.
    """
    arrow, parquet = _libraries()
    wide = any(
        variable.dtype not in ("float16", "bfloat16", "float32")
        for layer in model.layers
        for variable in layer.variables.values()
    )
    dtype = np.dtype(np.float64 if wide else np.float32)
    kind = arrow.from_numpy_dtype(dtype)
    fields = [("layer", arrow.string()), ("channel", arrow.string())]
    schema = arrow.schema([*fields, *((label, kind) for label in form.labels)])
    with parquet.ParquetWriter(file, schema) as writer:
        for layer in track(model.layers):
            arrays = [form.array(layer, part) for part in form.parts]
            shape = max((each.shape for each in arrays if each is not None), key=prod, default=(0,))
            size = prod(shape)
            columns = [
                arrow.array(repeat(printable(form.name(layer)), size), arrow.string(), size=size),
                arrow.array(labels(shape, 0, size), arrow.string()),
                *(arrow.array(_column(each, size, dtype), kind) for each in arrays),
            ]
            writer.write_table(arrow.table(columns, schema))


def _libraries() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UnsupportedError("Parquet", "is written by pyarrow", "pip install pyarrow") from error
    return pyarrow, parquet


def _column(
    array: Array | None, size: int, dtype: np.dtype[np.generic]
) -> list[float | None] | Array:
    """A role's numbers; None where there is no array, or it has fewer elements."""
    if array is None:
        return [None] * size
    numbers = as_float64(array).ravel()
    if numbers.size == size:
        return numbers.astype(dtype)
    return [*numbers.tolist(), *[None] * (size - numbers.size)]


MAGIC: Final = b"PAR1"
_LARGEST: Final = 1 << 30
_MOST_CELLS: Final = 1 << 28
_MOST_COLUMNS: Final = 16


def read(file: File) -> Document:
    """Return the values in a Parquet file.

    Raises:
        DamagedError: the file is damaged, or is not such a table.
        UnsupportedError: the file is too large, or `pyarrow` is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UnsupportedError(
            file.path, "Parquet is read by pyarrow, which is not installed", "pip install pyarrow"
        ) from error
    if file.size > _LARGEST:
        raise UnsupportedError(file.path, "is too large for Parquet", "use NPZ")
    try:
        table = _table(parquet.ParquetFile(pyarrow.BufferReader(file.read())), file.path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        message = str(error).partition("\n")[0]
        raise DamagedError(file.path, f"is not a valid Parquet file ({message})") from error
    names = list(table)
    if not {"layer", "channel"} <= {*names}:
        raise DamagedError(file.path, "has no columns 'layer' and 'channel'")
    naming = naming_of(names)
    roles, layer_at, channel_at, _ = header(names, naming, file.path)
    tables: dict[str, dict[str, tuple[int, list[Any]]]] = {}
    for number, row in enumerate(zip(*table.values(), strict=True), 1):
        where = f"{file.path}, row {number}"
        layer, channel = row[layer_at], row[channel_at]
        cells = [row[at] for at in roles.values()]
        if not isinstance(layer, str) or not isinstance(channel, str):
            raise DamagedError(where, "has no layer or no channel")
        if not all(cell is None or isinstance(cell, float) for cell in cells):
            raise DamagedError(where, "has a cell that is not a number")
        rows = tables.setdefault(layer, {})
        if channel in rows:
            raise DamagedError(where, f"channel {channel[:40]!r} is there a second time")
        rows[channel] = number, cells
    layers = {
        name: layer_of(tuple(roles), rows, f"{file.path}, {printable(name[:200])}")
        for name, rows in tables.items()
    }
    return Document(file.path, "Parquet", layers, lambda name: printable(naming.spelt(name)))


def _table(opened: Any, path: str) -> dict[str, list[Any]]:
    """Return the columns of a table by their names."""
    columns = opened.metadata.num_columns
    if columns > _MOST_COLUMNS or columns * opened.metadata.num_rows > _MOST_CELLS:
        raise UnsupportedError(path, "is too large for Parquet", "use NPZ")
    result: dict[str, list[Any]] = opened.read(use_threads=False).to_pydict()
    return result
