"""Destinations of output: standard output, or a file that is written completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Final, TextIO, cast

from bnstat.output.terminal.screen import Screen, encodable

_STDOUT: Final = ("-", "/dev/stdout")


@contextlib.contextmanager
def open_binary(path: str) -> Iterator[BinaryIO]:
    """Open a file, or standard output for `-`, to write bytes in a `with` block.

    A regular file is created, or replaced with unchanged permissions, when the block ends without
    an error. A device or a FIFO is written directly.
    """
    if path in _STDOUT:
        stdout = _stdout()
        stdout.flush()
        yield stdout.buffer
        stdout.buffer.flush()
        return
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        with open(path, "wb") as file:
            yield file
        return
    if mode is not None and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    target = os.path.realpath(path)
    temporary = os.path.join(os.path.dirname(target), f".bnstat-{os.urandom(8).hex()}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            os.chmod(temporary, stat.S_IMODE(mode))
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename in (None, temporary):
            error.filename = path
        raise


@contextlib.contextmanager
def open_text(path: str) -> Iterator[TextIO]:
    """Open a file as `open_binary` does, to write text in UTF-8 with unchanged line ends."""
    import codecs

    with open_binary(path) as file:
        yield cast(TextIO, codecs.getwriter("utf-8")(file))


def writes_to_terminal(path: str) -> bool:
    """Return True if output to this path appears on the user's terminal."""
    return path in _STDOUT and sys.stdout is not None and sys.stdout.isatty()


def show(render: Callable[[Screen], Iterable[str]], path: str) -> None:
    """Render lines for a screen, and write them to a file, or to standard output for `-`.

    Characters that the encoding of standard output lacks are written as escapes. A file is written
    in UTF-8, for a screen of unlimited width.
    """
    if path not in _STDOUT:
        write_lines(render(Screen()), path)
        return
    stdout = _stdout()
    for line in render(Screen.of(stdout)):
        stdout.write(encodable(f"{line}\n", stdout))


def write_lines(lines: Iterable[str], path: str) -> None:
    """Write the lines of a document in UTF-8 to a file, or standard output for `-`."""
    with open_text(path) as file:
        for line in lines:  # `writelines` would collect all lines in memory.
            file.write(f"{line}\n")


def _stdout() -> TextIO:
    if sys.stdout is None:
        raise OSError(errno.EBADF, "standard output is closed")
    return sys.stdout
