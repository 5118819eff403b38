"""Ranges of files, and what is told of them before they are read."""

from __future__ import annotations

import io
import time
import weakref
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Barrier

import pytest

from bnstat.errors import DamagedError
from bnstat.storage import files
from bnstat.storage.archive import Slice, stored_member
from bnstat.storage.files import File, Range, ahead, prefetch
from bnstat.storage.local import LocalFile
from tests.builders.memory import MemoryFile


class Remote(MemoryFile):
    """A file that remembers what it was told to fetch."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.told: list[list[tuple[int, int]]] = []

    def prefetch(self, spans: Sequence[tuple[int, int]]) -> None:
        self.told.append(list(spans))


def test_a_range_reads_its_bytes() -> None:
    file = MemoryFile(b"0123456789")
    assert Range(file, 3, 4).read() == b"3456"
    with pytest.raises(DamagedError, match="truncated"):
        Range(file, 8, 3).read()


def test_each_file_is_told_once_of_all_its_ranges() -> None:
    one, other = Remote(b"0123456789"), Remote(b"abc")
    prefetch([Range(one, 8, 2), Range(other, 0, 3), Range(one, 0, 1)])
    assert one.told == [[(8, 2), (0, 1)]]
    assert other.told == [[(0, 3)]]
    assert one.reads == other.reads == []


class Store(files.Store):
    """A place that remembers what it was told to fetch."""

    def __init__(self) -> None:
        self.told: list[dict[File, list[tuple[int, int]]]] = []

    def prefetch(self, files: Mapping[File, Sequence[tuple[int, int]]]) -> None:
        self.told.append({file: list(spans) for file, spans in files.items()})


def test_a_place_is_told_once_of_all_its_files() -> None:
    store, elsewhere = Store(), Store()
    one, other, third, alone = (Remote(b"0123456789") for _ in range(4))
    one.store = other.store = store
    third.store = elsewhere
    prefetch([Range(file, at, 2) for at in (0, 5) for file in (one, third, alone, other)])
    spans = [(0, 2), (5, 2)]
    assert store.told == [{one: spans, other: spans}]
    assert elsewhere.told == [{third: spans}]
    assert alone.told == [spans]
    assert one.told == other.told == third.told == []


class TestAhead:
    @pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 30])
    def test_results_come_in_order(self, count: int) -> None:
        assert list(ahead(lambda n: n * n, range(count), 3)) == [n * n for n in range(count)]

    def test_several_are_worked_on_at_a_time(self) -> None:
        together = Barrier(3)
        assert len(list(ahead(lambda _: together.wait(10), range(6), 3))) == 6

    def test_no_more_are_begun_than_shall_be(self) -> None:
        begun = []

        def items() -> Iterator[int]:
            for item in range(10):
                begun.append(item)
                yield item

        results = ahead(lambda n: n, items(), 3)
        for taken in range(1, 8):
            assert next(results) == taken - 1
            assert len(begun) == taken + 2

    def test_whoever_stops_waits_for_what_was_begun(self) -> None:
        done = []

        def work(item: int) -> None:
            time.sleep(0.05 * item)
            done.append(item)

        results = ahead(work, range(9), 3)
        next(results)
        results.close()
        assert sorted(done) == [0, 1, 2]

    def test_errors_come_in_order_too(self) -> None:
        results = ahead(lambda n: 1 // (n - 1), range(5), 3)
        assert next(results) == -1
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_files_on_disk_are_not_kept_open(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    opened: list[weakref.ref[LocalFile]] = []
    kept: list[int] = []

    def ranges() -> Iterator[Range]:
        for _ in range(20):
            file = LocalFile(str(tmp_path / "f"))
            opened.append(weakref.ref(file))
            yield Range(file, 0, 1)
            kept.append(sum(each() is not None for each in opened))

    prefetch(ranges())
    assert kept == [1] * 20


def test_a_slice_is_told_of_and_placed_in_its_whole_file() -> None:
    whole = Remote(b"0123456789")
    inner = Slice(Slice(whole, 2, 7, "a"), 1, 5, "b")
    inner.prefetch([(0, 2), (3, 1)])
    assert whole.told == [[(3, 2), (6, 1)]]
    place = inner.place(1, 3, (slice(0, 3),))
    assert place == Range(whole, 4, 3, (slice(0, 3),))
    assert place.read() == inner.read(1, 3) == b"456"


def test_a_stored_member_of_a_zip_lies_in_the_archive() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("other", b"x" * 100)
        archive.writestr("weights", b"0123456789")
    member = stored_member(MemoryFile(stream.getvalue()), "weights")
    assert member is not None
    place = member.place(2, 5)
    assert place is not None
    assert place.file is not member
    assert place.read() == b"23456"
