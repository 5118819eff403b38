"""Tables of text: aligned columns that fit a screen.

A table is given by its columns. Texts are shown as they are, so names from files are to go
through `bnstat.model.printable` first.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

from bnstat.output.terminal.screen import Screen

GAP: Final = "  "


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        title: its head.
        cells: one text a row.
        right: whether texts stand to the right.
        styles: row -> a style for `Screen.style`, for cells that stand out.
    """

    title: str
    cells: Sequence[str]
    right: bool = False
    styles: Mapping[int, str] = MappingProxyType({})

    @property
    def width(self) -> int:
        """The columns of a screen that it takes."""
        return max(map(text_width, (self.title, *self.cells)))


def table(columns: Sequence[Column], screen: Screen) -> Iterator[str]:
    """The lines of a table: its head, on a terminal a rule, then one line a row."""
    widths = [column.width for column in columns]
    titles = [
        _pad(column.title, width, column.right)
        for column, width in zip(columns, widths, strict=True)
    ]
    yield screen.style(GAP.join(titles).rstrip(), "bold")
    if screen.boxes:
        rules = [screen.glyphs.rule * width for width in widths]
        yield screen.style(GAP.join(rules), "dim")
    yield from rows(columns, screen)


def rows(columns: Sequence[Column], screen: Screen) -> Iterator[str]:
    """The lines of a table without its head."""
    padded = [_padded(column, screen) for column in columns]
    for row in zip(*padded, strict=True):
        yield GAP.join(row).rstrip()


def total_width(columns: Sequence[Column]) -> int:
    """The columns of a screen that a table takes."""
    return sum(column.width for column in columns) + len(GAP) * max(0, len(columns) - 1)


def wrapped(line: str, screen: Screen) -> list[str]:
    """A line of words as the lines that it takes on a screen."""
    if screen.width is None or text_width(line) <= screen.width:
        return [line]
    import textwrap

    return textwrap.wrap(line, screen.width, subsequent_indent=GAP)


def text_width(text: str) -> int:
    """The columns of a screen that a text takes."""
    if text.isascii():
        return len(text)
    return sum(map(_char_width, text))


def shorten(text: str, width: int, ellipsis: str, head: float = 0.5) -> str:
    """`text`, cut in the middle where it is wider than `width`.

    Args:
        text: of printable characters.
        width: how many columns of a screen it may take, at least 1.
        ellipsis: stands for what was cut.
        head: which part of the columns is for the beginning of the text.
    """
    if text_width(text) <= width:
        return text
    room = width - len(ellipsis)
    if room < 2:
        return _fitting(text, width)
    start = _fitting(text, int(room * head))
    end = _fitting(text[::-1], room - text_width(start))[::-1]
    return start + ellipsis + end


def shorten_all(names: Sequence[str], width: int, ellipsis: str) -> list[str]:
    """Different names, shortened so that they stay different.

    Parts between slashes that most of the long names have in common tell least: they go first.
    What is then still too wide is cut in the middle. Names that became alike end in the number of
    their row.
    """
    common = _common_parts([name for name in names if text_width(name) > width])
    short = [
        name
        if text_width(name) <= width
        else shorten(_without(name, common, ellipsis), width, ellipsis)
        for name in names
    ]
    counts = Counter(short)
    return [
        text if counts[text] == 1 else _numbered(text, number, width, ellipsis)
        for number, text in enumerate(short, start=1)
    ]


def _common_parts(names: Sequence[str]) -> set[str]:
    """The parts between slashes that more than half of the names have, and two at least."""
    counts = Counter(part for name in names for part in set(name.split("/")))
    return {part for part, count in counts.items() if count > max(1, len(names) / 2)}


def _without(name: str, parts: set[str], ellipsis: str) -> str:
    """`name` with an ellipsis for each run of such parts and the slashes around it."""
    kept = []
    for is_cut, run in itertools.groupby(name.split("/"), parts.__contains__):
        kept.append(ellipsis if is_cut else "/".join(run))
    return "".join(kept)


def _numbered(text: str, number: int, width: int, ellipsis: str) -> str:
    suffix = f"#{number}"
    return shorten(text, max(1, width - len(suffix)), ellipsis) + suffix


def _padded(column: Column, screen: Screen) -> list[str]:
    width = column.width
    cells = [_pad(cell, width, column.right) for cell in column.cells]
    for row, style in column.styles.items():
        cells[row] = screen.style(cells[row], style)
    return cells


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - text_width(text))
    return space + text if right else text + space


def _fitting(text: str, width: int) -> str:
    """The longest beginning of `text` that fits in so many columns."""
    taken = 0
    for position, char in enumerate(text):
        taken += _char_width(char)
        if taken > width:
            return text[:position]
    return text


@functools.cache
def _char_width(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
