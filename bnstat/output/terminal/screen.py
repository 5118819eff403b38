"""The abilities of an output stream, and progress bars on a terminal.

A terminal gets boxes, colours and rows that fit its width. A pipe or a file gets plain text in
rows of any length. `COLUMNS` sets the width, `FORCE_COLOR` adds colours and boxes, and `NO_COLOR`
removes colours, even if `FORCE_COLOR` is set.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sized
from typing import Final, NamedTuple, TextIO, TypeVar

import click

from bnstat.model import printable


class Glyphs(NamedTuple):
    """Characters for drawing; `blocks` contains bars of growing height, or is empty."""

    plus_minus: str
    ellipsis: str
    rule: str
    blocks: str


UNICODE: Final = Glyphs("±", "…", "─", "▁▂▃▄▅▆▇█")
ASCII: Final = Glyphs("+-", "..", "-", "")

_LONGEST_NAME: Final = 512
_LONGEST_SENTENCE: Final = 8192
"""The limit on a message; a longer one contains text that cannot be a real name or path."""


class Screen(NamedTuple):
    """The abilities of an output stream.

    `width` is None if rows can have any length. `boxes` draws lines in tables and charts.
    """

    width: int | None = None
    colour: bool = False
    boxes: bool = False
    glyphs: Glyphs = UNICODE

    @classmethod
    def of(cls, stream: TextIO) -> Screen:
        """Return the abilities of a stream, which environment variables can override."""
        terminal, drawn = stream.isatty(), "".join(UNICODE)
        forced = bool(os.environ.get("FORCE_COLOR"))
        coloured = forced or (terminal and os.environ.get("TERM") != "dumb")
        columns, width = os.environ.get("COLUMNS", ""), None
        if columns.isascii() and columns.isdecimal() and int(columns) > 0:
            width = int(columns)
        elif terminal:
            width = os.get_terminal_size(stream.fileno()).columns or 80
        colour = coloured and not os.environ.get("NO_COLOR")
        glyphs = UNICODE if encodable(drawn, stream) == drawn else ASCII
        return cls(width, colour, terminal or forced, glyphs)

    def style(self, text: str, style: str) -> str:
        """Return a text in a style: `bold`, `dim` or the name of a colour."""
        if not self.colour or not style:
            return text
        if style in ("bold", "dim"):
            return click.style(text, **{style: True})
        return click.style(text, fg=style)


def legible(name: str) -> str:
    """Return a name or path as printable text, cut in the middle if it is very long."""
    return printable(name, _LONGEST_NAME)


def sentence(text: str) -> str:
    """Return a message as printable text, cut in the middle if it is very long."""
    return printable(text, _LONGEST_SENTENCE)


def encodable(text: str, stream: TextIO) -> str:
    """Return a text with escapes for characters that the stream's encoding lacks."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


Item = TypeVar("Item")

_DELAY = 1.0


def track(items: Iterable[Item], what: str, *, hidden: bool = False) -> Iterator[Item]:
    """Yield the items. On a terminal, show a progress bar after a second unless `hidden`.

    The bar shows the task `what`, such as `reading`, and the number of finished items.
    """
    if hidden or sys.stderr is None or not sys.stderr.isatty():
        yield from items
        return
    done = 0
    closed = threading.Event()

    def show() -> None:
        """Show the bar. This runs in a thread, because the first item may be slow."""
        if closed.wait(_DELAY):
            return
        from rich.console import Console
        from rich.progress import Progress

        total = len(items) if isinstance(items, Sized) else None
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(what, total=total)
            while not closed.wait(0.1):
                progress.update(task, completed=done)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        for item in items:
            yield item
            done += 1
    finally:
        closed.set()
        thread.join()
