"""Files and folders on disk.

A file is opened once, so that bnstat can read on after a training job deleted the file.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import TypeVar

from bnstat.errors import BnstatError, NotFoundError
from bnstat.storage.access import WEB, Access, missing_driver, scheme_of
from bnstat.storage.files import Entry, File, Folder, Spot

T = TypeVar("T")

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0)


class Handle:
    """An open file that several threads may read. It is closed when this object is deleted."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = Lock()

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`, or fewer at the end of the file."""
        pieces = []
        # The system returns at most 2 GB per call.
        while length and (piece := self._piece(offset, length)):
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return b"".join(pieces)

    def _piece(self, offset: int, length: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, length, offset)
        # Another thread may seek between the two calls.
        with self._lock:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            return os.read(self._descriptor, length)

    def __del__(self) -> None:
        os.close(self._descriptor)


class LocalFile(File):
    """A regular file on disk."""

    def __init__(self, path: str) -> None:
        self.name = os.path.basename(path)
        self.path = path
        # Opening a FIFO would block, and reading a device might never end.
        if not stat.S_ISREG(_attempt(path, lambda: os.stat(path)).st_mode):
            raise BnstatError(path, "is not a regular file")
        descriptor = _attempt(path, lambda: os.open(path, _READ))
        self._handle = Handle(descriptor)
        self.size = os.fstat(descriptor).st_size

    def _read(self, offset: int, length: int) -> bytes:
        try:
            return self._handle.read(offset, length)
        except OSError as error:
            raise BnstatError(self.path, f"cannot be read: {error.strerror}") from error

    @property
    def local_path(self) -> str:
        return self.path

    def sibling(self, name: str) -> File | None:
        return LocalFolder(os.path.dirname(self.path) or ".").file(name)

    def part(self, name: str) -> File | None:
        part = super().part(name)
        if part is None:
            return None
        target = os.path.realpath(part.path)
        folder = os.path.realpath(os.path.dirname(self.path) or ".")
        # In the cache of the Hugging Face hub, a model and its parts are links into one folder.
        is_beside = os.path.dirname(target) == os.path.dirname(os.path.realpath(self.path))
        if is_beside or target.startswith(os.path.join(folder, "")):
            return part
        what = f"is a link that leads out of the model's folder, to {target}"
        hint = "replace the link by a copy of the file if you trust the model"
        raise BnstatError(part.path, what, hint)


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
            return sorted(entry for item in listing if (entry := _entry(item)) is not None)

    def _inside(self, name: str) -> str:
        """Return the path of a file or folder in this folder, relative if `path` is relative."""
        return name if self.path == "." else os.path.join(self.path, name)

    def parent(self) -> Folder | None:
        return LocalFolder(os.path.dirname(os.path.realpath(self.path)))

    def modified(self, name: str) -> float:
        with suppress(OSError):
            return os.stat(self._inside(name)).st_mtime
        return 0.0


def _entry(item: os.DirEntry[str]) -> Entry | None:
    """Convert an item of `os.scandir`; return None unless it is a readable file or folder."""
    with suppress(OSError):
        status = item.stat()
        if stat.S_ISREG(status.st_mode):
            return Entry(item.name, False, status.st_size, str(status.st_mtime_ns))
        if stat.S_ISDIR(status.st_mode):
            link = os.path.realpath(item.path) if item.is_symlink() else ""
            return Entry(item.name, True, 0, str(status.st_mtime_ns), link)
    return None


def kind_of(path: str) -> int | None:
    """Return the file type at a path, such as `stat.S_IFDIR`; None if nothing exists there."""
    try:
        return stat.S_IFMT(os.stat(path).st_mode)
    except ValueError:
        return None
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise BnstatError(path, f"cannot be opened: {error.strerror}") from error


def _attempt(path: str, action: Callable[[], T]) -> T:
    """Return the result of `action`; convert an `OSError` to a `BnstatError` with the path."""
    try:
        return action()
    except FileNotFoundError as error:
        raise NotFoundError(path, "no such file or folder") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BnstatError(path, f"cannot be opened: {reason}") from error


def find(path: str, access: Access, recursive: bool = False) -> Spot:
    """Return the location of a path or URL; if `recursive`, list all of a remote folder first."""
    scheme = scheme_of(path)
    if scheme in ("file", "local"):
        path, scheme = path.partition("://")[2].removeprefix("localhost"), None
    if scheme in WEB:
        try:
            from bnstat.storage.web import find_on_web
        except ImportError as error:
            raise missing_driver(path, "aiohttp") from error
        return find_on_web(path, access)
    if scheme is not None:
        from bnstat.storage.stores import connect

        store, inside = connect(path, access)
        return store.find(inside, recursive)
    parent, name = os.path.split(path.rstrip("/") or path)
    kind = kind_of(path)
    if kind == stat.S_IFDIR:
        return Spot(None, name, LocalFolder(path))
    if kind not in (None, stat.S_IFREG):
        raise BnstatError(path, "is neither a file nor a folder")
    has_parent = kind_of(parent or ".") == stat.S_IFDIR
    return Spot(LocalFolder(parent or ".") if has_parent else None, name, None)
