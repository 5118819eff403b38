"""Files copied as they are, as fast as the system can."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from typing import Final

from bnstat.errors import BnstatError, ChangedError

_PIECE: Final = 1 << 26
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
        copied = os.fstat(writing.fileno()).st_size
        if state(before) != state(after) or copied != before.st_size:
            raise ChangedError(source, "changed while it was copied", "try again")


def state(found: os.stat_result) -> tuple[int, ...]:
    """What a file has another of after it was written, or replaced by another file."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _copy(source: int, target: int, size: int) -> None:
    done = 0
    while done < size:
        try:
            copied = os.copy_file_range(source, target, min(_PIECE, size - done))
        except (AttributeError, OSError) as error:
            if isinstance(error, OSError) and (done or error.errno not in _NO_FAST_COPY):
                raise
            with (
                open(source, "rb", closefd=False) as reading,
                open(target, "wb", closefd=False) as writing,
            ):
                shutil.copyfileobj(reading, writing, 1 << 20)
            return
        if not copied:
            return
        _start_writing(target, done, copied)
        done += copied


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
