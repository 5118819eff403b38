"""Scans as JSON lines, CSV, Markdown and Parquet, written as the records arrive."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO, Any, BinaryIO, Final

from bnstat.errors import BnstatError
from bnstat.exchange.csv import cell
from bnstat.model import printable
from bnstat.output import results
from bnstat.output.results.differences import escaped
from bnstat.output.terminal.screen import legible, sentence
from bnstat.scanning.record import Record, Tally

_NAMES: Final = (
    *("path", "checkpoint", "step", "format", "writer", "layers", "channels", "worst", "rule"),
)

COLUMNS: Final = (*_NAMES, "findings", "error", "message")


def plain(record: Record) -> dict[str, Any]:
    """Return a record as JSON data; `findings` is a dict, `error` is a dict or None."""
    error = None
    if record.trouble is not None:
        error = {"kind": record.trouble, "message": record.reason}
    return {
        **results.members(record, *_NAMES),
        "findings": dict(record.findings),
        "error": error,
    }


def lines_json(records: Iterable[Record]) -> Iterator[str]:
    """Yield one line of ASCII JSON per record."""
    for record in records:
        yield json.dumps({"schema": 1, **plain(record)})


def dump_csv(records: Iterable[Record], file: IO[str]) -> None:
    """Write the records as CSV.

    `findings` contains the code of each rule and its number of findings: `BN001:3 BN009:1`.
    """

    def rows() -> Iterator[list[object]]:
        for record in records:
            row = plain(record)
            row["findings"] = " ".join(f"{code}:{count}" for code, count in row["findings"].items())
            row |= {"error": record.trouble, "message": record.reason}
            yield [cell(value) if isinstance(value, str) else value for value in row.values()]

    results.write_csv(file, COLUMNS, rows())


def lines_markdown(records: Iterable[Record], tally: Tally) -> Iterator[str]:
    """Yield the lines of a Markdown document; `tally` counts the records meanwhile."""
    yield "| model | format | layers | worst finding |"
    yield "| --- | --- | ---: | --- |"
    for record in records:
        if record.trouble is not None:
            layers, worst = "", f"{record.trouble}: {sentence(record.reason)}"
        else:
            layers = str(record.layers)
            worst = "" if record.worst is None else f"{record.worst} {record.rule}"
        cells = (legible(record.name), record.format or "", layers, worst)
        yield f"| {' | '.join(escaped(text) for text in cells)} |"
    yield ""
    yield f"**{tally.summary()}**"
    for code, name, count in tally.by_finding():
        yield f"- {code} {name}: {count:,}"
    for trouble, count in tally.by_trouble():
        yield f"- not readable, {trouble}: {count:,}"


_BATCH: Final = 4096
"""The number of rows that are written at a time."""


def dump_parquet(records: Iterable[Record], file: BinaryIO) -> None:
    """Write the records as Parquet, with characters that are not printable escaped.

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
            **dict.fromkeys(("path", "checkpoint", "format", "writer", "worst", "rule"), text),
            **dict.fromkeys(("step", "layers", "channels"), number),
            "findings": pyarrow.map_(text, number),
            "error": text,
            "message": text,
        }
    )
    rest = iter(records)
    with pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while rows := [_row(record) for record in islice(rest, _BATCH)]:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))


def _row(record: Record) -> dict[str, object]:
    row = results.members(record, *_NAMES)
    row |= {"error": record.trouble, "message": record.reason or None}
    row = {
        name: printable(value) if isinstance(value, str) else value for name, value in row.items()
    }
    return {**row, "findings": list(record.findings.items())}
