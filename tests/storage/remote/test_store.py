"""Remote files and folders: which bytes are fetched, in how many requests, and what is listed."""

from __future__ import annotations

import io
import itertools
from datetime import datetime, timezone
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnstat.errors import BnstatError, ChangedError, DamagedError
from bnstat.storage.access import Access
from bnstat.storage.files import Entry, File, Range, prefetch
from bnstat.storage.stores import (
    Fetched,
    HuggingFace,
    RemoteFolder,
    RemoteStore,
    Span,
    bridged,
    is_same_version,
    to_entry,
    union,
)

SPANS = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)))


def covered(spans: list[Span]) -> set[int]:
    return {at for start, end in spans for at in range(start, end)}


@given(SPANS, st.integers(0, 100))
def test_bridges_waste_at_most_the_limit(spans: list[Span], waste: int) -> None:
    merged = union(spans)
    assert covered(merged) == covered(spans)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(merged))
    joined = bridged(merged, waste)
    assert covered(joined) >= covered(merged)
    wasted = len(covered(joined) - covered(merged))
    assert wasted <= waste
    gaps = sorted(other[0] - one[1] for one, other in itertools.pairwise(joined))
    assert not gaps or gaps[0] + wasted > waste


KIB = 1 << 10
NEAR = [(0, 1), (6, 7), (11, 12), (30, 31)]
FAR = [(0, 1), (48 * KIB, 48 * KIB + 1), (100 * KIB, 100 * KIB + 1)]


@pytest.mark.parametrize(
    ("spans", "waste", "joined"),
    [
        (NEAR, 8, [(0, 1), (6, 12), (30, 31)]),
        (NEAR, 9, [(0, 12), (30, 31)]),
        (NEAR, 3, NEAR),
        (FAR, 1 << 20, [(0, 48 * KIB + 1), FAR[2]]),
    ],
)
def test_the_smallest_gaps_are_bridged(spans: list[Span], waste: int, joined: list[Span]) -> None:
    assert bridged(spans, waste) == joined


@given(st.lists(SPANS))
def test_fetched_bytes_are_returned(steps: list[list[Span]]) -> None:
    """Threads may fetch overlapping bytes at the same time."""
    content = bytes(number % 251 for number in range(200))
    fetched = Fetched()
    held: set[int] = set()
    for spans in steps:
        assert covered(fetched.missing(spans)) == covered(spans) - held
        for start, end in spans:
            fetched.add(start, content[start:end])
        held |= covered(spans)
        assert not fetched.missing(spans)
        for start, end in spans:
            assert fetched.get(start, end) == content[start:end]


SIZE = 1_000_000
CONTENT = bytes(range(251)) * (SIZE // 251 + 1)


class FileSystem:
    """fsspec's interface to files of given sizes, which are longer than listed by `grown` bytes.

    Listed folders, pieces of each fetch, compared files and options of opened files are recorded.
    """

    def __init__(self, files: dict[str, int]) -> None:
        self.files = files
        self.error: Exception | None = None
        self.marks, self.grown = True, 0
        self.asked: list[str] = []
        self.requests: list[list[tuple[str, int, int]]] = []
        self.checked: list[str] = []
        self.opened: list[dict[str, Any]] = []

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error

    def _file(self, path: str) -> dict[str, Any]:
        return {"name": path, "type": "file", "size": self.files[path], "mtime": 7.0}

    def ls(self, path: str, detail: bool) -> list[dict[str, Any]]:
        self.asked.append(path)
        self._raise()
        if path in self.files:
            return [self._file(path)]
        below = [name for name in self.files if name.startswith(f"{path}/")]
        if not below:
            raise FileNotFoundError(path)
        # Some stores keep an empty object for the folder itself.
        listing = [{"name": f"{path}/", "type": "directory", "size": 0}] if self.marks else []
        for name, more in sorted({b.removeprefix(f"{path}/").partition("/")[::2] for b in below}):
            inside = f"{path}/{name}"
            listing.append({"name": inside, "type": "directory"} if more else self._file(inside))
        return listing

    def find(self, path: str, detail: bool) -> dict[str, dict[str, Any]]:
        self._raise()
        return {name: self._file(name) for name in self.files if name.startswith(f"{path}/")}

    def info(self, path: str) -> dict[str, Any]:
        self.checked.append(path)
        return self._file(path)

    def invalidate_cache(self, path: str | None = None) -> None: ...

    def cat_ranges(
        self, paths: list[str], starts: list[int], ends: list[int], on_error: str
    ) -> list[bytes]:
        self._raise()
        self.requests.append([])
        contents = []
        for path, start, end in zip(paths, starts, ends, strict=True):
            last = min(end, self.files[path] + self.grown)
            self.requests[-1].append((path.rpartition("/")[2], start, last))
            contents.append(CONTENT[start:last].ljust(last - start))
        return contents

    def open(self, path: str, mode: str, **options: Any) -> io.BytesIO:
        self.opened.append(options)
        self._raise()
        return io.BytesIO(CONTENT[: self.files[path] + self.grown])


@pytest.fixture
def store() -> FileSystem:
    files = {"top/a/big": SIZE, "top/a/other": SIZE, "top/small": 48 * KIB, "top/empty": 0}
    return FileSystem(files)


@pytest.fixture
def top(store: FileSystem) -> RemoteFolder:
    return folder(store)


@pytest.fixture
def big(top: RemoteFolder) -> File:
    return top.file("a/big")


def folder(
    fs: FileSystem, access: Access | None = None, kind: type[RemoteStore] = RemoteStore
) -> RemoteFolder:
    return RemoteFolder(kind(fs, "s3", access or Access()), "top")


class TestFolders:
    def test_contents(self, top: RemoteFolder) -> None:
        assert (top.name, top.path, top.names()) == ("top", "s3://top", ["a", "empty", "small"])
        below = top.folder("a")
        assert (below.name, below.path, below.names()) == ("a", "s3://top/a", ["big", "other"])
        assert (below.parent().path, top.parent()) == ("s3://top", None)
        assert (top.modified("small"), top.modified("none")) == (7.0, 0.0)

    def test_files_by_their_names(self, top: RemoteFolder, big: File) -> None:
        assert (big.name, big.path, big.size) == ("big", "s3://top/a/big", SIZE)
        for name in ("a", "none", "none/big", "small/big", "a/none", "a/big/x", "..", ""):
            assert top.file(name) is None
        for name in ("small", "none", "a/big", "..", "a/.."):
            assert top.folder(name) is None
        assert (big.sibling("other").path, big.sibling("small")) == ("s3://top/a/other", None)

    def test_a_folder_is_listed_once(self, store: FileSystem, top: RemoteFolder) -> None:
        for _ in range(3):
            assert top.file("a/big") is not None
            assert top.file("a/none") is None
            assert top.names()
        assert store.asked == ["top", "top/a"]

    def test_a_folder_of_one_file(self, store: FileSystem) -> None:
        store.marks, store.files = False, {"top/only": 5}
        assert folder(store).names() == ["only"]

    def test_a_file_is_not_a_folder(self, store: FileSystem) -> None:
        remote = RemoteStore(store, "s3", Access())
        for _ in range(2):
            assert remote.listing("top/small") is remote.listing("none") is None
        assert RemoteFolder(remote, "none").names() == []
        assert store.asked == ["top/small", "none"]


class TestReading:
    def test_a_small_file_is_fetched_whole(self, store: FileSystem, top: RemoteFolder) -> None:
        small = top.file("small")
        assert not small.has(0, 1)
        assert small.read(100, 10) == CONTENT[100:110]
        assert small.has(0, 48 * KIB)
        small.prefetch([(0, 99)])
        assert small.head(9) == CONTENT[:9]
        assert small.read() == CONTENT[: 48 * KIB]
        assert store.requests == [[("small", 0, 48 * KIB)]]

    def test_a_larger_file_is_not(self, store: FileSystem) -> None:
        store.files = {"top/larger": 48 * KIB + 1}
        larger = folder(store).file("larger")
        larger.read(100, 10)
        larger.prefetch([(20 * KIB, 10)])
        asked = [("larger", 0, 16 * KIB), ("larger", 20 * KIB, 20 * KIB + 10)]
        assert store.requests == [[span] for span in asked]

    def test_unannounced_reads_fetch_blocks(self, store: FileSystem, big: File) -> None:
        for start, length, asked in (
            (20 * KIB, 10, (16 * KIB, 32 * KIB)),
            (17 * KIB, 10, None),
            (31 * KIB, 2 * KIB, (32 * KIB, 48 * KIB)),
            (100 * KIB + 1, 16 * KIB, (100 * KIB + 1, 116 * KIB + 1)),
            (SIZE - 5, 5, (SIZE // (16 * KIB) * 16 * KIB, SIZE)),
        ):
            store.requests.clear()
            assert big.read(start, length) == CONTENT[start : start + length]
            assert store.requests == ([[("big", *asked)]] if asked else [])
        with pytest.raises(DamagedError, match="truncated"):
            big.read(SIZE - 5, 6)

    def test_the_tail_is_fetched_with_the_head(self, store: FileSystem, big: File) -> None:
        assert big.head(100) == CONTENT[:100]
        assert big.read(SIZE - 8, 8) == CONTENT[SIZE - 8 : SIZE]
        assert big.head(16 * KIB) == CONTENT[: 16 * KIB]
        assert store.requests == [[("big", 0, 16 * KIB), ("big", SIZE - 4 * KIB, SIZE)]]

    def test_an_empty_file(self, store: FileSystem, top: RemoteFolder) -> None:
        empty = top.file("empty")
        assert empty.read() == empty.head(10) == b""
        empty.prefetch([(0, 0), (5, 5)])
        assert store.requests == []


class TestFetching:
    def test_many_files_together(self, store: FileSystem, top: RemoteFolder) -> None:
        files = [top.file(name) for name in ("a/big", "a/other", "small")]
        prefetch([Range(file, at, 5) for at in (300_000, 0) for file in files])
        (asked,) = store.requests
        both = [(name, at, at + 5) for name in ("big", "other") for at in (0, 300_000)]
        assert sorted(asked) == [*both, ("small", 0, 48 * KIB)]
        for file in files[:2]:
            assert (file.has(0, 5), file.has(0, 6)) == (True, False)
            assert file.read(300_000, 5) == CONTENT[300_000:300_005]
        assert len(store.requests) == 1

    def test_prefetching_beyond_the_end(self, store: FileSystem, big: File) -> None:
        big.prefetch([(SIZE - 5, 99), (SIZE, 5), (SIZE + 1, 5), (-5, 5)])
        assert store.requests == [[("big", SIZE - 5, SIZE)]]
        assert big.has(SIZE - 5, 99)

    def test_long_ranges_are_split(self, store: FileSystem) -> None:
        store.files = {"top/huge": 20 << 20}
        folder(store).file("huge").prefetch([(1 << 20, 18 << 20)])
        (asked,) = store.requests
        spans = [(1 << 20, 9 << 20), (9 << 20, 17 << 20), (17 << 20, 19 << 20)]
        assert asked == [("huge", *span) for span in spans]

    def test_small_gaps_are_fetched(self, store: FileSystem, big: File) -> None:
        """96 KiB may be wasted; each prefetch may waste half of the rest."""
        big.prefetch([(0, 10), (40 * KIB, 10), (100 * KIB, 10)])
        assert store.requests == [[("big", 0, 40 * KIB + 10), ("big", 100 * KIB, 100 * KIB + 10)]]
        # 40 KiB less 10 bytes are gone: 28 KiB may be wasted now.
        big.prefetch([(200 * KIB, 10), (229 * KIB, 10), (256 * KIB, 10)])
        assert store.requests[1:] == [
            [("big", 200 * KIB, 200 * KIB + 10), ("big", 229 * KIB, 256 * KIB + 10)]
        ]

    def test_more_waste_may_be_allowed(self, store: FileSystem, big: File) -> None:
        big.allow_waste(400 * KIB)
        big.allow_waste(1)
        big.prefetch([(0, 10), (40 * KIB, 10), (80 * KIB, 10), (180 * KIB, 10)])
        assert store.requests == [[("big", 0, 80 * KIB + 10), ("big", 180 * KIB, 180 * KIB + 10)]]

    def test_the_limit_on_downloads(self, store: FileSystem) -> None:
        access = Access(max_download=100_000)
        big = folder(store, access).file("a/big")
        big.prefetch([(0, 60_000)])
        message = "s3://top/a/big: reading this exceeds the download limit of 100 kB"
        with pytest.raises(BnstatError, match=message):
            big.prefetch([(200_000, 50_000)])
        big.prefetch([(0, 60_000)])
        assert (len(store.requests), access.left) == (1, 40_000)


BOTH = pytest.mark.parametrize("kind", [RemoteStore, HuggingFace])


class TestDrivers:
    @BOTH
    def test_ranges_are_returned_in_order(self, kind: type[RemoteStore], store: FileSystem) -> None:
        big = folder(store, kind=kind).file("a/big")
        big.prefetch([(500_000, 3), (7, 5)])
        assert big.read(500_000, 3) == CONTENT[500_000:500_003]
        assert big.read(7, 5) == CONTENT[7:12]
        # Nothing is read ahead.
        assert all(options == {"size": SIZE, "cache_type": "none"} for options in store.opened)

    @BOTH
    def test_errors_name_the_file(self, kind: type[RemoteStore], store: FileSystem) -> None:
        small = folder(store, kind=kind).file("small")
        store.error = TimeoutError()
        with pytest.raises(BnstatError, match="s3://top/small: the server does not answer in time"):
            small.read()

    def test_listings_that_fail(self, store: FileSystem) -> None:
        for absent in (FileNotFoundError(), NotADirectoryError()):
            store.error = absent
            assert RemoteStore(store, "s3", Access()).find("top", True).folder is None
        store.error = PermissionError()
        for recursive in (True, False):
            with pytest.raises(BnstatError, match="s3://top: access is denied"):
                RemoteStore(store, "s3", Access()).find("top", recursive)

    def test_a_tree_is_listed_by_one_request(self, store: FileSystem) -> None:
        store.files["top/b/c/deep"] = 5
        top = RemoteStore(store, "s3", Access()).find("top", recursive=True).folder
        assert top.names() == ["a", "b", "empty", "small"]
        assert (top.file("a/big").size, top.file("b/c/deep").size) == (SIZE, 5)
        assert store.asked == []


class TestChanges:
    @pytest.mark.parametrize("grown", [-1, 1, 99])
    @pytest.mark.parametrize("name", ["small", "a/big"])
    def test_a_file_of_another_size(self, name: str, grown: int, store: FileSystem) -> None:
        file = folder(store).file(name)
        store.grown = grown
        with pytest.raises(ChangedError, match=f"s3://top/{name}: changed while it was read"):
            file.read()

    def test_a_partly_read_file_is_compared_with_its_listing(self, store, top, big) -> None:
        top.file("small").read()
        assert store.checked == []  # One response contains all of it.
        big.read(5, 5)
        assert store.checked == ["top/a/big"]
        store.files["top/a/big"] += 1
        again = partial(big.read, 100_000, 5)
        for read in (again, again, big.refuse_changed):
            with pytest.raises(ChangedError, match="s3://top/a/big: changed while it was read; t"):
                read()

    def test_files_are_compared_once_per_block(self, store: FileSystem) -> None:
        access = Access()
        top = folder(store, access)
        with access.reading():
            for name in ("a/big", "a/other"):
                for start in (0, 100_000):
                    top.file(name).read(start, 5)
            assert store.checked == []
            with access.reading():
                pass
            assert sorted(store.checked) == ["top/a/big", "top/a/other"]
        assert len(store.checked) == 2

    @pytest.mark.parametrize("error", [None, DamagedError("m", "damaged")])
    def test_a_change_explains_other_errors(self, error, store) -> None:
        access = Access()
        big = folder(store, access).file("a/big")

        def read() -> None:
            with access.reading():
                big.read(0, 5)
                store.files["top/a/big"] += 1
                if error is not None:
                    raise error

        with pytest.raises(ChangedError):
            read()

    def test_an_error_of_the_network_is_not_followed_by_requests(self, store: FileSystem) -> None:
        access = Access()
        big = folder(store, access).file("a/big")

        def read() -> None:
            with access.reading():
                big.read(0, 5)
                store.error = TimeoutError()
                big.read(100_000, 5)

        with pytest.raises(BnstatError, match="does not answer"):
            read()
        store.error = None
        big.read(200_000, 5)
        assert store.checked == ["top/a/big"]

    @pytest.mark.parametrize(
        ("tag", "other", "is_same"),
        [
            ("", Entry("x", False, 10, modified=5.9), True),
            ("", Entry("x", False, 10, modified=6.0), False),
            ("", Entry("x", False, 11, modified=5.0), False),
            ("", Entry("x", False, 10, "tag", modified=5.0), True),
            ("", Entry("x", False, 10, "tag"), True),
            ("", Entry("x", False, 11, "tag"), False),
            ("t", Entry("x", False, 10, '"t"', modified=9.0), True),
            ("t", Entry("x", False, 10, "u", modified=5.0), False),
        ],
    )
    def test_times_are_compared_without_tags(self, tag: str, other: Entry, is_same: bool) -> None:
        assert is_same_version(Entry("x", False, 10, tag, modified=5.0), other) is is_same


NOON = datetime(2024, 5, 6, 12, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("info", "seconds"),
    [
        ({"LastModified": NOON}, NOON.timestamp()),
        ({"last_modified": NOON}, NOON.timestamp()),
        ({"updated": "2024-05-06T12:00:00Z"}, NOON.timestamp()),
        ({"updated": "2024-05-06T14:00:00+02:00"}, NOON.timestamp()),
        ({"modified": 12.5}, 12.5),
        ({"updated": "yesterday", "mtime": 3}, 3.0),
        ({"updated": "0001-01-01T00:00:00", "modified": datetime.min, "created": 4}, 4.0),
        ({"LastModified": None, "created": 4}, 4.0),
        ({"mtime": 1, "created": 2}, 1.0),
        ({}, 0.0),
    ],
)
def test_times(info: dict[str, Any], seconds: float) -> None:
    assert to_entry({"name": "a/b", "type": "file", **info}).modified == seconds


@pytest.mark.parametrize(
    ("info", "entry"),
    [
        ({"name": "a/b", "type": "file", "size": 5, "ETag": '"t"'}, ("a/b", False, 5, '"t"')),
        ({"name": "a/b", "type": "file", "size": 5, "etag": "t"}, ("a/b", False, 5, "t")),
        ({"name": "a/b", "type": "file", "generation": 7}, ("a/b", False, 0, "7")),
        ({"name": "a/b", "type": "file", "ETag": "", "etag": "u"}, ("a/b", False, 0, "u")),
        ({"name": "a/b/", "type": "directory", "size": None}, ("a/b", True, 0, "")),
    ],
)
def test_entries(info: dict[str, Any], entry: tuple[Any, ...]) -> None:
    assert to_entry(info) == Entry(*entry)
