"""Files copied as they are, as fast as the system can."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import threading
from collections.abc import Iterator
from typing import Final, NoReturn

from bnstat.errors import BnstatError, ChangedError

_PIECE: Final = 1 << 26
_HERE: Final = -100
_EXCHANGE: Final = 2
_BUFFER: Final = 1 << 20
_NO_FAST_COPY: Final = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


def copy_file(source: str, target: str) -> None:
    """Copy a regular file's bytes.

    Raises:
        ChangedError: the source changes meanwhile.
        OSError: it cannot be read, or the target not written.
    """
    with open(source, "rb", 0) as reading, open(target, "xb", 0) as writing:
        before = os.fstat(reading.fileno())
        if not stat.S_ISREG(before.st_mode):
            raise BnstatError(source, "is not a regular file")
        _copy(reading.fileno(), writing.fileno(), before.st_size)
        after = os.fstat(reading.fileno())
        if state(before) != state(after):
            raise ChangedError(source, "changed while it was copied", "try again")


def state(found: os.stat_result) -> tuple[int, ...]:
    """What a file has another of after it was written, or replaced by another file."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def exchange(one: str, other: str) -> bool:
    """Let two files or folders have each other's names, in one step; whether the system can.

    Source: renameat2(2).
    """
    import ctypes

    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    names = os.fsencode(one), os.fsencode(other)
    return bool(rename(_HERE, names[0], _HERE, names[1], _EXCHANGE) == 0)


def _copy(source: int, target: int, size: int) -> None:
    """Copy so many bytes; holes stay holes."""
    os.ftruncate(target, size)
    in_kernel = hasattr(os, "copy_file_range")
    for start, end in _written(source, size):
        at = start
        while at < end:
            length = min(_PIECE, end - at)
            if in_kernel:
                try:
                    copied = os.copy_file_range(source, target, length, at, at)
                except OSError as error:
                    if error.errno not in _NO_FAST_COPY:
                        raise
                    in_kernel = False
                    continue
            else:
                copied = os.pwrite(target, os.pread(source, min(length, _BUFFER), at), at)
            if not copied:
                return
            _start_writing(target, at, copied)
            at += copied


def _written(file: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file has bytes, between its holes."""
    at = 0
    while at < size:
        try:
            start = os.lseek(file, at, os.SEEK_DATA)
            end = min(os.lseek(file, start, os.SEEK_HOLE), size)
        except (AttributeError, OSError) as error:
            if getattr(error, "errno", None) != errno.ENXIO:
                yield at, size
            return
        if start < end:
            yield start, end
        at = end


def _start_writing(file: int, offset: int, length: int) -> None:
    """Let bytes start on their way to the disk, while others are still copied."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, offset, length, os.POSIX_FADV_DONTNEED)


def tree(folder: str) -> Iterator[tuple[str, bool]]:
    """All that is in a folder, by its path from there, and whether it is a folder itself.

    Raises:
        BnstatError: there is something that cannot be copied: a link to a folder, a device.
    """
    pending = [""]
    while pending:
        inside = pending.pop()
        with os.scandir(os.path.join(folder, inside)) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = os.path.join(inside, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                    yield path, True
                elif entry.is_file():
                    yield path, False
                else:
                    what = "a link to a folder" if entry.is_dir() else "neither file nor folder"
                    raise BnstatError(entry.path, f"is {what}, which is not copied")


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
