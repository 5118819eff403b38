"""Remote files and folders, through fsspec's drivers.

A listing returns the size, time and tag of every file in a folder, so that no request per file is
needed. fsspec cannot make a read conditional on a tag, so after parts of a file were read, the file
is compared with the listing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from itertools import pairwise
from threading import RLock
from typing import Any, Final, NamedTuple
from weakref import WeakValueDictionary

from bnstat.errors import BnstatError, ChangedError
from bnstat.storage.access import WEB, Access, missing_driver, redact, scheme_of, to_bnstat_error
from bnstat.storage.files import Entry, File, Folder, Spot

_MAX_THREADS: Final = 64
_TAGS: Final = ("generation", "ETag", "etag", "blob_id")
_TIMES: Final = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")

Span = tuple[int, int]
"""(start, end): the offset of the first byte of a range, and the offset after its last byte."""

_LARGEST_PIECE: Final = 8 << 20

_WIDEST_GAP: Final = 48 << 10
"""The widest gap that is fetched to join two ranges; a wider gap costs more than a request."""

_BLOCK: Final = 16 << 10
"""Unannounced reads are rounded to blocks of this size, because the next read is often near."""

_SMALL: Final = 48 << 10  # files up to this size are fetched whole
_TAIL: Final = 4 << 10
_WASTE: Final = 96 << 10
"""Bytes of gaps that may be fetched per file. Each prefetch may use half of what remains."""


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
    """Join sorted spans across gaps of at most `waste` bytes in total, smallest gaps first."""
    gaps = sorted((after[0] - before[1], before[1]) for before, after in pairwise(spans))
    bridges = []
    for size, start in gaps:
        if size > min(waste, _WIDEST_GAP):
            break
        waste -= size
        bridges.append((start, start + size))
    return union([*spans, *bridges])


class Fetched:
    """The fetched ranges of a file; several threads may add ranges."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._data: list[bytes] = []
        self._lock = RLock()

    def missing(self, spans: Iterable[Span]) -> list[Span]:
        """Return the parts of the spans that were not fetched yet, in ascending order."""
        missing: list[Span] = []
        with self._lock:
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
        """Store fetched bytes from the offset `start`, except bytes that are stored already."""
        with self._lock:
            for first, end in self.missing([(start, start + len(data))]):
                index = bisect_right(self._starts, first)
                self._starts.insert(index, first)
                self._data.insert(index, data[first - start : end - start])

    def get(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to `end`. They must have been fetched before."""
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
    """A file behind a URL; `inside` is the path as the driver expects it, such as `BUCKET/KEY`."""

    store: RemoteStore

    def __init__(self, store: RemoteStore, folder: Folder, inside: str, entry: Entry) -> None:
        self.name = entry.name
        self.path = store.url(inside)
        self.size = entry.size
        self.store = store
        self.inside = inside
        self.entry = entry
        self.fetched = Fetched()
        self._may_waste = _WASTE
        self._wasted = 0
        self._folder = folder

    def _read(self, offset: int, length: int) -> bytes:
        start, end = offset, offset + length
        if self.size <= _SMALL:
            start, end = 0, self.size
        elif length < _BLOCK and self.fetched.missing([(start, end)]):
            start, end = start // _BLOCK * _BLOCK, min(-(-end // _BLOCK) * _BLOCK, self.size)
        self._fetch([(start, end)])
        return self.fetched.get(offset, offset + length)

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
        """Return the missing bytes of (offset, length) pairs as spans, joined across small gaps."""
        if self.size <= _SMALL:
            return self.fetched.missing([(0, self.size)])
        inside = [(at, min(at + size, self.size)) for at, size in spans if 0 <= at < self.size]
        missing = self.fetched.missing(inside)
        joined = bridged(missing, (self._may_waste - self._wasted) // 2)
        self._wasted += sum(end - start for start, end in joined)
        self._wasted -= sum(end - start for start, end in missing)
        return self.fetched.missing(joined)

    def has(self, offset: int, length: int) -> bool:
        return not self.fetched.missing([(offset, min(offset + length, self.size))])

    def allow_waste(self, size: int) -> None:
        self._may_waste = max(self._may_waste, size)

    def refuse_changed(self) -> None:
        self.store.check_unchanged([self])

    def sibling(self, name: str) -> File | None:
        return self._folder.file(name)

    def expect(self, names: Iterable[str]) -> None:
        self._folder.expect(names)


class Piece(NamedTuple):
    """A range of a file, from `start` up to but excluding `end`."""

    file: RemoteFile
    start: int
    end: int

    @property
    def is_whole(self) -> bool:
        return self.end - self.start == self.file.size


class RemoteStore:
    """A remote file system of fsspec; `host` is `@ACCOUNT.HOST` for Azure, empty otherwise."""

    _opens_by_listing = False
    """True if the driver needs a request to open a file that is not in its cached listings."""

    def __init__(self, fs: Any, scheme: str, access: Access, host: str = "") -> None:
        self._fs = fs
        self._scheme = scheme
        self._host = host
        self.access = access
        self._files: WeakValueDictionary[tuple[str, Entry], RemoteFile] = WeakValueDictionary()
        self._listings: dict[str, Mapping[str, Entry] | None] = {}

    def url(self, path: str) -> str:
        """Return the URL of a driver's path, without secrets."""
        container, slash, inside = path.removeprefix("/").partition("/")
        return redact(f"{self._scheme}://{container}{self._host}{slash}{inside}")

    def find(self, path: str, recursive: bool) -> Spot:
        """Return the location of a driver's path; see `bnstat.storage.local.find`."""
        path = self.canonical(path.rstrip("/"))
        if not self.access.listed:
            self._fs.invalidate_cache(path)
        above, _, name = path.rpartition("/")
        for folder in (path, above):
            if (listed := self.access.listed.get(self.url(folder))) is not None:
                self._add_listings(folder, listed)
        if recursive:
            files = self._listed(self._fs.find, path)
            if not self._opens_by_listing:
                # The driver would keep this listing, which may be huge, as long as the process.
                self._fs.invalidate_cache()
            if files:
                self._add_listings(path, files.values())
        if self.listing(path) is not None:
            return Spot(None, name, RemoteFolder(self, path))
        has_parent = above.strip("/") or path.startswith("/")
        return Spot(RemoteFolder(self, above) if has_parent else None, name, None)

    def canonical(self, path: str) -> str:
        """Return a path in the form that the driver uses in listings."""
        return path

    def listing(self, path: str) -> Mapping[str, Entry] | None:
        """Return name -> entry for a folder, which is listed once; None if it does not exist."""
        if path not in self._listings:
            above, _, name = path.rpartition("/")
            if (siblings := self._listings.get(above)) is not None:
                entry = siblings.get(name)
                if entry is None or not entry.is_folder:
                    return None
            self._listings[path] = self._listed(self._fs.ls, path)
        return self._listings[path]

    def _listed(self, ask: Callable[..., Any], path: str) -> dict[str, Entry] | None:
        """List a folder with `ask`; return relative path -> entry, or None if not a folder."""
        try:
            infos = ask(path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:
            raise to_bnstat_error(error, self.url(path)) from error
        start = f"{path.rstrip('/')}/"
        entries = {}
        for info in infos.values() if isinstance(infos, dict) else infos:
            entry = to_entry(info)
            if len(infos) == 1 and not entry.is_folder and entry.name == path.rstrip("/"):
                return None
            # Some stores keep an empty object for the folder itself.
            if entry.name.startswith(start) and (name := entry.name.removeprefix(start)):
                entries[name] = entry._replace(name=name)
        return entries

    def _add_listings(self, top: str, files: Iterable[Entry]) -> None:
        """Store the listings of `top` and its subfolders; `files` have names relative to `top`."""
        folders: dict[str, dict[str, Entry]] = {top: {}}
        for entry in files:
            path = f"{top}/{entry.name}"
            if entry.is_folder or not all(entry.name.split("/")):
                continue
            while path != top:
                above, _, name = path.rpartition("/")
                is_new = above not in folders
                folders.setdefault(above, {})[name] = entry._replace(name=name)
                if not is_new:
                    break
                path, entry = above, Entry("", True, 0)
        self._listings.update(folders)

    def file(self, folder: Folder, path: str, entry: Entry) -> RemoteFile:
        """Return the file at `path`, always the same object as long as a caller holds it."""
        file = self._files.get((path, entry))
        if file is None:
            file = self._files[path, entry] = RemoteFile(self, folder, path, entry)
        return file

    def prefetch(self, wanted: Mapping[File, Sequence[tuple[int, int]]]) -> None:
        """Fetch ranges together; `wanted` maps file -> (offset, length) pairs."""
        self.fetch({f: f.to_fetch(s) for f, s in wanted.items() if isinstance(f, RemoteFile)})

    def fetch(self, wanted: Mapping[RemoteFile, Sequence[Span]]) -> None:
        """Fetch ranges of files in parallel; `wanted` maps file -> spans not fetched yet.

        `Access.add_reads` checks the files for changes, except a file that is fetched in one piece,
        because one response contains one version.
        """
        pieces: list[Piece] = []
        for file, spans in wanted.items():
            self.access.take(file.path, sum(end - start for start, end in spans))
            for start, end in spans:
                for at in range(start, end, _LARGEST_PIECE):
                    pieces.append(Piece(file, at, min(at + _LARGEST_PIECE, end)))
        if not pieces:
            return
        try:
            results = self._read(pieces)
        except Exception as error:
            raise to_bnstat_error(error, pieces[0].file.path) from error
        for (file, start, end), data in zip(pieces, results, strict=True):
            if isinstance(data, BaseException):
                raise to_bnstat_error(data, file.path) from data
            if len(data) != end - start:
                raise ChangedError(file.path, "changed while it was read", "try again later")
        for piece, data in zip(pieces, results, strict=True):
            piece.file.fetched.add(piece.start, data)
        self.access.add_reads(self, {piece.file for piece in pieces if not piece.is_whole})

    def check_unchanged(self, files: Iterable[RemoteFile]) -> None:
        """Raise a `ChangedError` if a file differs from its listing, with one request per file."""
        # Some drivers drop only the listing of the path itself, not of its folder.
        self._fs.invalidate_cache()
        with ThreadPoolExecutor(_MAX_THREADS) as pool:
            list(pool.map(self._check_one, files))

    def _check_one(self, file: RemoteFile) -> None:
        try:
            is_same = is_same_version(file.entry, to_entry(self._fs.info(file.inside)))
        except FileNotFoundError:
            is_same = False
        except Exception as error:
            raise to_bnstat_error(error, file.path) from error
        if not is_same:
            # The next read must not succeed with these bytes.
            file.fetched = Fetched()
            raise ChangedError(file.path, "changed while it was read", "try again later")

    def _read(self, pieces: Sequence[Piece]) -> list[Any]:
        """Return a list with, for each piece, the bytes or the exception that was raised."""
        paths = [piece.file.inside for piece in pieces]
        starts = [piece.start for piece in pieces]
        # One byte more than a whole file has, to notice that it grew.
        ends = [piece.end + piece.is_whole for piece in pieces]
        return list(self._fs.cat_ranges(paths, starts, ends, on_error="return"))


def to_entry(info: Mapping[str, Any]) -> Entry:
    """Convert an item of a driver's listing to an `Entry` whose name is the full path."""
    return Entry(
        info["name"].rstrip("/"),
        info["type"] == "directory" or info["name"].endswith("/"),
        int(info.get("size") or 0),
        str(next((info[key] for key in _TAGS if info.get(key)), "")),
        modified=_seconds(info),
    )


def _seconds(info: Mapping[str, Any]) -> float:
    for key in _TIMES:
        value = info.get(key)
        with suppress(ValueError, OverflowError):
            if isinstance(value, str):
                value = datetime.fromisoformat(value.replace("Z", "+00:00"))
            if isinstance(value, datetime):
                return value.timestamp()
        if isinstance(value, (int, float)):
            return float(value)
    return 0.0


def is_same_version(one: Entry, other: Entry) -> bool:
    """Return True if sizes and tags are equal; known times are compared if a tag is unknown."""
    if one.size != other.size:
        return False
    if one.tag and other.tag:
        return one.tag.strip('"') == other.tag.strip('"')
    is_unknown = not (one.modified and other.modified)
    return is_unknown or int(one.modified) == int(other.modified)


class RemoteFolder(Folder):
    """A folder behind a URL; `inside` is the path as the driver expects it."""

    is_remote = True

    def __init__(self, store: RemoteStore, inside: str) -> None:
        self.path = store.url(inside)
        self.name = inside.rpartition("/")[2]
        self._store = store
        self._inside = inside

    def names(self) -> list[str]:
        return sorted(self._listing())

    def entries(self) -> list[Entry]:
        return sorted(self._listing().values())

    def file(self, name: str) -> File | None:
        above, slash, last = name.rpartition("/")
        folder = self.folder(above) if slash else self
        entry = folder._listing().get(last) if folder is not None else None
        if folder is None or entry is None or entry.is_folder:
            return None
        return self._store.file(folder, f"{folder._inside}/{last}", entry)

    def folder(self, name: str) -> RemoteFolder | None:
        folder = self
        for part in name.split("/"):
            entry = folder._listing().get(part)
            if entry is None or not entry.is_folder:
                return None
            folder = RemoteFolder(self._store, f"{folder._inside}/{part}")
        return folder

    def parent(self) -> Folder | None:
        above = self._inside.rpartition("/")[0]
        return RemoteFolder(self._store, above) if above else None

    def modified(self, name: str) -> float:
        entry = self._listing().get(name)
        return entry.modified if entry is not None else 0.0

    def _listing(self) -> Mapping[str, Entry]:
        return self._store.listing(self._inside) or {}


class HuggingFace(RemoteStore):
    """The Hugging Face hub. Paths may contain a revision; each range is read in its own thread."""

    _opens_by_listing = True

    def canonical(self, path: str) -> str:
        try:
            return str(self._fs.resolve_path(path).unresolve())
        except Exception as error:
            raise to_bnstat_error(error, self.url(path)) from error

    def check_unchanged(self, files: Iterable[RemoteFile]) -> None:
        """Do nothing: files of a revision change rarely, and the hub limits requests."""

    def _read(self, pieces: Sequence[Piece]) -> list[Any]:
        with ThreadPoolExecutor(_MAX_THREADS) as pool:
            return list(pool.map(self._read_one, pieces))

    def _read_one(self, piece: Piece) -> bytes | BaseException:
        options = {"size": piece.file.size, "cache_type": "none"}
        try:
            with self._fs.open(piece.file.inside, "rb", **options) as file:
                file.seek(piece.start)
                return bytes(file.read(piece.end - piece.start))
        except Exception as error:
            return error


_DRIVERS: Final = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "hf": "huggingface_hub",
    "memory": "fsspec",
}
"""Scheme -> library of the driver."""

_S3_OPTIONS: Final = {
    "config_kwargs": {
        "connect_timeout": 5,
        "read_timeout": 30,
        # s3fs itself makes up to five attempts at what its client gives up.
        "retries": {"mode": "standard", "total_max_attempts": 3},
        "max_pool_connections": 64,
    }
}


def connect(url: str, access: Access) -> tuple[RemoteStore, str]:
    """Return the store of a URL, and the URL's path as the driver expects it."""
    scheme, where = scheme_of(url) or "", redact(url)
    library = _DRIVERS.get(scheme)
    if library is None:
        *schemes, last = [f"{name}://" for name in (*_DRIVERS, *WEB)]
        hint = f"URLs start with {', '.join(schemes)} or {last}"
        raise BnstatError(where, f"{scheme}:// is not a supported scheme", hint)
    try:
        import fsspec

        kind = fsspec.get_filesystem_class(scheme)
        host, of_account = _account_of(url) if library == "adlfs" else ("", {})
        options: dict[str, Any] = {**kind._get_kwargs_from_urls(url), **of_account}
        for name, value in options.items():
            if access.options.get(name, value) != value:
                what = f"{name} is {value!r} in the URL, but differs in the storage options"
                raise BnstatError(where, what, f"remove {name} from the storage options")
        key = (scheme, *sorted(options.items()))
        if key not in access.drivers:
            defaults = _S3_OPTIONS if library == "s3fs" else {}
            all_options = {**defaults, **options, **access.options}
            access.drivers[key] = fs = fsspec.filesystem(scheme, **all_options)
            # Azure's driver prefers a connection string, which the environment may contain.
            account = fs.service_client.account_name if host and fs.connection_string else None
            if account not in (None, options.get("account_name")):
                raise BnstatError(
                    where,
                    f"the URL is for the account {options['account_name']!r}, but the connection "
                    f"string is for {account!r}",
                    "remove the connection string from the storage options, or unset "
                    "AZURE_STORAGE_CONNECTION_STRING",
                )
        if key not in access.stores:
            store = HuggingFace if scheme == "hf" else RemoteStore
            access.stores[key] = store(access.drivers[key], scheme, access, host)
        return access.stores[key], kind._strip_protocol(url)
    except ImportError as error:
        raise missing_driver(url, library) from error
    except (TypeError, ValueError) as error:
        what = "the driver does not accept this address or these storage options"
        hint = "pass the driver's options with --storage-option KEY=VALUE or environment variables"
        raise BnstatError(where, what, hint) from error
    except Exception as error:
        raise to_bnstat_error(error, where) from error


_BLOB: Final = "blob.core.windows.net"
_DFS: Final = "dfs.core.windows.net"


def _account_of(url: str) -> tuple[str, dict[str, str]]:
    """Return `@HOST` of `abfss://CONTAINER@HOST/PATH`, and the driver's options for the account.

    Azure's driver does not parse the host. Both results are empty if the URL names no account.
    """
    _, at, host = url.partition("://")[2].partition("/")[0].rpartition("@")
    account, _, domain = host.partition(".")
    if not account or not (at or host.endswith((f".{_DFS}", f".{_BLOB}"))):
        return "", {}
    options = {"account_name": account}
    if domain not in ("", _DFS, _BLOB):
        options["account_host"] = f"{account}.{domain.replace('dfs.', 'blob.', 1)}"
    return f"@{host}", options
