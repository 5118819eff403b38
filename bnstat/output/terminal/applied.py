"""What was written into a copy, for people: one row a role that has other values now."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from bnstat.mending.applied import Applied, Change
from bnstat.output.numbers import compact
from bnstat.output.terminal.differences import MATCHES, source_line
from bnstat.output.terminal.screen import Screen, legible
from bnstat.output.terminal.table import Column, shorten_all, table, total_width

_LEAST_NAME: Final = 8
_NAMES_SHOWN: Final = 10


def lines(applied: Applied, screen: Screen) -> Iterator[str]:
    """The lines that show what `apply` has written."""
    yield from _wrap(f"model   {source_line(applied.source)}", screen)
    if applied.values is not None:
        yield from _wrap(f"values  {legible(applied.values)}", screen)
    yield from _wrap(f"copy    {legible(applied.output)}", screen)
    yield ""
    moved = [change for change in applied.changes if change.moved]
    if moved:
        yield from _table(moved, screen)
        yield ""
        legend = "moved: values that are others than before; largest: the largest change"
        for line in _wrap(legend, screen):
            yield screen.style(line, "dim")
        yield ""
    yield from _wrap(_paired(applied.changes), screen)
    yield from _wrap(verdict(applied), screen)


def verdict(applied: Applied) -> str:
    """One line: how much was written, and what was not."""
    layers = len({change.layer for change in applied.changes})
    values = sum(change.channels for change in applied.changes)
    line = (
        f"{layers} layer{'s' * (layers != 1)} written, {applied.moved:,} of {values:,} values new"
    )
    left = len(applied.untouched)
    return line + (f"; {left} layer{'s' * (left != 1)} left as before" if left else "")


def _paired(changes: Sequence[Change]) -> str:
    """How the layers were found, where it was not by their names; else nothing."""
    found = {change.layer: change for change in changes}
    renamed = [change for change in found.values() if change.given_as != change.layer]
    if not renamed or all(change.match == "name" for change in renamed):
        return ""
    counts = Counter(change.match for change in found.values())
    matched = ", ".join(f"{counts[match]} {MATCHES[match]}" for match in MATCHES if counts[match])
    pairs = [f"{legible(one.given_as)} -> {legible(one.layer)}" for one in renamed[:_NAMES_SHOWN]]
    more = ", ..." if len(renamed) > _NAMES_SHOWN else ""
    return f"layers matched {matched}: {', '.join(pairs)}{more}"


def _table(changes: Sequence[Change], screen: Screen) -> Iterator[str]:
    columns = [
        Column("role", [change.role.replace("_", " ") for change in changes]),
        Column("moved", [f"{one.moved} of {one.channels}" for one in changes], right=True),
        Column("largest", [compact(change.largest, 3) for change in changes], right=True),
    ]
    names = {change.layer: legible(change.layer) for change in changes}
    if screen.width is not None:
        room = max(_LEAST_NAME, screen.width - total_width(columns) - 2)
        shortened = shorten_all(list(names.values()), room, screen.glyphs.ellipsis)
        names = dict(zip(names, shortened, strict=True))
    left = [names.pop(change.layer, "") for change in changes]
    yield from table([Column("layer", left), *columns], screen)


def _wrap(line: str, screen: Screen) -> list[str]:
    if screen.width is None:
        return [line] if line else []
    return textwrap.wrap(line, screen.width, subsequent_indent="  ", break_on_hyphens=False)
