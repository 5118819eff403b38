"""Ranges of files: where bytes lie, so that many can be fetched together.

A reader that knows what it needs next says so by `prefetch`; a file that is far away then fetches
neighbours in one piece. On disk nothing is gained by that, and nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from bnstat.storage.files import Depot, File

T = TypeVar("T")
R = TypeVar("R")


class Range(NamedTuple):
    """Some bytes of a file.

    Attributes:
        file: the file, which is never a part of another one.
        offset, length: the bytes.
        part: the indices of what they are in the array that they belong to, one slice a
            dimension: they are its elements, row-major and little-endian, and nothing else.
            None where they are compressed, packed or stored in another way.
    """

    file: File
    offset: int
    length: int
    part: tuple[slice, ...] | None = None

    def read(self) -> bytes:
        """The bytes. Raises `DamagedError` where the file does not have them."""
        return self.file.read(self.offset, self.length)


def ahead(work: Callable[[T], R], items: Iterable[T], most: int = 8) -> Iterator[R]:
    """What `work` makes of each item, in order; a few of them are worked on at a time.

    It is for work that mostly waits for what is far away.

    Args:
        work: called in other threads.
        items: what it is called with.
        most: how many results there may be that nobody took yet.
    """
    from collections import deque
    from concurrent.futures import Future, ThreadPoolExecutor

    running: deque[Future[R]] = deque()
    with ThreadPoolExecutor(most) as pool:
        for item in items:
            running.append(pool.submit(work, item))
            if len(running) == most:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def prefetch(ranges: Iterable[Range]) -> None:
    """Let every file know which of its bytes will be read next.

    Raises:
        BnstatError: they cannot be fetched.
    """
    spans: dict[File, list[tuple[int, int]]] = {}
    for wanted in ranges:
        if wanted.file.local_path is None:
            spans.setdefault(wanted.file, []).append((wanted.offset, wanted.length))
    together: dict[Depot, dict[File, list[tuple[int, int]]]] = {}
    for file, pieces in spans.items():
        if file.depot is None:
            file.prefetch(pieces)
        else:
            together.setdefault(file.depot, {})[file] = pieces
    for depot, files in together.items():
        depot.prefetch(files)
