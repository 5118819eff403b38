"""Values in the Parquet of `bnstat export`: the table of CSV, read by the library `pyarrow`.

The numbers are float32 or float64 there. Each must be exactly a number of the stored type.
"""

from __future__ import annotations

from typing import Any, Final

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.mending.values.csv import header, layer_of, naming_of
from bnstat.mending.values.given import Document
from bnstat.model import printable
from bnstat.storage.files import File

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
