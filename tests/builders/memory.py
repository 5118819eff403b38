"""A file in memory that records its reads."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import BinaryIO

from bnstat.storage.files import File


class MemoryFile(File):
    """A file of bytes in memory, with the (offset, length) of all reads and prefetched ranges."""

    def __init__(self, data: bytes, name: str = "memory") -> None:
        self.name = self.path = name
        self.size = len(data)
        self.reads: list[tuple[int, int]] = []
        self.fetched: list[tuple[int, int]] = []
        self._data = data

    def _read(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        return self._data[offset : offset + length]

    def prefetch(self, spans: Sequence[tuple[int, int]]) -> None:
        self.fetched += spans

    def open(self) -> BinaryIO:
        return io.BytesIO(self._data)
