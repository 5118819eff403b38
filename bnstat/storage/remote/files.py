"""Files and folders that are far away: what is read of them is fetched, many ranges at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, cast
from weakref import WeakValueDictionary

from bnstat.storage.access import Access
from bnstat.storage.files import Depot, Entry, File, Folder
from bnstat.storage.remote.spans import Pieces, Span, bridged, parts
from bnstat.storage.remote.transport import Piece, Stat, Transport

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
        """List a folder and all that are below it.

        Raises:
            BnstatError: it cannot be told.
        """
        self._know(path, self.transport.tree(path))
        self.transport.forget(path)

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

    is_far = True

    def __init__(self, depot: Warehouse, path: str) -> None:
        self.path = depot.transport.url(path)
        self.name = path.rpartition("/")[2]
        self._depot = depot
        self._inside = path

    def names(self) -> list[str]:
        return sorted(self._stats())

    def entries(self) -> list[Entry]:
        return sorted(
            Entry(stat.name, stat.is_folder, stat.size, stat.tag or f"{_AT}{stat.modified}")
            for stat in self._stats().values()
        )

    def survey(self) -> None:
        self._depot.survey(self._inside)

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


def _stats(top: str, files: Iterable[Entry]) -> Iterator[Stat]:
    """What was told of the files below a folder, as a listing would tell it."""
    for file in files:
        tag = "" if file.tag.startswith(_AT) else file.tag
        at = float(file.tag.removeprefix(_AT)) if not tag else 0.0
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
