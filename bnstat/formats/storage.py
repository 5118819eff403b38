"""Files and folders that model files are read from: by ranges, on disk or inside an archive.

Readers ask a `File` for the bytes from here to there and get exactly those or an error. A local
file is opened once and stays the same file even when another takes its name, so a checkpoint
that a training job deletes while it is read is still read whole. Files are read rather than
memory-mapped: a mapped file that somebody cuts short kills the process that reads it.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable
from io import FileIO
from typing import BinaryIO, TypeVar

from bnstat.errors import BnstatError, DamagedError, NotFoundError

T = TypeVar("T")

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_NOTHING = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


class File(ABC):
    """A file's bytes, by range.

    Attributes:
        name: the base name.
        path: where it is, for messages.
        size: its length in bytes.
    """

    name: str
    path: str
    size: int

    @abstractmethod
    def _read(self, offset: int, length: int) -> bytes: ...

    @abstractmethod
    def sibling(self, name: str) -> File | None:
        """The file of that name in the same folder, if there is one."""

    @abstractmethod
    def open(self) -> BinaryIO:
        """The whole file as a seekable stream, which the caller closes."""

    @property
    def local_path(self) -> str | None:
        """Where the file is on disk; None inside an archive."""
        return None

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """`length` bytes from `offset` on (all that follow, if left out).

        Raises:
            DamagedError: the file does not have them.
        """
        if length is None:
            length = self.size - offset
        if offset < 0 or length < 0 or offset + length > self.size:
            raise DamagedError(
                self.path,
                f"truncated: bytes {offset} to {offset + length} are needed, it has {self.size}",
                self._hint(),
            )
        data = self._read(offset, length)
        if len(data) != length:
            raise DamagedError(self.path, "got shorter while it was read", "try again")
        return data

    def head(self, length: int) -> bytes:
        """The first bytes, at most `length` of them."""
        return self.read(0, min(length, self.size))

    def is_lfs_pointer(self) -> bool:
        """Whether git-lfs's placeholder lies here in place of the file."""
        return self.size < 1024 and self.head(len(_LFS_POINTER)) == _LFS_POINTER

    def refuse_lfs_pointer(self) -> None:
        """Raise a `DamagedError` that says so where the file is a git-lfs pointer."""
        if self.is_lfs_pointer():
            raise DamagedError(
                self.path,
                "is a git-lfs pointer, not the file itself",
                "run `git lfs pull` where it was cloned, or download the real file",
            )

    def _hint(self) -> str:
        if self.is_lfs_pointer():
            return "it is a git-lfs pointer: run `git lfs pull`, or download the real file"
        return "copy or download it again"


class Folder(ABC):
    """A folder of files and folders.

    Attributes:
        path: where it is, for messages.
        name: its own name.
    """

    path: str
    name: str

    @abstractmethod
    def names(self) -> list[str]:
        """What it holds, sorted."""

    @abstractmethod
    def file(self, name: str) -> File | None:
        """The file of that name, if there is one; `name` may lead into folders below."""

    @abstractmethod
    def folder(self, name: str) -> Folder | None:
        """The folder of that name, if there is one."""

    @abstractmethod
    def parent(self) -> Folder | None:
        """The folder that this one lies in, if it can be reached."""

    @abstractmethod
    def modified(self, name: str) -> float:
        """When the file changed last, in seconds since the epoch; 0 where that is unknown."""

    def matching(self, prefix: str, suffix: str = "") -> list[str]:
        """The names that start and end so."""
        return [name for name in self.names() if name.startswith(prefix) and name.endswith(suffix)]


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
        try:
            self._handle.seek(offset)
            data = self._handle.read(length)
            while data and len(data) < length:
                more = self._handle.read(length - len(data))
                if not more:
                    break
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
