"""A scan as Parquet, by `pyarrow`: one row a model, for notebooks and query engines."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import BinaryIO, Final

from bnstat.errors import BnstatError
from bnstat.model import printable
from bnstat.output.documents.scans.plain import plain
from bnstat.scanning.record import Record

_ROWS: Final = 4096
"""So many rows are written at a time."""


def dump(records: Iterable[Record], file: BinaryIO) -> None:
    """Write the records. Texts that are not printable are written as escapes.

    Raises:
        BnstatError: `pyarrow` is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise BnstatError("--parquet", "pyarrow is not installed", "pip install pyarrow") from error
    text, number = pyarrow.string(), pyarrow.int64()
    schema = pyarrow.schema(
        {
            "path": pyarrow.field("path", text, nullable=False).type,
            **dict.fromkeys(("checkpoint", "format", "writer", "worst", "rule"), text),
            **dict.fromkeys(("step", "layers", "channels"), number),
            "findings": pyarrow.map_(text, number),
            "error": text,
            "message": text,
        }
    )
    rest = iter(records)
    with pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while rows := [_row(record) for record in islice(rest, _ROWS)]:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))


def _row(record: Record) -> dict[str, object]:
    told = plain(record)
    told["findings"] = list(record.findings.items())
    told |= {"error": record.trouble, "message": record.reason or None}
    return {
        name: printable(value) if isinstance(value, str) else value for name, value in told.items()
    }
