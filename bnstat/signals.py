"""Ctrl-C, `kill` and a closing terminal: an orderly end of the process, within seconds.

Python handles a signal in the main thread, between two Python instructions. A long call into
TensorFlow would delay the handler. Such a call therefore runs in a thread (`interruptible`), and a
system timer ends a process that hangs (`ending_in_time`).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

Result = TypeVar("Result")

INTERRUPTED = 128 + 2
"""The exit code after Ctrl-C."""

GRACE = 4.0
"""The maximum time in seconds between a signal and the end of the process."""

_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_HARMLESS: int = getattr(signal, "SIGURG", 0)
"""A signal that is ignored by default, used to interrupt system calls; 0 on Windows."""

_AGAIN_SECONDS = 0.01
_POLL_SECONDS = 0.5
"""The longest wait for a thread in seconds, because on some systems a wait defers signals."""

_THREAD = "bnstat-tensorflow"


class Ended(BaseException):
    """Raised when signal `number` asks the process to end, like `KeyboardInterrupt` for Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def raise_on_signals() -> None:
    """From now on, raise `Ended` when SIGTERM or SIGHUP arrives, also during a system call."""
    if _HARMLESS:
        _interrupt_system_calls()
    for number in _unhandled():
        signal.signal(number, _end)
    sys.unraisablehook = _send_again


def _unhandled() -> list[int]:
    """Return the numbers of SIGTERM and SIGHUP, except a signal that is handled or ignored."""
    return [number for number in _ENDING if signal.getsignal(number) == signal.SIG_DFL]


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _interrupt_system_calls() -> None:
    """Start a thread that interrupts a system call of the main thread soon after each signal.

    If a signal arrives just before a system call, Python handles the signal only after the call. A
    write to a full pipe may never return.
    """
    main = threading.get_ident()
    # A signal with a handler in Python interrupts system calls; without one it would be ignored.
    signal.signal(_HARMLESS, lambda number, frame: None)

    def interrupt(number: int) -> None:
        if number != _HARMLESS:
            time.sleep(_AGAIN_SECONDS)
            signal.pthread_kill(main, _HARMLESS)

    _watch(interrupt)


def _watch(react: Callable[[int], None]) -> tuple[int, int]:
    """Start a thread that passes the number of each arriving signal to a function.

    Return the descriptor whose closing ends the thread, and the previous wakeup descriptor.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def work() -> None:
        while received := os.read(reader, 1):
            react(received[0])
        os.close(reader)

    threading.Thread(target=work, daemon=True).start()
    return writer, previous


def _end(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    raise Ended(number)


def _send_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Send a signal again if Python discarded the exception, for example in a destructor."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        number: int = signal.SIGINT
    elif isinstance(unraisable.exc_value, Ended):
        number = unraisable.exc_value.number
        signal.signal(number, _end)
    else:
        sys.__unraisablehook__(unraisable)
        return
    threading.Thread(target=_send, args=(number,), daemon=True).start()


def _send(number: int) -> None:
    """Wait until the main thread has left `_send_again`, then send a signal to this process."""
    is_inside = True
    while is_inside:
        time.sleep(_AGAIN_SECONDS)
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        while frame is not None and frame.f_code is not _send_again.__code__:
            frame = frame.f_back
        is_inside = frame is not None
    os.kill(os.getpid(), number)


def interruptible(call: Callable[[], Result]) -> Result:
    """Return the result of a call that runs in a thread, so that signals are handled at once.

    If a signal handler raises, its exception is raised here, and the thread continues.
    """
    if not _is_main_thread():
        return call()
    results: list[Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:  # raised again below
            errors.append(error)

    thread = threading.Thread(target=work, name=_THREAD, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
    if errors:
        raise errors[0]
    return results[0]


def is_call_running() -> bool:
    """Return True if a call of `interruptible` still runs. A normal exit would then abort."""
    return any(thread.name == _THREAD for thread in threading.enumerate())


@contextmanager
def ending_in_time(grace: float = GRACE) -> Iterator[None]:
    """End the process at most `grace` seconds after the first signal that ends a process.

    A system timer kills the process if Python's handlers cannot end it earlier, for example while
    TensorFlow's destructors hang at exit. Windows has no such timer, so nothing happens there.
    """
    if not hasattr(signal, "setitimer") or not _is_main_thread():
        yield
        return

    def start_timer(number: int) -> None:
        is_running = signal.getitimer(signal.ITIMER_REAL)[0] > 0
        if number in (signal.SIGINT, *_ENDING) and not is_running:
            signal.setitimer(signal.ITIMER_REAL, grace)

    writer, previous = _watch(start_timer)
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


@contextmanager
def exiting_on_signals() -> Iterator[None]:
    """Raise `SystemExit` on SIGTERM and SIGHUP in the block, unless they have a handler already."""
    numbers = _unhandled() if _is_main_thread() else []
    for number in numbers:
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def delaying_signals() -> Iterator[None]:
    """Delay Ctrl-C, SIGTERM and SIGHUP to the end of the block; then send the first signal again.

    Signals are not masked, because another thread would receive masked signals.
    """
    received: list[int] = []
    numbers = (signal.SIGINT, *_ENDING) if _is_main_thread() else ()
    handlers = {number: signal.getsignal(number) for number in numbers}
    # None is a handler that was not set from Python, so Python cannot restore this handler.
    handlers = {number: handler for number, handler in handlers.items() if handler is not None}
    for number in handlers:
        signal.signal(number, lambda sent, _: received.append(sent))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])
