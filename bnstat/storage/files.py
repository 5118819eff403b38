"""Files and folders, read by ranges, wherever they are.

Files are not memory-mapped, because a mapped file that is truncated meanwhile kills the process.
A reader announces the next ranges with `prefetch`, so that a remote file fetches them together.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeVar, cast

from bnstat.errors import DamagedError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from bnstat.storage.stores import RemoteStore


T = TypeVar("T")
R = TypeVar("R")
Part = tuple[slice, ...]
"""A part of an array, as one slice per dimension."""

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class Range(NamedTuple):
    """A range of bytes of a file on disk or behind a URL, never of a file inside another file.

    `part` is the part of an array that the bytes store as row-major, little-endian elements. For
    other bytes, `part` is None.
    """

    file: File
    offset: int
    length: int
    part: Part | None = None

    def read(self) -> bytes:
        return self.file.read(self.offset, self.length)


def ahead(work: Callable[[T], R], items: Iterable[T], most: int = 8) -> Iterator[R]:
    """Yield `work(item)` for each item in order; threads compute up to `most` results ahead."""
    from concurrent.futures import ThreadPoolExecutor

    running: deque[Future[R]] = deque()
    with ThreadPoolExecutor(most) as pool:
        for item in items:
            running.append(pool.submit(work, item))
            if len(running) == most:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def prefetch(ranges: Iterable[Range]) -> None:
    """Fetch ranges that will be read next; each store fetches the ranges of its files together."""
    stores: dict[RemoteStore, dict[File, list[tuple[int, int]]]] = {}
    for file, offset, length, _ in ranges:
        if file.store is not None:
            files = stores.setdefault(file.store, {})
            files.setdefault(file, []).append((offset, length))
    for store, files in stores.items():
        store.prefetch(files)


class File(ABC):
    """A file that is read by ranges. `path` is for messages; only a remote file has a `store`."""

    name: str
    path: str
    size: int
    store: RemoteStore | None = None

    @abstractmethod
    def _read(self, offset: int, length: int) -> bytes: ...

    def sibling(self, name: str) -> File | None:
        """Return the file with this name in the same folder, or None."""
        return None

    def expect(self, names: Iterable[str]) -> None:  # noqa: B027
        """Fetch the first bytes of files in the same folder together, if this is faster."""

    def part(self, name: str) -> File | None:
        """Return the file at a relative path that this file stores; None if no file exists there.

        A hostile file may contain any path. A path that leads out of the folder is refused.
        """
        first, *others = name.replace("\\", "/").split("/")
        parts = [part for part in (first, *others) if part not in ("", ".")]
        is_absolute = not first or ":" in first
        if is_absolute or not parts or ".." in parts or "\0" in name:
            raise DamagedError(self.path, f"refers to a file outside of its folder: {name[:200]!r}")
        return self.sibling("/".join(parts))

    def open(self) -> BinaryIO:
        """Return a seekable stream of this file, even if another file was moved to its path."""
        return cast(BinaryIO, io.BufferedReader(_Stream(self)))

    @property
    def local_path(self) -> str | None:
        """The path on disk; None for a remote file or one inside an archive."""
        return None

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Return `length` bytes from `offset`; raise a `DamagedError` if the file is too short."""
        if length is None:
            length = self.size - offset
        if offset < 0 or length < 0 or offset + length > self.size:
            self.refuse_lfs_pointer()
            needed = f"truncated: bytes {offset} to {offset + length} are needed"
            what = f"{needed}, but the file has {self.size}"
            raise DamagedError(self.path, what, "copy or download it again")
        data = self._read(offset, length)
        if len(data) != length:
            raise DamagedError(self.path, "got shorter while it was read", "try again")
        return data

    def prefetch(self, spans: Sequence[tuple[int, int]]) -> None:  # noqa: B027
        """Fetch (offset, length) spans together, if this is faster. Spans may pass the file end."""

    def has(self, offset: int, length: int) -> bool:
        """Return True if the bytes can be read without a request to a server."""
        return True

    def allow_waste(self, size: int) -> None:  # noqa: B027
        """Allow fetching up to `size` unneeded bytes of this file, if this saves requests."""

    def refuse_changed(self) -> None:  # noqa: B027
        """Raise a `ChangedError` if the file is remote and was replaced since it was listed."""

    def place(self, offset: int, length: int, part: Part | None = None) -> Range | None:
        """Return the `Range` of these bytes on disk or behind a URL; None if compressed."""
        return Range(self, offset, length, part)

    def head(self, length: int) -> bytes:
        """Return the first `length` bytes, or the whole file if it is shorter."""
        return self.read(0, min(length, self.size))

    def is_lfs_pointer(self) -> bool:
        """Return True if this is a git-lfs pointer in place of the file."""
        return self.size < 1024 and self.head(len(_LFS_POINTER)) == _LFS_POINTER

    def refuse_lfs_pointer(self) -> None:
        if self.is_lfs_pointer():
            hint = "run `git lfs pull` in the clone, or download the real file"
            raise DamagedError(self.path, "is a git-lfs pointer, not the file itself", hint)


class _Stream(io.RawIOBase):
    def __init__(self, file: File) -> None:
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}
        self._position = max(0, base[whence] + offset)
        return self._position

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer)).cast("B")
        length = max(0, min(len(view), self._file.size - self._position))
        view[:length] = self._file.read(self._position, length) if length else b""
        self._position += length
        return length


class Entry(NamedTuple):
    """A file or folder in a listing."""

    name: str
    is_folder: bool
    size: int
    tag: str = ""  # a value that changes with the content, such as an ETag; empty if unknown
    link: str = ""  # the target of a link to a folder; empty otherwise
    modified: float = 0.0  # the time of the last change, in seconds since the epoch; 0 if unknown

    @property
    def version(self) -> str:
        """The tag or, without a tag, the time of the last change; empty if both are unknown."""
        return self.tag or (f"at {self.modified}" if self.modified else "")


class Folder(ABC):
    """A folder of files and folders."""

    path: str
    name: str
    can_list: bool = True  # False if files can only be requested by name
    is_remote: bool = False  # True if each access is a request to a server

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of all files and folders in this folder, sorted."""

    @abstractmethod
    def file(self, name: str) -> File | None:
        """Return the file with this name, or None; `name` may be a path below the folder."""

    def expect(self, names: Iterable[str]) -> None:  # noqa: B027
        """Fetch the first bytes of files together before they are opened, if this is faster."""

    @abstractmethod
    def folder(self, name: str) -> Folder | None: ...

    @abstractmethod
    def parent(self) -> Folder | None:
        """Return the parent folder, or None if it cannot be reached."""

    def modified(self, name: str) -> float:
        """Return the time of a file's last change, in seconds since the epoch; 0 if unknown."""
        return 0.0

    def entries(self) -> list[Entry]:
        """Return the files and folders in this folder, sorted by name, without opening files."""
        raise NotImplementedError

    def times(self, prefix: str = "") -> dict[str, float]:
        """Return name -> time of the last change, for names that start with `prefix`."""
        return {name: self.modified(name) for name in self.matching(prefix)}

    def matching(self, prefix: str, suffix: str = "") -> list[str]:
        """Return the names that start with `prefix` and end with `suffix`."""
        return [name for name in self.names() if name.startswith(prefix) and name.endswith(suffix)]


class Spot(NamedTuple):
    """A location: the folder `folder`, or the file or checkpoint prefix `name` in `parent`.

    On a web server, both folders are set, because a URL does not show whether it is a folder;
    `parent` must be tried first.
    """

    parent: Folder | None
    name: str
    folder: Folder | None
