"""Which bytes to fetch in one piece: neighbours together, very long runs in parallel parts."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from threading import Lock
from typing import Final

Span = tuple[int, int]
"""From which byte on, and before which."""

_LONGEST: Final = 8 << 20

_WIDEST: Final = 48 << 10
"""Beyond that, a request more costs less than to fetch a gap."""


def union(spans: Iterable[Span]) -> list[Span]:
    """The same bytes in ascending order, with no two spans that touch."""
    merged: list[Span] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def bridged(spans: Sequence[Span], waste: int) -> list[Span]:
    """Fewer spans that hold all of these: the smallest gaps, up to 48 kB each, are fetched too.

    Args:
        spans: as `union` gives them.
        waste: how many bytes the gaps may have together.
    """
    gaps = sorted((after[0] - before[1], before[1]) for before, after in pairwise(spans))
    bridges = []
    for size, start in gaps:
        if size > min(waste, _WIDEST):
            break
        waste -= size
        bridges.append((start, start + size))
    return union([*spans, *bridges])


def parts(spans: Iterable[Span]) -> list[Span]:
    """The spans, those beyond 8 MiB in parts."""
    return [
        (at, min(at + _LONGEST, end)) for start, end in spans for at in range(start, end, _LONGEST)
    ]


class Pieces:
    """The bytes of a file that were fetched, maybe by several threads at the same time."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._data: list[bytes] = []
        self._lock = Lock()

    def missing(self, spans: Iterable[Span]) -> list[Span]:
        """Return what of these spans was not fetched, as `union` gives it."""
        with self._lock:
            return self._missing(spans)

    def _missing(self, spans: Iterable[Span]) -> list[Span]:
        lacking: list[Span] = []
        for start, end in union(spans):
            at = start
            index = max(0, bisect_right(self._starts, start) - 1)
            while at < end and index < len(self._starts) and self._starts[index] < end:
                first = self._starts[index]
                if first > at:
                    lacking.append((at, first))
                at = max(at, first + len(self._data[index]))
                index += 1
            if at < end:
                lacking.append((at, end))
        return lacking

    def add(self, start: int, data: bytes) -> None:
        """Keep the bytes at `start`; of those that another thread fetched meanwhile, the first."""
        with self._lock:
            for first, end in self._missing([(start, start + len(data))]):
                index = bisect_right(self._starts, first)
                self._starts.insert(index, first)
                self._data.insert(index, data[first - start : end - start])

    def get(self, start: int, end: int) -> bytes:
        """Return bytes of which none is missing."""
        found = []
        with self._lock:
            index = bisect_right(self._starts, start) - 1
            while start < end:
                offset = start - self._starts[index]
                found.append(self._data[index][offset : offset + end - start])
                start += len(found[-1])
                index += 1
        return found[0] if len(found) == 1 else b"".join(found)
