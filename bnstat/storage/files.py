"""Files and folders that model files are read from, by ranges, wherever they are.

Readers ask a `File` for the bytes from here to there and get exactly those or an error. Files
are read rather than memory-mapped: a mapped file that somebody cuts short kills the process that
reads it.

Ranges of files: where bytes lie, so that many can be fetched together.

A reader that knows what it needs next says so by `prefetch`; a file that is far away then fetches
neighbours in one piece. On disk nothing is gained by that, and nothing is done.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol, TypeVar, cast

from bnstat.errors import DamagedError

if TYPE_CHECKING:
    pass


T = TypeVar("T")
R = TypeVar("R")


class Range(NamedTuple):
    """Some bytes of a file.

    Attributes:
        file: the file, which is never a part of another one.
        offset, length: the bytes.
        part: the indices of what they are in the array that they belong to, one slice a
            dimension: they are its elements, row-major and little-endian, and nothing else.
            None where they are compressed, packed or stored in another way.
    """

    file: File
    offset: int
    length: int
    part: tuple[slice, ...] | None = None

    def read(self) -> bytes:
        """The bytes. Raises `DamagedError` where the file does not have them."""
        return self.file.read(self.offset, self.length)


def ahead(work: Callable[[T], R], items: Iterable[T], most: int = 8) -> Iterator[R]:
    """What `work` makes of each item, in order; a few of them are worked on at a time.

    It is for work that mostly waits for what is far away.

    Args:
        work: called in other threads.
        items: what it is called with.
        most: how many results there may be that nobody took yet.
    """
    from collections import deque
    from concurrent.futures import Future, ThreadPoolExecutor

    running: deque[Future[R]] = deque()
    with ThreadPoolExecutor(most) as pool:
        for item in items:
            running.append(pool.submit(work, item))
            if len(running) == most:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def prefetch(ranges: Iterable[Range]) -> None:
    """Let every file know which of its bytes will be read next.

    Raises:
        BnstatError: they cannot be fetched.
    """
    spans: dict[File, list[tuple[int, int]]] = {}
    for wanted in ranges:
        if wanted.file.local_path is None:
            spans.setdefault(wanted.file, []).append((wanted.offset, wanted.length))
    together: dict[Depot, dict[File, list[tuple[int, int]]]] = {}
    for file, pieces in spans.items():
        if file.depot is None:
            file.prefetch(pieces)
        else:
            together.setdefault(file.depot, {})[file] = pieces
    for depot, files in together.items():
        depot.prefetch(files)


_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class Depot(Protocol):
    """What fetches ranges of many files at once."""

    def prefetch(self, wanted: Mapping[File, Sequence[tuple[int, int]]]) -> None:
        """As `File.prefetch`, for several files."""


class File(ABC):
    """A file's bytes, by range.

    Attributes:
        name: the base name.
        path: where it is, for messages.
        size: its length in bytes.
        depot: what fetches this file's ranges with those of others; None on disk.
    """

    name: str
    path: str
    size: int
    depot: Depot | None = None

    @abstractmethod
    def _read(self, offset: int, length: int) -> bytes: ...

    @abstractmethod
    def sibling(self, name: str) -> File | None:
        """The file of that name in the same folder, if there is one."""

    def part(self, name: str) -> File | None:
        """Return the file in or below this file's folder that this file names as a part of it.

        Model files name their parts, and a hostile one may name any file of the machine.

        Args:
            name: a relative path as the model file has it.

        Raises:
            DamagedError: the name leads out of the folder.
            BnstatError: the file is a link that leads out of the folder.
        """
        first, *others = name.replace("\\", "/").split("/")
        parts = [part for part in (first, *others) if part not in ("", ".")]
        is_absolute = not first or ":" in first
        if is_absolute or not parts or ".." in parts or "\0" in name:
            raise DamagedError(self.path, f"names a file outside of its folder: {name[:200]!r}")
        return self.sibling("/".join(parts))

    def open(self) -> BinaryIO:
        """Return the file as a seekable stream, which reads piece by piece; the caller closes it.

        The stream reads this very file, also where another file has taken its path since.
        """
        return cast(BinaryIO, io.BufferedReader(_Stream(self)))

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

    def prefetch(self, spans: Sequence[tuple[int, int]]) -> None:  # noqa: B027
        """Fetch what will be read next, where that is better done in one go.

        Args:
            spans: offset and length of each piece, in any order; they may overlap, and reach
                beyond the file's end, where there is nothing to fetch.
        """

    def has(self, offset: int, length: int) -> bool:
        """Whether these bytes are at hand, rather than far away and not yet fetched."""
        del offset, length
        return True

    def allow_waste(self, size: int) -> None:  # noqa: B027
        """Let so many bytes be fetched that nobody asked for, where that makes fewer pieces."""

    def place(
        self, offset: int, length: int, part: tuple[slice, ...] | None = None
    ) -> Range | None:
        """Where these bytes lie; None where no file holds them as they are.

        Args:
            offset: where they begin in this file.
            length: how many there are.
            part: see `Range`.
        """
        return Range(self, offset, length, part)

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


class Entry(NamedTuple):
    """What a listing says of a file or folder.

    Attributes:
        name: its name in the folder that was listed.
        is_folder: whether it is a folder.
        size: in bytes; 0 for a folder.
        tag: what changes with the content, such as the time of the last change or an ETag.
        link: where it leads, if it is a link to a folder; empty otherwise.
    """

    name: str
    is_folder: bool
    size: int
    tag: str
    link: str = ""


class _Stream(io.RawIOBase):
    """A file as a stream, for those who read streams."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer)).cast("B")
        length = max(0, min(len(view), self._file.size - self._at))
        view[:length] = self._file.read(self._at, length) if length else b""
        self._at += length
        return length


class Folder(ABC):
    """A folder of files and folders.

    Attributes:
        path: where it is, for messages.
        name: its own name.
        can_list: whether it can say what it holds, without being asked name by name.
        is_remote: whether each look at it is a request to a server.
    """

    path: str
    name: str
    can_list: bool = True
    is_remote: bool = False

    @abstractmethod
    def names(self) -> list[str]:
        """What it holds, sorted."""

    @abstractmethod
    def file(self, name: str) -> File | None:
        """The file of that name, if there is one; `name` may lead into folders below."""

    def expect(self, names: Iterable[str]) -> None:  # noqa: B027
        """Say which files will be asked for, where that is better done in one go."""

    @abstractmethod
    def folder(self, name: str) -> Folder | None:
        """The folder of that name, if there is one."""

    @abstractmethod
    def parent(self) -> Folder | None:
        """The folder that this one lies in, if it can be reached."""

    @abstractmethod
    def modified(self, name: str) -> float:
        """When the file changed last, in seconds since the epoch; 0 where that is unknown."""

    def entries(self) -> list[Entry]:
        """The files and folders that it holds, by their names; no file is opened to tell."""
        raise NotImplementedError

    def times(self, prefix: str = "") -> dict[str, float]:
        """When each of what it holds changed last, for the names that start so."""
        return {name: self.modified(name) for name in self.matching(prefix)}

    def matching(self, prefix: str, suffix: str = "") -> list[str]:
        """The names that start and end so."""
        return [name for name in self.names() if name.startswith(prefix) and name.endswith(suffix)]
