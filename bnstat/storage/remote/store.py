"""Remote files and folders: listings are requested once, and many ranges are fetched together."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from threading import Lock
from typing import Final
from weakref import WeakValueDictionary

from bnstat.storage.access import Access
from bnstat.storage.files import Entry, File, Folder, Store
from bnstat.storage.remote.transport import Piece, Stat, Transport

Span = tuple[int, int]
"""The position of the first byte, and the position after the last."""

_LARGEST_PIECE: Final = 8 << 20

_WIDEST_GAP: Final = 48 << 10
"""Gaps wider than this are not fetched, because a request costs less."""

_BLOCK: Final = 16 << 10
"""Unannounced reads are rounded to blocks of this size, because the next read is often near."""

_SMALL: Final = 48 << 10
"""Files up to this size are fetched whole."""

_TAIL: Final = 4 << 10

_WASTE: Final = 96 << 10
"""Bytes of gaps that may be fetched per file; each prefetch may use half of the rest."""

_TIME: Final = "at "
"""The prefix of a tag that is the time of the last change."""


def union(spans: Iterable[Span]) -> list[Span]:
    """Return the union of spans, in ascending order, as spans that do not touch."""
    merged: list[Span] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def bridged(spans: Sequence[Span], waste: int) -> list[Span]:
    """Join spans of a `union` over the smallest gaps, at most `waste` bytes in total."""
    gaps = sorted((after[0] - before[1], before[1]) for before, after in pairwise(spans))
    bridges = []
    for size, start in gaps:
        if size > min(waste, _WIDEST_GAP):
            break
        waste -= size
        bridges.append((start, start + size))
    return union([*spans, *bridges])


def split(spans: Iterable[Span]) -> list[Span]:
    """Split spans into spans of at most 8 MiB."""
    return [
        (at, min(at + _LARGEST_PIECE, end))
        for start, end in spans
        for at in range(start, end, _LARGEST_PIECE)
    ]


class Fetched:
    """The fetched ranges of a file; several threads may add ranges."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._data: list[bytes] = []
        self._lock = Lock()

    def missing(self, spans: Iterable[Span]) -> list[Span]:
        """Return the ranges of the spans that were not fetched, as a `union`."""
        with self._lock:
            return self._missing(spans)

    def _missing(self, spans: Iterable[Span]) -> list[Span]:
        missing: list[Span] = []
        for start, end in union(spans):
            index = max(0, bisect_right(self._starts, start) - 1)
            while start < end and index < len(self._starts) and self._starts[index] < end:
                first = self._starts[index]
                if first > start:
                    missing.append((start, first))
                start = max(start, first + len(self._data[index]))
                index += 1
            if start < end:
                missing.append((start, end))
        return missing

    def add(self, start: int, data: bytes) -> None:
        """Keep bytes, unless another thread added them meanwhile."""
        with self._lock:
            for first, end in self._missing([(start, start + len(data))]):
                index = bisect_right(self._starts, first)
                self._starts.insert(index, first)
                self._data.insert(index, data[first - start : end - start])

    def get(self, start: int, end: int) -> bytes:
        """Return bytes that were fetched before."""
        parts = []
        with self._lock:
            index = bisect_right(self._starts, start) - 1
            while start < end:
                offset = start - self._starts[index]
                parts.append(self._data[index][offset : offset + end - start])
                start += len(parts[-1])
                index += 1
        return parts[0] if len(parts) == 1 else b"".join(parts)


class RemoteFile(File):
    """A file behind a URL."""

    store: RemoteStore

    def __init__(self, store: RemoteStore, folder: Folder, stat: Stat) -> None:
        self.name = stat.name
        self.path = store.transport.url(stat.path)
        self.size = stat.size
        self.store = store
        self.stat = stat
        self.fetched = Fetched()
        self._may_waste = _WASTE
        self._wasted = 0
        self._folder = folder

    def _read(self, offset: int, length: int) -> bytes:
        end = offset + length
        if self.size <= _SMALL:
            self._fetch([(0, self.size)])
        elif length < _BLOCK and self.fetched.missing([(offset, end)]):
            self._fetch([(offset // _BLOCK * _BLOCK, min(-(-end // _BLOCK) * _BLOCK, self.size))])
        else:
            self._fetch([(offset, end)])
        return self.fetched.get(offset, end)

    def head(self, length: int) -> bytes:
        if self.size > _SMALL and self.fetched.missing([(max(self.size - 8, 0), self.size)]):
            # Formats are recognized by a file's first and last bytes.
            self._fetch([(0, min(_BLOCK, self.size)), (max(self.size - _TAIL, 0), self.size)])
        return super().head(length)

    def _fetch(self, spans: Sequence[Span]) -> None:
        self.store.fetch({self: self.fetched.missing(spans)})

    def prefetch(self, spans: Sequence[tuple[int, int]]) -> None:
        self.store.prefetch({self: spans})

    def to_fetch(self, spans: Sequence[tuple[int, int]]) -> list[Span]:
        """Return the spans to fetch for a prefetch: missing bytes, and small gaps between."""
        if self.size <= _SMALL:
            return self.fetched.missing([(0, self.size)])
        missing = self.fetched.missing(
            (offset, min(offset + length, self.size))
            for offset, length in spans
            if 0 <= offset < self.size
        )
        joined = bridged(missing, (self._may_waste - self._wasted) // 2)
        self._wasted += sum(end - start for start, end in joined)
        self._wasted -= sum(end - start for start, end in missing)
        return self.fetched.missing(joined)

    def has(self, offset: int, length: int) -> bool:
        return not self.fetched.missing([(offset, min(offset + length, self.size))])

    def allow_waste(self, size: int) -> None:
        self._may_waste = max(self._may_waste, size)

    def refuse_changed(self) -> None:
        self.store.transport.check_unchanged([self.stat])

    def sibling(self, name: str) -> File | None:
        return self._folder.file(name)


class RemoteStore(Store):
    """A remote file system with its listings. Downloads count against the limit of `access`."""

    def __init__(self, transport: Transport, access: Access) -> None:
        self.transport = transport
        self._access = access
        self._files: WeakValueDictionary[Stat, RemoteFile] = WeakValueDictionary()
        self._listings: dict[str, Mapping[str, Stat] | None] = {}

    def listing(self, path: str) -> Mapping[str, Stat] | None:
        """Return name -> entry of a folder; None if it does not exist. Each folder is listed once.

        Raises:
            BnstatError: the folder cannot be listed.
        """
        if path not in self._listings:
            above, _, name = path.rpartition("/")
            if (siblings := self._listings.get(above)) is not None:
                stat = siblings.get(name)
                if stat is None or not stat.is_folder:
                    return None
            stats = self.transport.listing(path)
            start = f"{path.rstrip('/')}/"
            self._listings[path] = (
                None
                if stats is None or _is_file(stats, path)
                # Some stores keep an empty object for the folder itself.
                else {s.name: s for s in stats if s.path.startswith(start) and s.name}
            )
        return self._listings[path]

    def file(self, folder: Folder, stat: Stat) -> RemoteFile:
        """Return a file; while a file is in use, return the same object with its fetched bytes."""
        file = self._files.get(stat)
        if file is None:
            file = self._files[stat] = RemoteFile(self, folder, stat)
        return file

    def list_tree(self, path: str) -> None:
        """List a folder and all of its subfolders.

        Raises:
            BnstatError: a folder cannot be listed.
        """
        stats = self.transport.tree(path)
        if stats and not _is_file(stats, path):
            self._add_listings(path, stats)

    def reuse_listing(self, path: str) -> None:
        """Take the listing of a folder from `Access.listed`, if present."""
        entries = self._access.listed.get(self.transport.url(path))
        if entries is not None:
            self._add_listings(path, [_stat(path, entry) for entry in entries])

    def _add_listings(self, top: str, files: Iterable[Stat]) -> None:
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
        self.fetch({f: f.to_fetch(s) for f, s in wanted.items() if isinstance(f, RemoteFile)})

    def fetch(self, wanted: Mapping[RemoteFile, Sequence[Span]]) -> None:
        """Fetch the missing ranges of files, in parallel.

        Raises:
            BnstatError: the ranges cannot be fetched, or exceed the limit on downloads.
        """
        pieces: list[tuple[RemoteFile, Piece]] = []
        for file, spans in wanted.items():
            self._access.take(file.path, sum(end - start for start, end in spans))
            pieces += [(file, Piece(file.stat, *span)) for span in split(spans)]
        if pieces:
            results = self.transport.fetch([piece for _, piece in pieces])
            for (file, piece), data in zip(pieces, results, strict=True):
                file.fetched.add(piece.start, data)


class RemoteFolder(Folder):
    """A folder behind a URL; `path` is the driver's form of the path."""

    is_remote = True

    def __init__(self, store: RemoteStore, path: str) -> None:
        self.path = store.transport.url(path)
        self.name = path.rpartition("/")[2]
        self._store = store
        self._inside = path

    def names(self) -> list[str]:
        return sorted(self._stats())

    def entries(self) -> list[Entry]:
        return sorted(
            Entry(
                stat.name,
                stat.is_folder,
                stat.size,
                stat.tag or (f"{_TIME}{stat.modified}" if stat.modified else ""),
            )
            for stat in self._stats().values()
        )

    def file(self, name: str) -> File | None:
        above, slash, last = name.rpartition("/")
        folder = self.folder(above) if slash else self
        stat = folder._stats().get(last) if folder is not None else None
        if folder is None or stat is None or stat.is_folder:
            return None
        return self._store.file(folder, stat)

    def folder(self, name: str) -> RemoteFolder | None:
        folder = self
        for part in name.split("/"):
            stat = folder._stats().get(part)
            if stat is None or not stat.is_folder:
                return None
            folder = RemoteFolder(self._store, stat.path)
        return folder

    def parent(self) -> Folder | None:
        above = self._inside.rpartition("/")[0]
        return RemoteFolder(self._store, above) if above else None

    def modified(self, name: str) -> float:
        stat = self._stats().get(name)
        return stat.modified if stat is not None else 0.0

    def _stats(self) -> Mapping[str, Stat]:
        return self._store.listing(self._inside) or {}


def _stat(top: str, entry: Entry) -> Stat:
    """Convert an entry of `RemoteFolder.entries` to a `Stat`; the name is a path below `top`."""
    path = f"{top}/{entry.name}"
    if entry.tag.startswith(_TIME):
        return Stat(path, False, entry.size, float(entry.tag.removeprefix(_TIME)), "")
    return Stat(path, False, entry.size, 0.0, entry.tag)


def _is_file(stats: Sequence[Stat], path: str) -> bool:
    """Return True if a listing of `path` contains only the file at that path."""
    return len(stats) == 1 and not stats[0].is_folder and stats[0].path == path.rstrip("/")
