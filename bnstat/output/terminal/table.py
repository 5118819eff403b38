"""Aligned columns and wrapped lines that fit a screen.

`layer_table` escapes its texts. Callers of other functions escape names with `legible`.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from bnstat.output.terminal.screen import Screen, legible

GAP: Final = "  "


@dataclass(frozen=True)
class Column:
    """A column of a table; `styles` maps the index of a row to a style for `Screen.style`."""

    title: str
    cells: Sequence[str]
    right: bool = False
    styles: Mapping[int, str] = field(default_factory=dict)

    @functools.cached_property
    def width(self) -> int:
        """The width of the column on the screen."""
        return max(map(text_width, (self.title, *self.cells)))


def table(columns: Sequence[Column], screen: Screen) -> Iterator[str]:
    """Yield the lines of a table: the header, a rule if the screen has boxes, and the rows."""
    titles = [_pad(column.title, column) for column in columns]
    yield screen.style(GAP.join(titles).rstrip(), "bold")
    if screen.boxes:
        rules = [screen.glyphs.rule * column.width for column in columns]
        yield screen.style(GAP.join(rules), "dim")
    yield from rows(columns, screen)


def rows(columns: Sequence[Column], screen: Screen) -> Iterator[str]:
    """Yield the lines of a table without the header."""
    padded = []
    for column in columns:
        cells = [_pad(cell, column) for cell in column.cells]
        for row, style in column.styles.items():
            cells[row] = screen.style(cells[row], style)
        padded.append(cells)
    for row_cells in zip(*padded, strict=True):
        yield GAP.join(row_cells).rstrip()


def total_width(columns: Sequence[Column]) -> int:
    """Return the width of a table on the screen."""
    return sum(column.width for column in columns) + len(GAP) * max(0, len(columns) - 1)


def layer_table(
    layers: Sequence[str],
    columns: Sequence[Column],
    texts: Iterable[str],
    screen: Screen,
    least: int = 8,
) -> Iterator[str]:
    """Yield the lines of a table with layer names in the first column, and of a legend.

    `layers` contains a name per row; consecutive equal names are shown once. Names are shortened to
    fit the screen, but not below `least` characters. The legend consists of `texts`.
    """
    groups = [(legible(name), len(list(rows))) for name, rows in itertools.groupby(layers)]
    names, counts = [name for name, _ in groups], [count for _, count in groups]
    if screen.width is not None:
        room = screen.width - total_width(columns) - len(GAP)
        names = shorten_all(names, max(least, room), screen.glyphs.ellipsis)
    yield from table([Column("layer", spread(names, counts)), *columns], screen)
    yield ""
    yield from legend(texts, screen)


def spread(names: Sequence[str], counts: Sequence[int]) -> list[str]:
    """Return `counts[i]` cells for `names[i]`: the name, then empty cells."""
    groups = ([name, *[""] * count][:count] for name, count in zip(names, counts, strict=True))
    return list(itertools.chain.from_iterable(groups))


def facts(pairs: Iterable[tuple[str, str]], screen: Screen, width: int) -> Iterator[str]:
    """Yield a line per (label, text) pair, with the label padded to `width` columns."""
    for label, text in pairs:
        yield f"{screen.style(f'{label:{width}}', 'dim' if label else '')}  {text}"


def legend(texts: Iterable[str], screen: Screen) -> Iterator[str]:
    """Yield the lines of explanations below a table."""
    for text in texts:
        for line in wrapped(text, screen):
            yield screen.style(line, "dim")


def wrapped(line: str, screen: Screen) -> list[str]:
    """Split a text between words into lines that fit the screen."""
    if screen.width is None or text_width(line) <= screen.width:
        return [line]
    import textwrap

    return textwrap.wrap(line, screen.width, subsequent_indent=GAP, break_on_hyphens=False)


def text_width(text: str) -> int:
    """Return the width of a text on the screen."""
    if text.isascii():
        return len(text)
    return sum(map(_char_width, text))


def shorten(text: str, width: int, ellipsis: str, head: float = 0.5) -> str:
    """Cut a text in the middle if it is wider than `width`, which is at least 1.

    The start of the text gets the fraction `head` of the width, and the end gets the rest.
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
    """Shorten names, keeping different names different.

    Path components that most long names share are removed first. Names that are still
    too wide are cut in the middle. If cut names are equal, the row number is appended.
    """
    long = [name for name in names if text_width(name) > width]
    counts = Counter(part for name in long for part in set(name.split("/")))
    common = {part for part, count in counts.items() if count > max(1, len(long) / 2)}
    cut = {name: shorten(_without(name, common, ellipsis), width, ellipsis) for name in long}
    short = [cut.get(name, name) for name in names]
    occurrences = Counter(short)
    for number, text in enumerate(short):
        if occurrences[text] > 1:
            suffix = f"#{number + 1}"
            short[number] = shorten(text, max(1, width - len(suffix)), ellipsis) + suffix
    return short


def _without(name: str, parts: set[str], ellipsis: str) -> str:
    """Return a name with an ellipsis in place of each run of components that are in `parts`."""
    runs = itertools.groupby(name.split("/"), parts.__contains__)
    return "".join(ellipsis if is_cut else "/".join(run) for is_cut, run in runs)


def _pad(text: str, column: Column) -> str:
    space = " " * (column.width - text_width(text))
    return space + text if column.right else text + space


def _fitting(text: str, width: int) -> str:
    """Return the longest start of a text that is at most `width` columns wide."""
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
