"""Scans as documents, written line by line as the records come."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO, Any, BinaryIO, Final

from bnstat.errors import BnstatError
from bnstat.exchange.csv import cell
from bnstat.model import printable
from bnstat.output.results.differences import escaped
from bnstat.output.terminal.screen import legible
from bnstat.scanning.record import Record, Tally


def plain(record: Record) -> dict[str, Any]:
    """The dict: of strings, numbers and None, but for `findings`, and `error`, a dict or None."""
    error = None
    if record.trouble is not None:
        error = {"kind": record.trouble, "message": record.reason}
    return {
        "path": record.path,
        "checkpoint": record.checkpoint,
        "step": record.step,
        "format": record.format,
        "writer": record.writer,
        "layers": record.layers,
        "channels": record.channels,
        "worst": record.worst,
        "rule": record.rule,
        "findings": dict(record.findings),
        "error": error,
    }


def lines_json(records: Iterable[Record]) -> Iterator[str]:
    """The lines, in ASCII."""
    for record in records:
        yield json.dumps({"schema": 1, **plain(record)})


COLUMNS: Final = (
    *("path", "checkpoint", "step", "format", "writer", "layers", "channels", "worst", "rule"),
    *("findings", "error", "message"),
)


def dump_csv(records: Iterable[Record], file: IO[str]) -> None:
    """Write the records as they come; `file` is open for writing text, with `newline=""`.

    `findings` holds each rule's code and its number of findings: `BN001:3 BN009:1`.
    """
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in records:
        told = plain(record)
        told["findings"] = " ".join(f"{code}:{count}" for code, count in record.findings.items())
        told |= {"error": record.trouble, "message": record.reason}
        writer.writerow([_text(told[column]) for column in COLUMNS])


def _text(value: str | int | None) -> str | int | None:
    return cell(value) if isinstance(value, str) else value


def lines_markdown(records: Iterable[Record], tally: Tally) -> Iterator[str]:
    """The lines of a document; `tally` counts the records as they pass."""
    yield "| model | format | layers | worst finding |"
    yield "| --- | --- | ---: | --- |"
    for record in records:
        cells = (record.name, record.format or "", _layers(record), _worst(record))
        yield f"| {' | '.join(escaped(legible(text)) for text in cells)} |"
    yield ""
    yield f"**{tally.summary()}**"
    for code, name, count in tally.by_finding():
        yield f"- {code} {name}: {count:,}"
    for trouble, count in tally.by_trouble():
        yield f"- not readable, {trouble}: {count:,}"


def _layers(record: Record) -> str:
    return "" if record.trouble is not None else str(record.layers)


def _worst(record: Record) -> str:
    if record.trouble is not None:
        return f"{record.trouble}: {record.reason}"
    return f"{record.worst} {record.rule}" if record.worst is not None else ""


_ROWS: Final = 4096
"""So many rows are written at a time."""


def dump_parquet(records: Iterable[Record], file: BinaryIO) -> None:
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
