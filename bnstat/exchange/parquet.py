"""The values of a model as Parquet: the same table as in CSV, written and read with `pyarrow`.

The columns `layer` and `channel` are strings. The other columns are float32, or float64 if any
variable has a type other than float16, bfloat16 and float32. A cell is null if the layer lacks the
role.
"""

from __future__ import annotations

from itertools import repeat
from math import prod
from typing import Any, BinaryIO, Final

import numpy as np

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.exchange.csv import largest_shape, read_table
from bnstat.exchange.decimals import labels
from bnstat.exchange.naming import DEFAULTS, ExportOptions
from bnstat.exchange.values import Document
from bnstat.model import Array, Model, as_float64, printable
from bnstat.storage.files import File

_MAGIC: Final = b"PAR1"
_MOST_CELLS: Final = 1 << 28
_MOST_COLUMNS: Final = 16
_MOST_BYTES: Final = 1 << 30
_ROWS: Final = 1 << 12
"""The number of rows that are read at a time."""


def dump(model: Model, file: BinaryIO, options: ExportOptions = DEFAULTS) -> None:
    """Write a model as Parquet; see `ExportModule.dump`."""
    arrow, parquet = libraries()
    dtypes = {variable.dtype for layer in model for variable in layer.variables.values()}
    is_narrow = dtypes <= {"float16", "bfloat16", "float32"}
    dtype = np.dtype(np.float32 if is_narrow else np.float64)
    kind = arrow.from_numpy_dtype(dtype)
    fields = [("layer", arrow.string()), ("channel", arrow.string())]
    schema = arrow.schema([*fields, *((label, kind) for label in options.labels)])
    with parquet.ParquetWriter(file, schema) as writer:
        for layer in options.track(model.layers):
            arrays = [options.array(layer, part) for part in options.parts]
            shape = largest_shape(layer.name, arrays)
            size = prod(shape)
            name = printable(options.name(layer))
            columns = [
                arrow.array(repeat(name, size), arrow.string(), size=size),
                arrow.array(labels(shape, 0, size), arrow.string()),
                *(arrow.array(_column(array, size, dtype), kind) for array in arrays),
            ]
            writer.write_table(arrow.table(columns, schema))


def libraries() -> tuple[Any, Any]:
    """Return the modules `pyarrow` and `pyarrow.parquet`."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UnsupportedError(
            "Parquet", "needs pyarrow, which is not installed", "pip install pyarrow"
        ) from error
    return pyarrow, parquet


def _column(
    array: Array | None, size: int, dtype: np.dtype[np.generic]
) -> list[float | None] | Array:
    if array is None:
        return [None] * size
    numbers = as_float64(array).ravel()
    if numbers.size == size:
        return numbers.astype(dtype)
    return [*numbers.tolist(), *[None] * (size - numbers.size)]


def matches(file: File) -> bool:
    """Return True for a Parquet file."""
    return file.head(len(_MAGIC)) == _MAGIC


def read(file: File) -> Document:
    """Read the values in a file; see `ExportModule.read`."""
    arrow, parquet = libraries()
    try:
        source = arrow.BufferReader(file.read())
        opened = parquet.ParquetFile(source)
        _refuse_too_large(file.path, opened.metadata)
        schema = opened.schema_arrow
        are_texts = [_is_text(arrow, field.type) for field in schema]
        for field, is_text in zip(schema, are_texts, strict=True):
            if not (is_text or _is_number(arrow, field.type)):
                what = f"column {printable(field.name[:40])!r} contains neither text nor numbers"
                raise DamagedError(file.path, what)
        # A dictionary contains a text once, however many rows repeat it.
        texts = [name for name, is_text in zip(schema.names, are_texts, strict=True) if is_text]
        opened = parquet.ParquetFile(source, read_dictionary=texts)
        columns: list[list[Any]] = [[] for _ in schema]
        size = 0
        for batch in opened.iter_batches(_ROWS, use_threads=False):
            batch.validate(full=True)  # pyarrow does not check the indices of a dictionary.
            size += batch.nbytes
            if size > _MOST_BYTES:
                raise _too_large(file.path)
            for cells, column, is_text in zip(columns, batch.columns, are_texts, strict=True):
                cells += _texts(column) if is_text else column.to_pylist()
    except (arrow.ArrowException, OSError, ValueError) as error:
        message = str(error).partition("\n")[0]
        raise DamagedError(file.path, f"is not a valid Parquet file ({message})") from error
    rows = enumerate(zip(*columns, strict=True), 1)
    return read_table(
        file.path, schema.names, ((f"row {number}", row) for number, row in rows), printable
    )


def _refuse_too_large(path: str, metadata: Any) -> None:
    columns = metadata.num_columns
    if columns > _MOST_COLUMNS or columns * metadata.num_rows > _MOST_CELLS:
        what = f"is above the limit of {_MOST_COLUMNS} columns or {_MOST_CELLS:,} cells"
        raise UnsupportedError(path, what)
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    if sum(group.total_byte_size for group in groups) > _MOST_BYTES:
        raise _too_large(path)


def _too_large(path: str) -> UnsupportedError:
    return UnsupportedError(path, "is above the limit of 1 GiB in memory")


def _is_text(arrow: Any, kind: Any) -> bool:
    types = arrow.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return any(
        is_text(kind) for is_text in (types.is_string, types.is_large_string, types.is_string_view)
    )


def _is_number(arrow: Any, kind: Any) -> bool:
    return bool(arrow.types.is_primitive(kind) or arrow.types.is_null(kind))


def _texts(column: Any) -> list[str | None]:
    texts = column.dictionary.to_pylist()
    return [None if at is None else texts[at] for at in column.indices.to_pylist()]
