"""A scan as GitHub-flavoured Markdown: a table of the models, and the counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bnstat.output.documents.differences_markdown import escaped
from bnstat.output.terminal.screen import legible
from bnstat.scanning.record import Record
from bnstat.scanning.tally import Tally


def lines(records: Iterable[Record], tally: Tally) -> Iterator[str]:
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
