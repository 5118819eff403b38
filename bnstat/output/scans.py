"""A scan as text, JSON lines, CSV, Markdown and Parquet, written as the records arrive."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, BinaryIO, Final

from bnstat.exchange.csv import cell
from bnstat.model import printable
from bnstat.output.documents import csv_document, escaped, members
from bnstat.output.findings import STYLES
from bnstat.output.terminal.screen import Screen, legible, sentence
from bnstat.output.terminal.table import GAP, Column, rows, shorten, wrapped
from bnstat.scanning.record import Record, Tally

_NAMES: Final = (
    *("path", "checkpoint", "step", "format", "writer", "layers", "channels", "worst", "rule"),
)

COLUMNS: Final = (*_NAMES, "findings", "error", "message")

_WORST: Final = 13
_FORMAT: Final = 17
_LAYERS: Final = 6
_BEFORE: Final = _WORST + _LAYERS + _FORMAT + 3 * len(GAP)
"""The widths of the columns are fixed, because records arrive one by one."""

_LEAST: Final = 12


def text_lines(records: Iterable[Record], tally: Tally, screen: Screen) -> Iterator[str]:
    """Yield a line per record, then the totals. `tally` counts records as they are consumed."""
    for number, record in enumerate(records):
        if not number:
            titles = GAP.join((f"{'worst':{_WORST}}", "layers", f"{'format':{_FORMAT}}", "model"))
            yield screen.style(titles, "bold")
        yield from _record(record, screen)
    if tally.models:
        yield ""
    yield from counts(tally, screen)


def counts(tally: Tally, screen: Screen) -> Iterator[str]:
    """Yield the totals, and the number of models per rule and per kind of read error."""
    yield from wrapped(tally.summary(), screen)
    counted = [
        *((code, name, f"{count:,}") for code, name, count in tally.by_finding()),
        *((kind, "not readable", f"{count:,}") for kind, count in tally.troubles.most_common()),
    ]
    if counted:
        codes, names, numbers = zip(*counted, strict=True)
        columns = [Column("", codes), Column("", names), Column("", numbers, right=True)]
        yield from (GAP + line for line in rows(columns, screen))


def _record(record: Record, screen: Screen) -> Iterator[str]:
    reason = sentence(record.reason)
    path, lines = legible(record.name), []
    if screen.width is not None:
        room = max(_LEAST, screen.width - _BEFORE - 1)
        path = shorten(path, room, screen.glyphs.ellipsis, head=0)
        lines = textwrap.wrap(reason, max(_LEAST, screen.width - 2 * len(GAP) - 1))
    elif reason:
        path += f": {reason}"
    style = "red" if record.trouble is not None else STYLES.get(record.worst or "", "")
    worst = screen.style(f"{_worst(record):{_WORST}}", style)
    layers = "" if record.trouble is not None else str(record.layers)
    yield f"{worst}{GAP}{layers:>{_LAYERS}}{GAP}{record.format or '':{_FORMAT}}{GAP}{path}"
    for line in lines:
        yield screen.style(2 * GAP + line, "dim")


def _worst(record: Record) -> str:
    """Return the kind of the read error, or the most serious finding, such as `error BN001`."""
    finding = "" if record.worst is None else f"{record.worst} {record.rule}"
    return record.trouble or finding


def json_lines(records: Iterable[Record]) -> Iterator[str]:
    """Yield one line of ASCII JSON per record; `error` is null if the model could be read."""
    for record in records:
        document = {"schema": 1, **members(record, *_NAMES), "findings": dict(record.findings)}
        error = {"kind": record.trouble, "message": record.reason}
        yield json.dumps({**document, "error": None if record.trouble is None else error})


def csv_lines(records: Iterable[Record]) -> Iterator[str]:
    """Yield the lines of a CSV document. One cell has all findings as `CODE:COUNT CODE:COUNT`."""

    def rows() -> Iterator[list[object]]:
        for record in records:
            row = _columns(record)
            row["findings"] = " ".join(f"{code}:{count}" for code, count in record.findings.items())
            yield [cell(value) if isinstance(value, str) else value for value in row.values()]

    return csv_document(COLUMNS, rows())


def _columns(record: Record) -> dict[str, Any]:
    columns = members(record, *_NAMES, "findings")
    return {**columns, "error": record.trouble, "message": record.reason}


def markdown_lines(records: Iterable[Record], tally: Tally) -> Iterator[str]:
    """Yield a Markdown table, then the totals. `tally` counts records as they are consumed."""
    yield "| model | format | layers | worst finding |"
    yield "| --- | --- | ---: | --- |"
    for record in records:
        layers, worst = str(record.layers), _worst(record)
        if record.trouble is not None:
            layers, worst = "", f"{worst}: {sentence(record.reason)}"
        cells = (legible(record.name), record.format or "", layers, worst)
        yield f"| {' | '.join(map(escaped, cells))} |"
    yield ""
    yield f"**{tally.summary()}**"
    for code, name, count in tally.by_finding():
        yield f"- {code} {name}: {count:,}"
    for trouble, count in tally.troubles.most_common():
        yield f"- not readable, {trouble}: {count:,}"


_BATCH: Final = 4096  # the number of rows that are written at a time


def dump_parquet(records: Iterable[Record], file: BinaryIO) -> None:
    """Write the records as Parquet, and escape characters that are not printable."""
    from bnstat.exchange.parquet import libraries

    pyarrow, parquet = libraries()
    text, number = pyarrow.string(), pyarrow.int64()
    schema = pyarrow.schema(
        {
            **dict.fromkeys(("path", "checkpoint", "format", "writer", "worst", "rule"), text),
            **dict.fromkeys(("step", "layers", "channels"), number),
            "findings": pyarrow.map_(text, number),
            **dict.fromkeys(("error", "message"), text),
        }
    )
    rest = iter(records)
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while batch := list(islice(rest, _BATCH)):
            rows = []
            for record in batch:
                row = {**_columns(record), "findings": list(record.findings.items())}
                row["message"] = record.reason or None
                texts = {key: printable(text) for key, text in row.items() if isinstance(text, str)}
                rows.append(row | texts)
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))
