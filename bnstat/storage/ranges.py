"""Ranges of files: where bytes lie, so that many can be fetched together.

A reader that knows what it needs next says so by `prefetch`; a file that is far away then fetches
neighbours in one piece. On disk nothing is gained by that, and nothing is done.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from bnstat.storage.files import Depot, File


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
