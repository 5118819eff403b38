"""Remote files and folders: which bytes are fetched, and in how many fetched."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnstat.errors import BnstatError, DamagedError
from bnstat.storage.access import Access
from bnstat.storage.files import File, Range, prefetch
from bnstat.storage.remote.store import (
    Fetched,
    RemoteFolder,
    RemoteStore,
    Span,
    bridged,
    split,
    union,
)
from bnstat.storage.remote.transport import Piece, Stat, Transport

SPANS = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)))


def covered(spans: list[Span]) -> set[int]:
    return {at for start, end in spans for at in range(start, end)}


@given(SPANS)
def test_unions(spans: list[Span]) -> None:
    merged = union(spans)
    assert covered(merged) == covered(spans)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(merged))


@given(SPANS, st.integers(0, 100))
def test_bridges_waste_at_most_the_limit(spans: list[Span], waste: int) -> None:
    merged = union(spans)
    joined = bridged(merged, waste)
    assert covered(joined) >= covered(merged)
    assert len(covered(joined) - covered(merged)) <= waste
    gaps = sorted(other[0] - one[1] for one, other in itertools.pairwise(joined))
    assert not gaps or gaps[0] + len(covered(joined) - covered(merged)) > waste


def test_the_smallest_gaps_are_bridged() -> None:
    spans = [(0, 1), (6, 7), (11, 12), (30, 31)]
    assert bridged(spans, 8) == [(0, 1), (6, 12), (30, 31)]
    assert bridged(spans, 9) == [(0, 12), (30, 31)]
    assert bridged(spans, 3) == spans


def test_wide_gaps_are_not_bridged() -> None:
    kibi = 1 << 10
    spans = [(0, 1), (48 * kibi, 48 * kibi + 1), (100 * kibi, 100 * kibi + 1)]
    assert bridged(spans, 1 << 20) == [(0, 48 * kibi + 1), spans[2]]


def test_long_spans_are_split() -> None:
    mebi = 1 << 20
    assert split([(0, 5), (mebi, 20 * mebi)]) == [
        (0, 5),
        (mebi, 9 * mebi),
        (9 * mebi, 17 * mebi),
        (17 * mebi, 20 * mebi),
    ]


@given(st.lists(SPANS))
def test_fetched_bytes_are_returned(steps: list[list[Span]]) -> None:
    content = bytes(number % 251 for number in range(200))
    fetched = Fetched()
    held: set[int] = set()
    for spans in steps:
        missing = fetched.missing(spans)
        assert covered(missing) == covered(spans) - held
        for start, end in missing:
            fetched.add(start, content[start:end])
        held |= covered(spans)
        for start, end in union(spans):
            assert fetched.get(start, end) == content[start:end]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 60)), min_size=1))
def test_threads_may_fetch_overlapping_bytes(spans: list[Span]) -> None:
    """Two threads may fetch the same bytes at the same time."""
    content = bytes(range(120))
    fetched = Fetched()
    for start, length in spans:
        fetched.add(start, content[start : start + length])
    held = [(start, start + length) for start, length in spans]
    assert not fetched.missing(held)
    for start, end in union(held):
        for at in range(start, end):
            assert fetched.get(at, end) == content[at:end]


SIZE = 1_000_000
CONTENT = bytes(range(251)) * (SIZE // 251 + 1)
KIB = 1 << 10


@dataclass
class Store(Transport):
    """A store in memory; `asked` are its listings, `requests` the spans of each fetch."""

    files: Mapping[str, int]
    marks: bool = True
    asked: list[str] = field(default_factory=list)
    requests: list[list[tuple[str, int, int]]] = field(default_factory=list)

    def url(self, path: str) -> str:
        return f"far://{path}"

    def listing(self, path: str) -> list[Stat] | None:
        self.asked.append(path)
        if path in self.files:
            return [Stat(path, False, self.files[path], 5.0, "")]
        below = [name for name in self.files if name.startswith(f"{path}/")]
        if not below:
            return None
        names = {name.removeprefix(f"{path}/").partition("/")[::2] for name in below}
        # Some stores keep an empty object for the folder itself.
        own = [Stat(f"{path}/", False, 0, 0.0, "")] if self.marks else []
        return own + [
            Stat(f"{path}/{name}", bool(more), 0 if more else self.files[f"{path}/{name}"], 7.0, "")
            for name, more in sorted(names)
        ]

    def fetch(self, pieces: Sequence[Piece]) -> list[bytes]:
        self.requests.append([(piece.stat.name, piece.start, piece.end) for piece in pieces])
        return [CONTENT[piece.start : piece.end] for piece in pieces]


@pytest.fixture
def store() -> Store:
    return Store({"top/a/big": SIZE, "top/a/other": SIZE, "top/small": 48 * KIB, "top/empty": 0})


@pytest.fixture
def top(store: Store) -> RemoteFolder:
    return RemoteFolder(RemoteStore(store, Access()), "top")


def found(folder: RemoteFolder, name: str) -> File:
    file = folder.file(name)
    assert file is not None
    return file


class TestFolders:
    def test_contents(self, top: RemoteFolder) -> None:
        assert (top.name, top.path, top.names()) == ("top", "far://top", ["a", "empty", "small"])
        below = top.folder("a")
        assert below is not None
        assert (below.name, below.path, below.names()) == ("a", "far://top/a", ["big", "other"])
        up = below.parent()
        assert up is not None
        assert up.path == "far://top"
        assert top.parent() is None
        assert (top.modified("small"), top.modified("none")) == (7.0, 0.0)

    def test_files_by_their_names(self, top: RemoteFolder) -> None:
        big = found(top, "a/big")
        assert (big.name, big.path, big.size) == ("big", "far://top/a/big", SIZE)
        for name in ("a", "none", "none/big", "small/big", "a/none", "a/big/x", "..", ""):
            assert top.file(name) is None
        for name in ("small", "none", "a/big", "..", "a/.."):
            assert top.folder(name) is None
        beside = big.sibling("other")
        assert beside is not None
        assert beside.path == "far://top/a/other"
        assert big.sibling("small") is None

    def test_a_folder_is_listed_once(self, store: Store, top: RemoteFolder) -> None:
        for _ in range(3):
            assert top.file("a/big") is not None
            assert top.file("a/none") is None
            assert top.names()
        assert store.asked == ["top", "top/a"]

    def test_a_folder_of_one_file(self, store: Store) -> None:
        store.marks = False
        store.files = {"top/only": 5}
        assert RemoteFolder(RemoteStore(store, Access()), "top").names() == ["only"]

    def test_a_file_is_not_a_folder(self, store: Store) -> None:
        remote = RemoteStore(store, Access())
        for _ in range(2):
            assert remote.listing("top/small") is None
            assert remote.listing("none") is None
        assert RemoteFolder(remote, "none").names() == []
        assert store.asked == ["top/small", "none"]


class TestReading:
    def test_a_small_file_is_fetched_whole(self, store: Store, top: RemoteFolder) -> None:
        small = found(top, "small")
        assert not small.has(0, 1)
        assert small.read(100, 10) == CONTENT[100:110]
        assert small.has(0, 48 * KIB)
        small.prefetch([(0, 99)])
        assert small.head(9) == CONTENT[:9]
        assert small.read() == CONTENT[: 48 * KIB]
        assert store.requests == [[("small", 0, 48 * KIB)]]

    def test_a_larger_file_is_not(self, store: Store) -> None:
        store.files = {"top/larger": 48 * KIB + 1}
        larger = found(RemoteFolder(RemoteStore(store, Access()), "top"), "larger")
        larger.read(100, 10)
        larger.prefetch([(20 * KIB, 10)])
        assert store.requests == [
            [("larger", 0, 16 * KIB)],
            [("larger", 20 * KIB, 20 * KIB + 10)],
        ]

    def test_unannounced_reads_fetch_blocks(self, store: Store, top: RemoteFolder) -> None:
        big = found(top, "a/big")
        assert big.read(20 * KIB, 10) == CONTENT[20 * KIB : 20 * KIB + 10]
        assert big.read(17 * KIB, 10) == CONTENT[17 * KIB : 17 * KIB + 10]
        assert store.requests == [[("big", 16 * KIB, 32 * KIB)]]
        big.read(31 * KIB, 2 * KIB)
        assert store.requests[1:] == [[("big", 32 * KIB, 48 * KIB)]]
        big.read(100 * KIB + 1, 16 * KIB)
        assert store.requests[2:] == [[("big", 100 * KIB + 1, 116 * KIB + 1)]]
        assert big.read(SIZE - 5, 5) == CONTENT[SIZE - 5 : SIZE]
        assert store.requests[3:] == [[("big", SIZE // (16 * KIB) * 16 * KIB, SIZE)]]
        with pytest.raises(DamagedError, match="truncated"):
            big.read(SIZE - 5, 6)

    def test_the_tail_is_fetched_with_the_head(self, store: Store, top: RemoteFolder) -> None:
        big = found(top, "a/big")
        assert big.head(100) == CONTENT[:100]
        assert big.read(SIZE - 8, 8) == CONTENT[SIZE - 8 : SIZE]
        assert big.head(16 * KIB) == CONTENT[: 16 * KIB]
        assert store.requests == [[("big", 0, 16 * KIB), ("big", SIZE - 4 * KIB, SIZE)]]

    def test_an_empty_file(self, store: Store, top: RemoteFolder) -> None:
        empty = found(top, "empty")
        assert empty.read() == empty.head(10) == b""
        empty.prefetch([(0, 0), (5, 5)])
        assert store.requests == []


class TestFetching:
    def test_many_files_together(self, store: Store, top: RemoteFolder) -> None:
        files = [found(top, name) for name in ("a/big", "a/other", "small")]
        prefetch([Range(file, at, 5) for at in (300_000, 0) for file in files])
        (asked,) = store.requests
        assert sorted(asked) == [
            *(("big", at, at + 5) for at in (0, 300_000)),
            *(("other", at, at + 5) for at in (0, 300_000)),
            ("small", 0, 48 * KIB),
        ]
        for file in files[:2]:
            assert file.has(0, 5)
            assert not file.has(0, 6)
            assert file.read(300_000, 5) == CONTENT[300_000:300_005]
        assert len(store.requests) == 1

    def test_prefetching_beyond_the_end(self, store: Store, top: RemoteFolder) -> None:
        big = found(top, "a/big")
        big.prefetch([(SIZE - 5, 99), (SIZE, 5), (SIZE + 1, 5), (-5, 5)])
        assert store.requests == [[("big", SIZE - 5, SIZE)]]
        assert big.has(SIZE - 5, 99)

    def test_long_ranges_are_split(self, store: Store) -> None:
        store.files = {"top/huge": 20 << 20}
        huge = found(RemoteFolder(RemoteStore(store, Access()), "top"), "huge")
        huge.prefetch([(0, 20 << 20)])
        (asked,) = store.requests
        assert [end - start for _, start, end in asked] == [8 << 20, 8 << 20, 4 << 20]

    def test_small_gaps_are_fetched(self, store: Store, top: RemoteFolder) -> None:
        """96 KiB may be wasted; each prefetch may waste half of the rest."""
        big = found(top, "a/big")
        big.prefetch([(0, 10), (40 * KIB, 10), (100 * KIB, 10)])
        assert store.requests == [[("big", 0, 40 * KIB + 10), ("big", 100 * KIB, 100 * KIB + 10)]]
        # 40 KiB less 10 bytes are gone: 28 KiB may be wasted now.
        big.prefetch([(200 * KIB, 10), (229 * KIB, 10), (256 * KIB, 10)])
        assert store.requests[1:] == [
            [("big", 200 * KIB, 200 * KIB + 10), ("big", 229 * KIB, 256 * KIB + 10)]
        ]

    def test_more_waste_may_be_allowed(self, store: Store, top: RemoteFolder) -> None:
        big = found(top, "a/big")
        big.allow_waste(400 * KIB)
        big.allow_waste(1)
        big.prefetch([(0, 10), (40 * KIB, 10), (80 * KIB, 10), (180 * KIB, 10)])
        assert store.requests == [[("big", 0, 80 * KIB + 10), ("big", 180 * KIB, 180 * KIB + 10)]]

    def test_the_limit_on_downloads(self, store: Store) -> None:
        access = Access(max_download=100_000)
        big = found(RemoteFolder(RemoteStore(store, access), "top/a"), "big")
        big.prefetch([(0, 60_000)])
        assert access.left == 40_000
        with pytest.raises(
            BnstatError, match=r"far://top/a/big: reading it exceeds the limit of 100 kB"
        ):
            big.prefetch([(200_000, 50_000)])
        assert len(store.requests) == 1
        big.prefetch([(0, 60_000)])
        assert access.left == 40_000
