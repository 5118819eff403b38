"""What standard output can show: its width, colours, boxes and characters.

A terminal gets boxes and, unless `NO_COLOR` is set, colours, and rows that fit its width. A pipe
or a file gets plain text in rows as long as they need to be; `COLUMNS` bounds them, and
`FORCE_COLOR` adds colours and boxes. `NO_COLOR` wins over `FORCE_COLOR`.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Final, NamedTuple, TextIO, TypeVar

import click

from bnstat.model import printable

if TYPE_CHECKING:
    from rich.progress import Progress


class Glyphs(NamedTuple):
    """The characters that output is drawn with.

    Attributes:
        plus_minus: between a mean and its deviation.
        ellipsis: where a name was shortened.
        rule: a line under a table's head is made of it.
        blocks: bars of growing height, for histograms; empty where there are none to draw with.
    """

    plus_minus: str
    ellipsis: str
    rule: str
    blocks: str


UNICODE: Final = Glyphs("±", "…", "─", "▁▂▃▄▅▆▇█")
ASCII: Final = Glyphs("+-", "..", "-", "")

_LONGEST_TEXT: Final = 512


class Screen(NamedTuple):
    """What one stream can show.

    Attributes:
        width: the columns of a terminal; None where rows may be of any length.
        colour: whether it takes colours.
        boxes: whether lines are drawn.
        glyphs: the characters that its encoding has.
    """

    width: int | None = None
    colour: bool = False
    boxes: bool = False
    glyphs: Glyphs = UNICODE

    @classmethod
    def of(cls, stream: TextIO) -> Screen:
        """What `stream` can show, by what it is and by the environment."""
        terminal = stream.isatty()
        forced = bool(os.environ.get("FORCE_COLOR"))
        coloured = forced or (terminal and os.environ.get("TERM") != "dumb")
        return cls(
            width=_width(stream, terminal),
            colour=coloured and not os.environ.get("NO_COLOR"),
            boxes=terminal or forced,
            glyphs=UNICODE if _carries(stream, UNICODE) else ASCII,
        )

    def style(self, text: str, style: str) -> str:
        """`text` in a style: `bold`, `dim` or the name of a colour; unchanged without colours."""
        if not self.colour or not style:
            return text
        if style == "bold":
            return click.style(text, bold=True)
        if style == "dim":
            return click.style(text, dim=True)
        return click.style(text, fg=style)


def legible(text: str) -> str:
    """A text from a file, made safe to show: printable, and cut in the middle if it is huge."""
    if len(text) > _LONGEST_TEXT:
        text = f"{text[: _LONGEST_TEXT // 2]}...{text[-_LONGEST_TEXT // 2 :]}"
    return printable(text)


def encodable(text: str, stream: TextIO) -> str:
    """`text` with escapes for the characters that the stream's encoding does not have."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _width(stream: TextIO, terminal: bool) -> int | None:
    columns = os.environ.get("COLUMNS", "")
    if columns.isascii() and columns.isdecimal() and int(columns) > 0:
        return int(columns)
    return (os.get_terminal_size(stream.fileno()).columns or 80) if terminal else None


def _carries(stream: TextIO, glyphs: Glyphs) -> bool:
    text = glyphs.plus_minus + glyphs.ellipsis + glyphs.rule + glyphs.blocks
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


Item = TypeVar("Item")

_PATIENCE = 1.0


def track(items: Iterable[Item], what: str, *, hidden: bool = False) -> Iterator[Item]:
    """Pass the items on; after a second, show on a terminal how many of them are done.

    Args:
        items: the pieces of the work; where they have a length, the bar tells how much is left.
        what: what is being done, such as `reading`.
        hidden: show nothing, as under `-q`, or where standard output is the same terminal.
    """
    if hidden or sys.stderr is None or not sys.stderr.isatty():
        yield from items
        return
    bar = _Bar(what, len(items) if isinstance(items, Sized) else None)
    try:
        for item in items:
            yield item
            bar.done += 1
    finally:
        bar.close()


class _Bar:
    """A bar that a timer shows, so that even the first item can be a long one."""

    def __init__(self, what: str, total: int | None) -> None:
        self.done = 0
        self._what = what
        self._total = total
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _show(self) -> None:
        if self._closed.wait(_PATIENCE):
            return
        with _progress() as progress:
            task = progress.add_task(self._what, total=self._total)
            while not self._closed.wait(0.1):
                progress.update(task, completed=self.done)


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import Progress

    return Progress(console=Console(stderr=True), transient=True)
