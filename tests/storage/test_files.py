"""Files and folders on disk, ranges of files, and streams."""

from __future__ import annotations

import errno
import io
import os
import stat
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Barrier

import pytest

from bnstat.errors import BnstatError, DamagedError, NotFoundError
from bnstat.storage import files, local
from bnstat.storage.access import Access
from bnstat.storage.archive import Slice
from bnstat.storage.files import File, Range, ahead, prefetch
from bnstat.storage.local import LocalFile, LocalFolder, find
from tests.builders.memory import MemoryFile

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"


@pytest.fixture
def file(tmp_path: Path) -> LocalFile:
    (tmp_path / "ten").write_bytes(b"0123456789")
    return LocalFile(str(tmp_path / "ten"))


def test_ranges(file: LocalFile) -> None:
    assert (file.name, file.size, file.local_path) == ("ten", 10, file.path)
    assert file.read() == b"0123456789"
    assert file.read(3, 4) == b"3456"
    assert file.read(10) == b""
    assert file.head(3) == b"012"
    assert file.head(30) == b"0123456789"


@pytest.mark.parametrize(("offset", "length"), [(0, 11), (-1, 2), (5, -1), (1 << 70, 1), (9, 2)])
def test_ranges_beyond_the_file(file: LocalFile, offset: int, length: int) -> None:
    with pytest.raises(DamagedError, match="truncated"):
        file.read(offset, length)


def test_a_replaced_file_is_still_read(file: LocalFile, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"x" * 10)
    (tmp_path / "other").replace(tmp_path / "ten")
    assert file.read() == b"0123456789"


def test_a_file_that_is_truncated_meanwhile(file: LocalFile, tmp_path: Path) -> None:
    os.truncate(tmp_path / "ten", 4)
    with pytest.raises(DamagedError, match="shorter while it was read"):
        file.read(2, 6)


def test_pointers(tmp_path: Path, file: LocalFile) -> None:
    (tmp_path / "pointer").write_bytes(POINTER)
    assert not file.is_lfs_pointer()
    file.refuse_lfs_pointer()
    with pytest.raises(DamagedError, match="git-lfs pointer"):
        LocalFile(str(tmp_path / "pointer")).refuse_lfs_pointer()


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BnstatError, match="not a regular file"):
        LocalFile(str(tmp_path / "pipe"))
    assert LocalFolder(str(tmp_path)).file("pipe") is None
    with pytest.raises(NotFoundError, match="no such file"):
        LocalFile(str(tmp_path / "nothing"))


def test_folders(tmp_path: Path, file: LocalFile) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "b" / "c" / "deep").write_bytes(b"deep")
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    folder = LocalFolder(str(tmp_path))
    assert folder.names() == ["b", "broken", "ten"]
    assert folder.matching("b", "n") == ["broken"]
    deep = folder.file("b/c/deep")
    assert deep is not None
    assert deep.read() == b"deep"
    sibling = deep.sibling("deep")
    assert sibling is not None
    assert deep.sibling("nothing") is None
    assert folder.file("b") is None
    assert folder.file("broken") is None
    assert folder.folder("ten") is None
    below = folder.folder("b")
    assert below is not None
    assert below.name == "b"
    parent = below.parent()
    assert parent is not None
    assert parent.names() == folder.names()
    assert folder.modified("ten") > 0
    assert folder.modified("nothing") == 0
    assert folder.times("t") == {"ten": os.stat(file.path).st_mtime}
    assert set(folder.times()) == {"b", "broken", "ten"}
    assert file.has(0, 10)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_impossible_names(tmp_path: Path, name: str) -> None:
    assert LocalFolder(str(tmp_path)).file(name) is None
    assert LocalFolder(str(tmp_path)).folder(name) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files(file: LocalFile, tmp_path: Path) -> None:
    (tmp_path / "ten").chmod(0)
    with pytest.raises(BnstatError, match="Permission denied"):
        LocalFile(str(tmp_path / "ten"))


@pytest.mark.parametrize("is_positioned", [True, False])
def test_long_reads(is_positioned: bool, file: LocalFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux returns at most 2 GB at once; Windows has no positioned read."""
    pread, read = os.pread, os.read
    monkeypatch.setattr(os, "pread", lambda fd, length, at: pread(fd, min(length, 3), at))
    monkeypatch.setattr(os, "read", lambda fd, length: read(fd, min(length, 3)))
    if not is_positioned:
        monkeypatch.delattr(os, "pread")
    assert file.read() == b"0123456789"
    assert file.read(1, 7) == b"1234567"
    assert file.read(4, 3) == b"456"
    os.truncate(file.path, 8)
    with pytest.raises(DamagedError, match="shorter while it was read"):
        file.read()


def test_errors_of_the_disk(file: LocalFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", refuse)
    with pytest.raises(BnstatError, match=r"ten: cannot be read: Input/output error"):
        file.read()


@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_stream_is_of_the_file_that_was_opened(
    is_replaced: bool, file: LocalFile, tmp_path: Path
) -> None:
    """A reader that lists a stream and slices the file must not mix two files."""
    if is_replaced:
        (tmp_path / "other").write_bytes(b"abcdefghij")
        os.replace(tmp_path / "other", file.path)
    else:
        os.unlink(file.path)
    with file.open() as stream:
        assert stream.read() == file.read() == b"0123456789"


def test_listings_contain_files_and_folders_only(tmp_path: Path, file: LocalFile) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "leads").symlink_to(tmp_path / "folder")
    (tmp_path / "named").symlink_to(tmp_path / "ten")
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    entries = LocalFolder(str(tmp_path)).entries()
    assert [(entry.name, entry.is_folder, entry.size, entry.link) for entry in entries] == [
        ("folder", True, 0, ""),
        ("leads", True, 0, str((tmp_path / "folder").resolve())),
        ("named", False, 10, ""),
        ("ten", False, 10, ""),
    ]
    tags = {entry.name: entry.tag for entry in entries}
    assert tags["ten"] == tags["named"] == str((tmp_path / "ten").stat().st_mtime_ns)
    assert tags["folder"] == str((tmp_path / "folder").stat().st_mtime_ns)
    with pytest.raises(NotFoundError, match="no such file or folder"):
        LocalFolder(str(tmp_path / "nothing")).entries()


def test_the_current_folder(
    tmp_path: Path, file: LocalFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = LocalFolder(".")
    assert here.name == tmp_path.name
    ten = here.file("ten")
    assert ten is not None
    assert ten.path == "ten"
    assert ten.sibling("ten") is not None
    with ten.open() as stream:
        assert stream.read() == b"0123456789"


class TestFind:
    def found(self, path: str) -> tuple[str | None, str, str | None]:
        parent, name, folder = find(path, Access())
        return parent and parent.path, name, folder and folder.path

    def test_files_and_folders(self, tmp_path: Path, file: LocalFile) -> None:
        top = str(tmp_path)
        assert self.found(top) == (None, tmp_path.name, top)
        assert self.found(f"{top}/") == (None, tmp_path.name, f"{top}/")
        assert self.found(file.path) == (top, "ten", None)
        assert self.found(f"{top}/model-1") == (top, "model-1", None)
        assert self.found(f"{top}/a\0b") == (top, "a\0b", None)
        assert self.found(f"{top}/none/model-1") == (None, "model-1", None)
        assert self.found(f"{top}/ten/model-1") == (None, "model-1", None)
        assert self.found("/") == (None, "", "/")

    def test_the_current_folder(
        self, tmp_path: Path, file: LocalFile, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert self.found("ten") == (".", "ten", None)
        assert self.found(".") == (None, ".", ".")

    @pytest.mark.parametrize("scheme", ["file://", "local://", "file://localhost"])
    def test_urls_of_this_machine(self, scheme: str, file: LocalFile) -> None:
        assert self.found(f"{scheme}{file.path}") == self.found(file.path)

    def test_a_pipe_is_refused(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(BnstatError, match="pipe: is neither a file nor a folder"):
            find(str(tmp_path / "pipe"), Access())


class Streamed(MemoryFile):
    """A file that is read by ranges, like a remote one."""

    open = File.open


def test_streams() -> None:
    file = Streamed(b"0123456789")
    with file.open() as stream:
        assert stream.read(3) == b"012"
        assert stream.readable()
        assert stream.seekable()
        assert stream.seek(7) == 7
        assert stream.read(2) == b"78"
        assert stream.seek(-4, io.SEEK_CUR) == 5
        assert stream.read() == b"56789"
        assert stream.read(1) == b""
        assert stream.seek(-3, io.SEEK_END) == 7
        assert stream.read(99) == b"789"
        assert stream.seek(20) == 20
        assert stream.read() == b""
        assert stream.seek(0) == 0
        assert stream.read() == b"0123456789"


def test_the_hint_of_a_truncated_pointer() -> None:
    with pytest.raises(DamagedError, match="it is a git-lfs pointer: run `git lfs pull`"):
        MemoryFile(POINTER).read(0, 2000)
    # A longer file with this start is a real file.
    with pytest.raises(DamagedError, match="copy or download it again"):
        MemoryFile(POINTER.ljust(1024)).read(0, 2000)
    assert MemoryFile(POINTER.ljust(1023)).is_lfs_pointer()


class TestRefusals:
    """Simulated, because root may read everything."""

    @staticmethod
    def refuse(*arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    def test_of_opening(self, file: LocalFile, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "open", self.refuse)
        with pytest.raises(BnstatError, match="ten: cannot be opened: Permission denied"):
            LocalFile(file.path)

    def test_of_examining(self, file: LocalFile, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "stat", self.refuse)
        for look in (local.kind_of, LocalFile, lambda path: find(path, Access())):
            with pytest.raises(BnstatError, match="ten: cannot be opened: Permission denied"):
                look(file.path)

    def test_of_listing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "listdir", self.refuse)
        with pytest.raises(BnstatError, match="cannot be opened: Permission denied"):
            LocalFolder(str(tmp_path)).names()

    def test_of_impossible_names(self, tmp_path: Path) -> None:
        with pytest.raises(BnstatError, match="cannot be opened: embedded null byte"):
            LocalFile(f"{tmp_path}/a\0b")


def test_a_file_that_is_deleted_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "kind_of", lambda path: stat.S_IFREG)
    assert LocalFolder(str(tmp_path)).file("gone") is None


class Remote(MemoryFile):
    """A file that records prefetches."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.wanted: list[list[tuple[int, int]]] = []

    def prefetch(self, spans: Sequence[tuple[int, int]]) -> None:
        self.wanted.append(list(spans))


def test_a_range_reads_its_bytes() -> None:
    file = MemoryFile(b"0123456789")
    assert Range(file, 3, 4).read() == b"3456"
    with pytest.raises(DamagedError, match="truncated"):
        Range(file, 8, 3).read()


def test_a_file_prefetches_all_its_ranges_at_once() -> None:
    one, other = Remote(b"0123456789"), Remote(b"abc")
    prefetch([Range(one, 8, 2), Range(other, 0, 3), Range(one, 0, 1)])
    assert one.wanted == [[(8, 2), (0, 1)]]
    assert other.wanted == [[(0, 3)]]
    assert one.reads == other.reads == []


class Store(files.Store):
    """A store that records prefetches."""

    def __init__(self) -> None:
        self.wanted: list[dict[File, list[tuple[int, int]]]] = []

    def prefetch(self, files: Mapping[File, Sequence[tuple[int, int]]]) -> None:
        self.wanted.append({file: list(spans) for file, spans in files.items()})


def test_a_store_prefetches_all_its_files_at_once() -> None:
    store, elsewhere = Store(), Store()
    one, other, third, alone = (Remote(b"0123456789") for _ in range(4))
    one.store = other.store = store
    third.store = elsewhere
    prefetch([Range(file, at, 2) for at in (0, 5) for file in (one, third, alone, other)])
    spans = [(0, 2), (5, 2)]
    assert store.wanted == [{one: spans, other: spans}]
    assert elsewhere.wanted == [{third: spans}]
    assert alone.wanted == [spans]
    assert one.wanted == other.wanted == third.wanted == []


class TestAhead:
    @pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 30])
    def test_results_come_in_order(self, count: int) -> None:
        assert list(ahead(lambda n: n * n, range(count), 3)) == [n * n for n in range(count)]

    def test_threads_run_in_parallel(self) -> None:
        together = Barrier(3)
        assert len(list(ahead(lambda _: together.wait(10), range(6), 3))) == 6

    def test_items_are_taken_as_results_are(self) -> None:
        begun = []

        def items() -> Iterator[int]:
            for item in range(10):
                begun.append(item)
                yield item

        results = ahead(lambda n: n, items(), 3)
        for taken in range(1, 8):
            assert next(results) == taken - 1
            assert len(begun) == taken + 2

    def test_closing_waits_for_running_work(self) -> None:
        done = []

        def work(item: int) -> None:
            time.sleep(0.05 * item)
            done.append(item)

        results = ahead(work, range(9), 3)
        next(results)
        results.close()
        assert sorted(done) == [0, 1, 2]

    def test_errors_come_in_order(self) -> None:
        results = ahead(lambda n: 1 // (n - 1), range(5), 3)
        assert next(results) == -1
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_prefetching_does_not_keep_local_files_open(tmp_path: Path) -> None:
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


def test_nested_slices_map_to_the_whole_file() -> None:
    whole = Remote(b"0123456789")
    inner = Slice(Slice(whole, 2, 7, "a"), 1, 5, "b")
    inner.prefetch([(0, 2), (3, 1)])
    assert whole.wanted == [[(3, 2), (6, 1)]]
    place = inner.place(1, 3, (slice(0, 3),))
    assert place == Range(whole, 4, 3, (slice(0, 3),))
    assert place.read() == inner.read(1, 3) == b"456"
