"""Files and folders on disk, ranges of files, and streams."""

from __future__ import annotations

import errno
import io
import os
import stat
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier
from unittest.mock import Mock

import pytest

from bnstat.errors import BnstatError, DamagedError, NotFoundError
from bnstat.storage import local
from bnstat.storage.access import Access
from bnstat.storage.archive import Slice
from bnstat.storage.files import File, Range, ahead, prefetch
from bnstat.storage.local import LocalFile, LocalFolder, find
from tests.builders.memory import MemoryFile

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
TEN = b"0123456789"


@pytest.fixture
def file(tmp_path: Path) -> LocalFile:
    (tmp_path / "ten").write_bytes(TEN)
    return LocalFile(str(tmp_path / "ten"))


def test_ranges(file: LocalFile) -> None:
    assert (file.name, file.size, file.local_path) == ("ten", 10, file.path)
    assert (file.read(), file.read(3, 4), file.read(10)) == (TEN, b"3456", b"")
    assert (file.head(3), file.head(30)) == (b"012", TEN)
    assert file.has(0, 10)
    assert Range(file, 3, 4).read() == b"3456"


@pytest.mark.parametrize(("offset", "length"), [(0, 11), (-1, 2), (5, -1), (1 << 70, 1), (9, 2)])
def test_ranges_beyond_the_file(file: LocalFile, offset: int, length: int) -> None:
    for read in (file.read, lambda *span: Range(file, *span).read()):
        with pytest.raises(DamagedError, match="truncated"):
            read(offset, length)


@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_file_stays_the_one_that_was_opened(is_replaced, file, tmp_path) -> None:
    """A reader that lists a stream and slices the file must not mix two files."""
    if is_replaced:
        (tmp_path / "other").write_bytes(b"abcdefghij")
        os.replace(tmp_path / "other", file.path)
    else:
        os.unlink(file.path)
    with file.open() as stream:
        assert stream.read() == file.read() == TEN


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BnstatError, match="not a regular file"):
        LocalFile(str(tmp_path / "pipe"))
    assert LocalFolder(str(tmp_path)).file("pipe") is None
    with pytest.raises(BnstatError, match="pipe: is neither a file nor a folder"):
        find(str(tmp_path / "pipe"), Access())
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
    assert deep.read() == b"deep"
    assert deep.sibling("deep") is not None
    assert deep.sibling("nothing") is None
    impossible = ("a\0b", "x" * 5000)
    assert [folder.file(name) for name in ("b", "broken", *impossible)] == [None] * 4
    assert [folder.folder(name) for name in ("ten", *impossible)] == [None] * 3
    below = folder.folder("b")
    assert (below.name, below.parent().names()) == ("b", folder.names())
    assert (folder.modified("ten") > 0, folder.modified("nothing")) == (True, 0)
    assert folder.times("t") == {"ten": os.stat(file.path).st_mtime}
    assert set(folder.times()) == {"b", "broken", "ten"}


@pytest.mark.parametrize("is_positioned", [True, False])
def test_long_reads(is_positioned: bool, file: LocalFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux returns at most 2 GB at once; Windows has no positioned read."""
    pread, read = os.pread, os.read
    monkeypatch.setattr(os, "pread", lambda fd, length, at: pread(fd, min(length, 3), at))
    monkeypatch.setattr(os, "read", lambda fd, length: read(fd, min(length, 3)))
    if not is_positioned:
        monkeypatch.delattr(os, "pread")
    assert (file.read(), file.read(1, 7), file.read(4, 3)) == (TEN, b"1234567", b"456")
    os.truncate(file.path, 8)
    with pytest.raises(DamagedError, match="shorter while it was read"):
        file.read()


def test_listings_contain_files_and_folders_only(tmp_path: Path, file: LocalFile) -> None:
    (tmp_path / "folder").mkdir()
    for name, target in (("leads", "folder"), ("named", "ten"), ("broken", "nothing")):
        (tmp_path / name).symlink_to(tmp_path / target)
    os.mkfifo(tmp_path / "pipe")
    entries = LocalFolder(str(tmp_path)).entries()
    assert [(entry.name, entry.is_folder, entry.size, entry.link) for entry in entries] == [
        ("folder", True, 0, ""),
        ("leads", True, 0, str((tmp_path / "folder").resolve())),
        ("named", False, 10, ""),
        ("ten", False, 10, ""),
    ]
    assert [entry.tag for entry in entries] == [
        str((tmp_path / name).stat().st_mtime_ns) for name in ("folder", "folder", "ten", "ten")
    ]
    with pytest.raises(NotFoundError, match="no such file or folder"):
        LocalFolder(str(tmp_path / "nothing")).entries()


@pytest.mark.parametrize(
    "name", ["../ten", "/ten", "a/../../ten", "..\\ten", "C:\\ten", "C:ten", "..", ".", "", "a\0b"]
)
def test_parts_outside_of_the_folder_are_refused(name: str, file: LocalFile) -> None:
    with pytest.raises(DamagedError, match="ten: refers to a file outside of its folder"):
        file.part(name)


def found(path: str) -> tuple[str | None, str, str | None]:
    parent, name, folder = find(path, Access())
    return parent and parent.path, name, folder and folder.path


def test_the_locations_of_paths(tmp_path: Path, file: LocalFile) -> None:
    top = str(tmp_path)
    assert found(top) == (None, tmp_path.name, top)
    assert found(f"{top}/") == (None, tmp_path.name, f"{top}/")
    assert found(file.path) == (top, "ten", None)
    assert found(f"{top}/model-1") == (top, "model-1", None)
    assert found(f"{top}/a\0b") == (top, "a\0b", None)
    assert found(f"{top}/none/model-1") == (None, "model-1", None)
    assert found(f"{top}/ten/model-1") == (None, "model-1", None)
    assert found("/") == (None, "", "/")
    for scheme in ("file://", "local://", "file://localhost"):
        assert found(f"{scheme}{file.path}") == found(file.path)


def test_the_current_folder(tmp_path, file, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert found("ten") == (".", "ten", None)
    assert found(".") == (None, ".", ".")
    here = LocalFolder(".")
    ten = here.file("ten")
    assert (here.name, ten.path, ten.read()) == (tmp_path.name, "ten", TEN)
    assert ten.sibling("ten") is not None


class Streamed(MemoryFile):
    """A file that is read by ranges, like a remote one."""

    open = File.open


def test_streams() -> None:
    with Streamed(TEN).open() as stream:
        assert stream.readable()
        assert stream.seekable()
        assert stream.read(9) == TEN[:9]
        for offset, whence, position in (
            (-4, io.SEEK_CUR, 5),
            (-3, io.SEEK_END, 7),
            (20, io.SEEK_SET, 20),
            (0, io.SEEK_SET, 0),
        ):
            assert stream.seek(offset, whence) == position
            assert stream.read() == TEN[position:]
            assert stream.read(1) == b""


def test_pointers() -> None:
    pointer = MemoryFile(POINTER)
    with pytest.raises(DamagedError, match="git-lfs pointer"):
        pointer.refuse_lfs_pointer()
    with pytest.raises(DamagedError, match="not the file itself; run `git lfs pull`"):
        pointer.read(0, 2000)
    assert MemoryFile(POINTER.ljust(1023)).is_lfs_pointer()
    # A longer file with this start is a real file.
    with pytest.raises(DamagedError, match="copy or download it again"):
        MemoryFile(POINTER.ljust(1024)).read(0, 2000)
    MemoryFile(TEN).refuse_lfs_pointer()


class TestRefusals:
    """Simulated, because root may read everything."""

    @staticmethod
    def refuse(*arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    @pytest.mark.parametrize(
        ("call", "look", "what"),
        [
            ("pread", lambda file: file.read(), "ten: cannot be read"),
            ("open", lambda file: LocalFile(file.path), "ten: cannot be opened"),
            ("stat", lambda file: LocalFile(file.path), "ten: cannot be opened"),
            ("stat", lambda file: local.kind_of(file.path), "ten: cannot be opened"),
            ("stat", lambda file: find(file.path, Access()), "ten: cannot be opened"),
            ("listdir", lambda file: LocalFolder(file.path).names(), "cannot be opened"),
        ],
    )
    def test_of_the_system(self, call, look, what, file, monkeypatch) -> None:
        monkeypatch.setattr(os, call, self.refuse)
        with pytest.raises(BnstatError, match=f"{what}: Permission denied"):
            look(file)

    def test_of_impossible_names(self, tmp_path: Path) -> None:
        with pytest.raises(BnstatError, match="cannot be opened: embedded null byte"):
            LocalFile(f"{tmp_path}/a\0b")


def test_a_file_that_is_deleted_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "kind_of", lambda path: stat.S_IFREG)
    assert LocalFolder(str(tmp_path)).file("gone") is None


def test_a_store_prefetches_all_its_files_at_once() -> None:
    store, elsewhere = Mock(), Mock()
    one, other, third, on_disk = (MemoryFile(TEN) for _ in range(4))
    one.store = other.store = store
    third.store = elsewhere
    prefetch([Range(file, at, 2) for at in (5, 0) for file in (one, third, on_disk, other)])
    spans = [(5, 2), (0, 2)]
    store.prefetch.assert_called_once_with({one: spans, other: spans})
    elsewhere.prefetch.assert_called_once_with({third: spans})
    assert one.fetched == other.fetched == third.fetched == on_disk.fetched == []


class TestAhead:
    @pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 30])
    def test_results_come_in_order(self, count: int) -> None:
        assert list(ahead(lambda n: n * n, range(count), 3)) == [n * n for n in range(count)]

    def test_threads_run_in_parallel(self) -> None:
        together = Barrier(3)
        assert len(list(ahead(lambda _: together.wait(10), range(6), 3))) == 6

    def test_items_are_taken_as_results_are(self) -> None:
        begun = []
        results = ahead(lambda n: n, (begun.append(item) or item for item in range(10)), 3)
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


def test_prefetching_does_not_keep_local_files_open(file: LocalFile) -> None:
    opened: list[weakref.ref[LocalFile]] = []
    kept: list[int] = []

    def ranges() -> Iterator[Range]:
        for _ in range(20):
            again = LocalFile(file.path)
            opened.append(weakref.ref(again))
            yield Range(again, 0, 1)
            kept.append(sum(each() is not None for each in opened))

    prefetch(ranges())
    assert kept == [1] * 20


def test_nested_slices_map_to_the_whole_file() -> None:
    whole = MemoryFile(TEN)
    inner = Slice(Slice(whole, 2, 7, "a"), 1, 5, "b")
    inner.prefetch([(0, 2), (3, 1)])
    assert whole.fetched == [(3, 2), (6, 1)]
    place = inner.place(1, 3, (slice(0, 3),))
    assert place == Range(whole, 4, 3, (slice(0, 3),))
    assert place.read() == inner.read(1, 3) == b"456"
