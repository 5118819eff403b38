"""Ctrl-C and `kill` while TensorFlow runs.

Python handles a signal in the main thread, between two of its own instructions. A call into
TensorFlow that takes long, or never returns, would keep it from doing so.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")

GRACE = 4.0
"""Seconds between a signal and the end of the process, at most."""

_INTERVAL = 0.5
"""Seconds between two looks at a call, for systems where waiting for a thread defers signals."""

_ENDING = ("SIGINT", "SIGTERM", "SIGHUP")
_HAS_TIMER = hasattr(signal, "setitimer")


def interruptible(call: Callable[[], Result]) -> Result:
    """Return what a call returns, but let a signal end the wait for it.

    The call runs in a thread of its own, which is left behind when a signal handler raises.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    results: list[Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:  # raised again below
            errors.append(error)

    thread = threading.Thread(target=work, name="bnstat-tensorflow", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_INTERVAL)
    if errors:
        raise errors[0]
    return results[0]


@contextmanager
def ending_in_time(grace: float = GRACE) -> Iterator[None]:
    """End the process after the first signal that asks for it, whatever TensorFlow does.

    Python's own handlers get `grace` seconds, in which they usually end it in good order. After
    that the system's timer kills it, even while TensorFlow's destructors hang at the exit. If the
    program goes on, the timer is stopped. Windows has no such timer: there this does nothing.
    """
    if not _HAS_TIMER or threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, grace), daemon=True).start()
    try:
        yield
    except Exception:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise
    else:
        signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.set_wakeup_fd(previous)
        os.close(writer)


def _watch(reader: int, grace: float) -> None:
    """Start the timer as soon as the number of a signal arrives; return at the end of the file."""
    numbers = {getattr(signal, name) for name in _ENDING}
    while received := os.read(reader, 1):
        if received[0] in numbers:
            signal.setitimer(signal.ITIMER_REAL, grace)
            break
    os.close(reader)
