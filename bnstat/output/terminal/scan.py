"""Text about a scan: a line for each model, and the counts."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Final

from bnstat.output.terminal.findings import STYLES
from bnstat.output.terminal.screen import Screen, legible, sentence
from bnstat.output.terminal.table import GAP, Column, rows, shorten, wrapped
from bnstat.scanning.record import Record, Tally

_WORST: Final = 13
_FORMAT: Final = 17
_LAYERS: Final = 6
_BEFORE: Final = _WORST + _LAYERS + _FORMAT + 3 * len(GAP)
"""The widths of the columns are fixed, because records arrive one by one."""

_LEAST: Final = 12


def lines(records: Iterable[Record], tally: Tally, screen: Screen) -> Iterator[str]:
    """Yield a line per record, then the counts; `tally` counts the records meanwhile."""
    for number, record in enumerate(records):
        if not number:
            titles = GAP.join((f"{'worst':{_WORST}}", "layers", f"{'format':{_FORMAT}}", "model"))
            yield screen.style(titles, "bold")
        yield from _record(record, screen)
    if tally.models:
        yield ""
    yield from counts(tally, screen)


def counts(tally: Tally, screen: Screen) -> Iterator[str]:
    """Yield the lines with the counts."""
    yield from wrapped(tally.summary(), screen)
    counted = [
        *((code, name, f"{count:,}") for code, name, count in tally.by_finding()),
        *((trouble, "not readable", f"{count:,}") for trouble, count in tally.by_trouble()),
    ]
    if counted:
        codes, names, numbers = zip(*counted, strict=True)
        columns = [Column("", codes), Column("", names), Column("", numbers, right=True)]
        yield from (GAP + line for line in rows(columns, screen))


def _record(record: Record, screen: Screen) -> Iterator[str]:
    room = None if screen.width is None else max(_LEAST, screen.width - _BEFORE - 1)
    name = legible(record.name)
    path = name if room is None else shorten(name, room, screen.glyphs.ellipsis, head=0)
    if record.trouble is not None:
        worst, style, layers, format_ = str(record.trouble), "red", "", ""
    else:
        worst = "" if record.worst is None else f"{record.worst} {record.rule}"
        style = "" if record.worst is None else STYLES[record.worst]
        layers, format_ = str(record.layers), record.format or ""
    start = screen.style(f"{worst:{_WORST}}", style)
    start += f"{GAP}{layers:>{_LAYERS}}{GAP}{format_:{_FORMAT}}{GAP}{path}"
    if not record.reason:
        yield start
    elif screen.width is None:
        yield f"{start}: {sentence(record.reason)}"
    else:
        yield start
        for line in textwrap.wrap(sentence(record.reason), screen.width - 2 * len(GAP) - 1):
            yield screen.style(2 * GAP + line, "dim")
