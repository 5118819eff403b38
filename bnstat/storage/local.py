"""Files and folders on disk.

A file is opened once and stays the same file even when another takes its name, so a checkpoint
that a training job deletes while it is read is still read whole.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from io import FileIO
from typing import BinaryIO, TypeVar

from bnstat.errors import BnstatError, NotFoundError
from bnstat.storage.files import Entry, File, Folder

T = TypeVar("T")

_NOTHING = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


class LocalFile(File):
    """A regular file on disk."""

    def __init__(self, path: str) -> None:
        self.name = os.path.basename(path)
        self.path = path
        # A FIFO would block and a device never end: neither is opened.
        if not stat.S_ISREG(_attempt(path, lambda: os.stat(path)).st_mode):
            raise BnstatError(path, "is not a regular file")
        self._handle = _attempt(path, lambda: FileIO(path))
        self.size = os.fstat(self._handle.fileno()).st_size

    def _read(self, offset: int, length: int) -> bytes:
        data = b""
        try:
            self._handle.seek(offset)
            # One read gives 2 GB at most.
            while len(data) < length and (more := self._handle.read(length - len(data))):
                data += more
        except OSError as error:
            raise BnstatError(self.path, f"cannot be read: {error.strerror}") from error
        return data

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self._handle.close()

    @property
    def local_path(self) -> str:
        return self.path

    def open(self) -> BinaryIO:
        return _attempt(self.path, lambda: open(self.path, "rb"))

    def sibling(self, name: str) -> File | None:
        return LocalFolder(os.path.dirname(self.path) or ".").file(name)


class LocalFolder(Folder):
    """A folder on disk."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = os.path.basename(os.path.realpath(path))

    def names(self) -> list[str]:
        return _attempt(self.path, lambda: sorted(os.listdir(self.path)))

    def file(self, name: str) -> File | None:
        path = self._inside(name)
        try:
            return LocalFile(path) if kind_of(path) == stat.S_IFREG else None
        except NotFoundError:
            return None

    def folder(self, name: str) -> Folder | None:
        path = self._inside(name)
        return LocalFolder(path) if kind_of(path) == stat.S_IFDIR else None

    def entries(self) -> list[Entry]:
        with _attempt(self.path, lambda: os.scandir(self.path)) as listing:
            found = [entry for each in listing if (entry := _entry(each)) is not None]
        return sorted(found)

    def _inside(self, name: str) -> str:
        """The path of a name in the folder, as a user would type it."""
        return name if self.path == "." else os.path.join(self.path, name)

    def parent(self) -> Folder | None:
        return LocalFolder(os.path.dirname(os.path.realpath(self.path)))

    def modified(self, name: str) -> float:
        try:
            return os.stat(self._inside(name)).st_mtime
        except OSError:
            return 0.0


def _entry(listed: os.DirEntry[str]) -> Entry | None:
    """What a listing says; None for what is neither a file nor a folder, or cannot be looked at."""
    try:
        status = listed.stat()
        if stat.S_ISREG(status.st_mode):
            return Entry(listed.name, False, status.st_size, str(status.st_mtime_ns))
        if stat.S_ISDIR(status.st_mode):
            link = os.path.realpath(listed.path) if listed.is_symlink() else ""
            return Entry(listed.name, True, 0, str(status.st_mtime_ns), link)
    except OSError:
        pass
    return None


def kind_of(path: str) -> int | None:
    """What lies at a local path, as `stat.S_IFMT`; None for nothing, or a link to nothing.

    Raises:
        BnstatError: it may not be looked at.
    """
    try:
        return stat.S_IFMT(os.stat(path).st_mode)
    except ValueError:
        return None
    except OSError as error:
        if error.errno in _NOTHING:
            return None
        raise BnstatError(path, f"cannot be opened: {error.strerror}") from error


def _attempt(path: str, action: Callable[[], T]) -> T:
    """What `action` gives; the operating system's refusals become errors that name the path."""
    try:
        return action()
    except FileNotFoundError as error:
        raise NotFoundError(path, "no such file or folder") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BnstatError(path, f"cannot be opened: {reason}") from error
