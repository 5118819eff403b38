"""Files and folders that are far away: what is fetched of them, and in how many pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from bnstat.errors import BnstatError, DamagedError
from bnstat.storage.access import Access
from bnstat.storage.files import File, Range, prefetch
from bnstat.storage.remote.store import RemoteFolder, RemoteStore
from bnstat.storage.remote.transport import Piece, Stat, Transport

SIZE = 1_000_000
CONTENT = bytes(range(251)) * (SIZE // 251 + 1)
KIB = 1 << 10


@dataclass
class Store(Transport):
    """A store in memory; `asked` are its listings, `fetched` the spans of each request."""

    files: Mapping[str, int]
    marks: bool = True
    asked: list[str] = field(default_factory=list)
    fetched: list[list[tuple[str, int, int]]] = field(default_factory=list)

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
        self.fetched.append([(piece.stat.name, piece.start, piece.end) for piece in pieces])
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
    def test_what_they_hold(self, top: RemoteFolder) -> None:
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

    def test_a_listing_is_asked_for_once(self, store: Store, top: RemoteFolder) -> None:
        for _ in range(3):
            assert top.file("a/big") is not None
            assert top.file("a/none") is None
            assert top.names()
        assert store.asked == ["top", "top/a"]

    def test_a_folder_of_one_file_is_one(self, store: Store) -> None:
        store.marks = False
        store.files = {"top/only": 5}
        assert RemoteFolder(RemoteStore(store, Access()), "top").names() == ["only"]

    def test_a_file_is_no_folder(self, store: Store) -> None:
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
        assert store.fetched == [[("small", 0, 48 * KIB)]]

    def test_a_larger_one_is_not(self, store: Store) -> None:
        store.files = {"top/larger": 48 * KIB + 1}
        larger = found(RemoteFolder(RemoteStore(store, Access()), "top"), "larger")
        larger.read(100, 10)
        larger.prefetch([(20 * KIB, 10)])
        assert store.fetched == [
            [("larger", 0, 16 * KIB)],
            [("larger", 20 * KIB, 20 * KIB + 10)],
        ]

    def test_what_nobody_announced_comes_in_blocks(self, store: Store, top: RemoteFolder) -> None:
        big = found(top, "a/big")
        assert big.read(20 * KIB, 10) == CONTENT[20 * KIB : 20 * KIB + 10]
        assert big.read(17 * KIB, 10) == CONTENT[17 * KIB : 17 * KIB + 10]
        assert store.fetched == [[("big", 16 * KIB, 32 * KIB)]]
        big.read(31 * KIB, 2 * KIB)
        assert store.fetched[1:] == [[("big", 32 * KIB, 48 * KIB)]]
        big.read(100 * KIB + 1, 16 * KIB)
        assert store.fetched[2:] == [[("big", 100 * KIB + 1, 116 * KIB + 1)]]
        assert big.read(SIZE - 5, 5) == CONTENT[SIZE - 5 : SIZE]
        assert store.fetched[3:] == [[("big", SIZE // (16 * KIB) * 16 * KIB, SIZE)]]
        with pytest.raises(DamagedError, match="truncated"):
            big.read(SIZE - 5, 6)

    def test_a_head_comes_with_the_tail(self, store: Store, top: RemoteFolder) -> None:
        big = found(top, "a/big")
        assert big.head(100) == CONTENT[:100]
        assert big.read(SIZE - 8, 8) == CONTENT[SIZE - 8 : SIZE]
        assert big.head(16 * KIB) == CONTENT[: 16 * KIB]
        assert store.fetched == [[("big", 0, 16 * KIB), ("big", SIZE - 4 * KIB, SIZE)]]

    def test_an_empty_file_needs_nothing(self, store: Store, top: RemoteFolder) -> None:
        empty = found(top, "empty")
        assert empty.read() == empty.head(10) == b""
        empty.prefetch([(0, 0), (5, 5)])
        assert store.fetched == []


class TestFetching:
    def test_many_files_at_once(self, store: Store, top: RemoteFolder) -> None:
        files = [found(top, name) for name in ("a/big", "a/other", "small")]
        prefetch([Range(file, at, 5) for at in (300_000, 0) for file in files])
        (asked,) = store.fetched
        assert sorted(asked) == [
            *(("big", at, at + 5) for at in (0, 300_000)),
            *(("other", at, at + 5) for at in (0, 300_000)),
            ("small", 0, 48 * KIB),
        ]
        for file in files[:2]:
            assert file.has(0, 5)
            assert not file.has(0, 6)
            assert file.read(300_000, 5) == CONTENT[300_000:300_005]
        assert len(store.fetched) == 1

    def test_what_is_beyond_the_end_is_not_fetched(self, store: Store, top: RemoteFolder) -> None:
        big = found(top, "a/big")
        big.prefetch([(SIZE - 5, 99), (SIZE, 5), (SIZE + 1, 5), (-5, 5)])
        assert store.fetched == [[("big", SIZE - 5, SIZE)]]
        assert big.has(SIZE - 5, 99)

    def test_long_runs_are_fetched_in_parts(self, store: Store) -> None:
        store.files = {"top/huge": 20 << 20}
        huge = found(RemoteFolder(RemoteStore(store, Access()), "top"), "huge")
        huge.prefetch([(0, 20 << 20)])
        (asked,) = store.fetched
        assert [end - start for _, start, end in asked] == [8 << 20, 8 << 20, 4 << 20]

    def test_small_gaps_are_fetched_too(self, store: Store, top: RemoteFolder) -> None:
        """Of 96 KiB that may be wasted, each time half of what is left."""
        big = found(top, "a/big")
        big.prefetch([(0, 10), (40 * KIB, 10), (100 * KIB, 10)])
        assert store.fetched == [[("big", 0, 40 * KIB + 10), ("big", 100 * KIB, 100 * KIB + 10)]]
        # 40 KiB less 10 bytes are gone: 28 KiB may be wasted now.
        big.prefetch([(200 * KIB, 10), (229 * KIB, 10), (256 * KIB, 10)])
        assert store.fetched[1:] == [
            [("big", 200 * KIB, 200 * KIB + 10), ("big", 229 * KIB, 256 * KIB + 10)]
        ]

    def test_more_may_be_wasted_where_it_is_allowed(self, store: Store, top: RemoteFolder) -> None:
        big = found(top, "a/big")
        big.allow_waste(400 * KIB)
        big.allow_waste(1)
        big.prefetch([(0, 10), (40 * KIB, 10), (80 * KIB, 10), (180 * KIB, 10)])
        assert store.fetched == [[("big", 0, 80 * KIB + 10), ("big", 180 * KIB, 180 * KIB + 10)]]

    def test_no_more_is_downloaded_than_is_allowed(self, store: Store) -> None:
        access = Access(max_download=100_000)
        big = found(RemoteFolder(RemoteStore(store, access), "top/a"), "big")
        big.prefetch([(0, 60_000)])
        assert access.left == 40_000
        with pytest.raises(
            BnstatError, match=r"far://top/a/big: reading it exceeds the limit of 100 kB"
        ):
            big.prefetch([(200_000, 50_000)])
        assert len(store.fetched) == 1
        big.prefetch([(0, 60_000)])
        assert access.left == 40_000
