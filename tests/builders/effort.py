"""Limits on CPU time that hold on slow and fast machines: multiples of a calibration loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import process_time
from typing import Final

LOOPS: Final = 200
"""The usual limit. It is 10 s where a loop takes 50 ms."""


def loop() -> float:
    """Return the CPU seconds of one calibration loop in this process, the best of three."""
    return min(_loop() for _ in range(3))


@contextmanager
def bounded(loops: float = LOOPS) -> Iterator[None]:
    """Fail if a block takes more CPU time than this many calibration loops.

    A shared processor changes its speed, so the slower loop before or after the block counts.
    """
    before = loop()
    start = process_time()
    yield
    taken = process_time() - start
    allowed = loops * max(before, loop())
    assert taken <= allowed, f"{taken:.1f} s of CPU time; {loops:g} loops take {allowed:.1f} s"


def _loop() -> float:
    """Do what readers of files do most: text, numbers and a dictionary of 200,000 entries."""
    start = process_time()
    lengths: dict[str, int] = {}
    for number in range(200_000):
        word = str(number)
        lengths[word] = len(word) + lengths.get(word[1:], 0)
    return process_time() - start
