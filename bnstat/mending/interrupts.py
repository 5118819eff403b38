"""Signals while a copy is being written: heeded, but never in the middle of a step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Final, NoReturn

_ENDING: Final = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
)
_HELD: Final = (signal.SIGINT, *_ENDING)


@contextlib.contextmanager
def clean_ending() -> Iterator[None]:
    """Within, a signal that would end the process raises `SystemExit`, so that all is cleaned up.

    Where somebody else handles the signal, or outside of the main thread, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _ENDING}
    taken = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Within, signals wait; the first of them is heeded at the end.

    They are held back here rather than masked, since other threads would take them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in _HELD}
    # A handler that was not set from Python cannot be put back by it.
    taken = {number: handler for number, handler in before.items() if handler is not None}
    for number in taken:
        signal.signal(number, lambda sent, _: came.append(sent))
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _end(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)
