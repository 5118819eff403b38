"""Files and folders that are far away: what is read of them is fetched, many ranges at once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from threading import Lock
from typing import Final, cast
from weakref import WeakValueDictionary

from bnstat.storage.access import Access
from bnstat.storage.files import Depot, Entry, File, Folder
from bnstat.storage.remote.transport import Piece, Stat, Transport

Span = tuple[int, int]
"""From which byte on, and before which."""

_LONGEST: Final = 8 << 20

_WIDEST: Final = 48 << 10
"""Beyond that, a request more costs less than to fetch a gap."""


def union(spans: Iterable[Span]) -> list[Span]:
    """The same bytes in ascending order, with no two spans that touch."""
    merged: list[Span] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def bridged(spans: Sequence[Span], waste: int) -> list[Span]:
    """Fewer spans that hold all of these: the smallest gaps, up to 48 kB each, are fetched too.

    Args:
        spans: as `union` gives them.
        waste: how many bytes the gaps may have together.
    """
    gaps = sorted((after[0] - before[1], before[1]) for before, after in pairwise(spans))
    bridges = []
    for size, start in gaps:
        if size > min(waste, _WIDEST):
            break
        waste -= size
        bridges.append((start, start + size))
    return union([*spans, *bridges])


def parts(spans: Iterable[Span]) -> list[Span]:
    """The spans, those beyond 8 MiB in parts."""
    return [
        (at, min(at + _LONGEST, end)) for start, end in spans for at in range(start, end, _LONGEST)
    ]


class Pieces:
    """The bytes of a file that were fetched, maybe by several threads at the same time."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._data: list[bytes] = []
        self._lock = Lock()

    def missing(self, spans: Iterable[Span]) -> list[Span]:
        """Return what of these spans was not fetched, as `union` gives it."""
        with self._lock:
            return self._missing(spans)

    def _missing(self, spans: Iterable[Span]) -> list[Span]:
        lacking: list[Span] = []
        for start, end in union(spans):
            at = start
            index = max(0, bisect_right(self._starts, start) - 1)
            while at < end and index < len(self._starts) and self._starts[index] < end:
                first = self._starts[index]
                if first > at:
                    lacking.append((at, first))
                at = max(at, first + len(self._data[index]))
                index += 1
            if at < end:
                lacking.append((at, end))
        return lacking

    def add(self, start: int, data: bytes) -> None:
        """Keep the bytes at `start`; of those that another thread fetched meanwhile, the first."""
        with self._lock:
            for first, end in self._missing([(start, start + len(data))]):
                index = bisect_right(self._starts, first)
                self._starts.insert(index, first)
                self._data.insert(index, data[first - start : end - start])

    def get(self, start: int, end: int) -> bytes:
        """Return bytes of which none is missing."""
        found = []
        with self._lock:
            index = bisect_right(self._starts, start) - 1
            while start < end:
                offset = start - self._starts[index]
                found.append(self._data[index][offset : offset + end - start])
                start += len(found[-1])
                index += 1
        return found[0] if len(found) == 1 else b"".join(found)


_BLOCK: Final = 16 << 10
"""What nobody announced is fetched by blocks of this size, for the next read is often near."""

_SMALL: Final = 48 << 10
"""A file of up to this size is fetched whole."""

_TAIL: Final = 4 << 10

_AT: Final = "at "
"""Before the time of the last change, where a store has no tag for what a file holds."""

_WASTE: Final = 96 << 10
"""So many bytes that nobody asked for may be fetched of a file, to fetch fewer pieces."""

_SHARE: Final = 2
"""Each time, one part in so many of what is left of that."""


class RemoteFile(File):
    """A file behind a URL, as a listing told of it."""

    def __init__(self, depot: Warehouse, folder: Folder, stat: Stat) -> None:
        self.name = stat.name
        self.path = depot.transport.url(stat.path)
        self.size = stat.size
        self.depot = depot
        self.stat = stat
        self.pieces = Pieces()
        self._may_waste = _WASTE
        self._wasted = 0
        self._folder = folder

    def _read(self, offset: int, length: int) -> bytes:
        end = offset + length
        if self.size <= _SMALL:
            self.fetch([(0, self.size)])
        if self.pieces.missing([(offset, end)]):
            start, stop = offset, end
            if length < _BLOCK:
                start, stop = offset // _BLOCK * _BLOCK, min(-(-end // _BLOCK) * _BLOCK, self.size)
            self.fetch([(start, stop)])
        return self.pieces.get(offset, end)

    def head(self, length: int) -> bytes:
        if self.size > _SMALL and self.pieces.missing([(max(self.size - 8, 0), self.size)]):
            # What tells one format from another is at a file's beginning and at its end.
            self.fetch([(0, min(_BLOCK, self.size)), (max(self.size - _TAIL, 0), self.size)])
        return super().head(length)

    def fetch(self, spans: Sequence[Span]) -> None:
        """Fetch what is missing of these bytes, and not one more."""
        self._depot.fetch({self: self.pieces.missing(spans)})

    def prefetch(self, spans: Sequence[tuple[int, int]]) -> None:
        self._depot.prefetch({self: spans})

    def wanted(self, spans: Sequence[tuple[int, int]]) -> list[Span]:
        """What to fetch, so that the bytes at these offsets of these lengths are there."""
        if self.size <= _SMALL:
            return self.pieces.missing([(0, self.size)])
        inside = [
            (offset, min(offset + length, self.size))
            for offset, length in spans
            if 0 <= offset < self.size
        ]
        lacking = self.pieces.missing(inside)
        joined = bridged(lacking, (self._may_waste - self._wasted) // _SHARE)
        self._wasted += sum(b - a for a, b in joined) - sum(b - a for a, b in lacking)
        return self.pieces.missing(joined)

    @property
    def _depot(self) -> Warehouse:
        return cast(Warehouse, self.depot)

    def has(self, offset: int, length: int) -> bool:
        return not self.pieces.missing([(offset, min(offset + length, self.size))])

    def allow_waste(self, size: int) -> None:
        self._may_waste = max(self._may_waste, size)

    def sibling(self, name: str) -> File | None:
        return self._folder.file(name)


class Warehouse(Depot):
    """A file system, what is known of its folders, and what may be fetched from it.

    Attributes:
        transport: what moves the bytes.
    """

    def __init__(self, transport: Transport, access: Access) -> None:
        self.transport = transport
        self._access = access
        self._files: WeakValueDictionary[Stat, RemoteFile] = WeakValueDictionary()
        self._listings: dict[str, Mapping[str, Stat] | None] = {}

    def listing(self, path: str) -> Mapping[str, Stat] | None:
        """What is in a folder, by name; None where there is no folder.

        A listing is asked for once in a warehouse's life.

        Raises:
            BnstatError: it cannot be told.
        """
        if path not in self._listings:
            above, _, name = path.rpartition("/")
            if (known := self._listings.get(above)) is not None:
                stat = known.get(name)
                if stat is None or not stat.is_folder:
                    return None
            listed = self.transport.listing(path)
            if listed is None or (is_file(listed, path)):
                self._listings[path] = None
            else:
                self._listings[path] = {stat.name: stat for stat in _below(listed, path)}
        return self._listings[path]

    def file(self, folder: Folder, stat: Stat) -> RemoteFile:
        """The file in that folder; one that is in use knows what was fetched of it."""
        file = self._files.get(stat)
        if file is None:
            file = self._files[stat] = RemoteFile(self, folder, stat)
        return file

    def survey(self, path: str) -> None:
        """List a folder and all that are below it, if there is one.

        Raises:
            BnstatError: it cannot be told.
        """
        found = self.transport.tree(path)
        if found and not is_file(found, path):
            self._know(path, found)

    def recall(self, path: str) -> None:
        """Take what is known of a folder's files, where something is, for a listing of it."""
        files = self._access.listed.get(self.transport.url(path))
        if files is not None:
            self._know(path, _stats(path, files))

    def _know(self, top: str, files: Iterable[Stat]) -> None:
        """Take these for all files that are in a folder and below it."""
        folders: dict[str, dict[str, Stat]] = {top: {}}
        for stat in files:
            inside = stat.path.removeprefix(f"{top}/")
            if stat.is_folder or inside == stat.path or not all(inside.split("/")):
                continue
            while stat.path != top:
                above = stat.path.rpartition("/")[0]
                is_new = above not in folders
                folders.setdefault(above, {})[stat.name] = stat
                if not is_new:
                    break
                stat = Stat(above, True, 0, 0.0, "")
        self._listings.update(folders)

    def prefetch(self, wanted: Mapping[File, Sequence[tuple[int, int]]]) -> None:
        self.fetch(
            {
                file: file.wanted(spans)
                for file, spans in wanted.items()
                if isinstance(file, RemoteFile)
            }
        )

    def fetch(self, wanted: Mapping[RemoteFile, Sequence[Span]]) -> None:
        """Fetch parts of files that were not fetched before, all at once.

        Raises:
            BnstatError: they cannot be fetched, or are more than may be.
        """
        pieces: list[tuple[RemoteFile, Piece]] = []
        for file, spans in wanted.items():
            self._access.take(file.path, sum(end - start for start, end in spans))
            pieces += [(file, Piece(file.stat, *span)) for span in parts(spans)]
        if not pieces:
            return
        fetched = self.transport.fetch([piece for _, piece in pieces])
        for (file, piece), data in zip(pieces, fetched, strict=True):
            file.pieces.add(piece.start, data)


class RemoteFolder(Folder):
    """A folder behind a URL.

    Args:
        depot: the file system that it is in.
        path: where it is, in the driver's words.
    """

    is_remote = True

    def __init__(self, depot: Warehouse, path: str) -> None:
        self.path = depot.transport.url(path)
        self.name = path.rpartition("/")[2]
        self._depot = depot
        self._inside = path

    def names(self) -> list[str]:
        return sorted(self._stats())

    def entries(self) -> list[Entry]:
        return sorted(
            Entry(stat.name, stat.is_folder, stat.size, _tag(stat))
            for stat in self._stats().values()
        )

    def file(self, name: str) -> File | None:
        *above, last = name.split("/")
        folder = self._down(above)
        stat = folder._stats().get(last) if folder is not None else None
        if folder is None or stat is None or stat.is_folder:
            return None
        return self._depot.file(folder, stat)

    def folder(self, name: str) -> Folder | None:
        return self._down(name.split("/"))

    def parent(self) -> Folder | None:
        above = self._inside.rpartition("/")[0]
        return RemoteFolder(self._depot, above) if above else None

    def modified(self, name: str) -> float:
        stat = self._stats().get(name)
        return stat.modified if stat is not None else 0.0

    def _down(self, names: Sequence[str]) -> RemoteFolder | None:
        """The folder below, by the names of those on the way; none leads up or out."""
        folder = self
        for name in names:
            stat = folder._stats().get(name)
            if stat is None or not stat.is_folder:
                return None
            folder = RemoteFolder(self._depot, stat.path)
        return folder

    def _stats(self) -> Mapping[str, Stat]:
        return self._depot.listing(self._inside) or {}


def _tag(stat: Stat) -> str:
    return stat.tag or (f"{_AT}{stat.modified}" if stat.modified else "")


def _stats(top: str, files: Iterable[Entry]) -> Iterator[Stat]:
    """What was told of the files below a folder, as a listing would tell it."""
    for file in files:
        timed = file.tag.startswith(_AT)
        tag = "" if timed else file.tag
        at = float(file.tag.removeprefix(_AT)) if timed else 0.0
        yield Stat(f"{top}/{file.name}", False, file.size, at, tag)


def is_file(listed: Sequence[Stat], path: str) -> bool:
    """Whether what was listed is the file of that path itself."""
    return len(listed) == 1 and not listed[0].is_folder and listed[0].path == path.rstrip("/")


def _below(listed: Sequence[Stat], path: str) -> Iterator[Stat]:
    """What was listed without the folder itself, which some stores keep as an empty object."""
    start = f"{path.rstrip('/')}/"
    for stat in listed:
        if stat.path.startswith(start) and stat.name:
            yield stat
