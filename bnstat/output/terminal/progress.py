"""A progress bar on standard error, for work that takes longer than a second."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

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
