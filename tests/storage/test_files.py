"""Files and folders on disk."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

import pytest

from bnstat.errors import BnstatError, DamagedError, NotFoundError
from bnstat.storage import local
from bnstat.storage.access import Access
from bnstat.storage.files import File
from bnstat.storage.find import find
from bnstat.storage.local import LocalFile, LocalFolder
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
def test_ranges_that_it_does_not_have(file: LocalFile, offset: int, length: int) -> None:
    with pytest.raises(DamagedError, match="truncated"):
        file.read(offset, length)


def test_it_stays_the_same_file_when_another_takes_its_name(
    file: LocalFile, tmp_path: Path
) -> None:
    (tmp_path / "other").write_bytes(b"x" * 10)
    (tmp_path / "other").replace(tmp_path / "ten")
    assert file.read() == b"0123456789"


def test_a_file_that_somebody_cuts_short(file: LocalFile, tmp_path: Path) -> None:
    os.truncate(tmp_path / "ten", 4)
    with pytest.raises(DamagedError, match="shorter while it was read"):
        file.read(2, 6)


def test_pointers(tmp_path: Path, file: LocalFile) -> None:
    (tmp_path / "pointer").write_bytes(POINTER)
    assert not file.is_lfs_pointer()
    file.refuse_lfs_pointer()
    with pytest.raises(DamagedError, match="git-lfs pointer"):
        LocalFile(str(tmp_path / "pointer")).refuse_lfs_pointer()


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
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
    found = folder.file("b/c/deep")
    assert found is not None
    assert found.read() == b"deep"
    sibling = found.sibling("deep")
    assert sibling is not None
    assert found.sibling("nothing") is None
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
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    assert LocalFolder(str(tmp_path)).file(name) is None
    assert LocalFolder(str(tmp_path)).folder(name) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(file: LocalFile, tmp_path: Path) -> None:
    (tmp_path / "ten").chmod(0)
    with pytest.raises(BnstatError, match="Permission denied"):
        LocalFile(str(tmp_path / "ten"))


@pytest.mark.parametrize("is_positioned", [True, False])
def test_a_long_read_takes_several(
    is_positioned: bool, file: LocalFile, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_what_a_disk_refuses_is_told(file: LocalFile, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_listing_tells_of_files_and_folders_alone(tmp_path: Path, file: LocalFile) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "leads").symlink_to(tmp_path / "folder")
    (tmp_path / "named").symlink_to(tmp_path / "ten")
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    entries = LocalFolder(str(tmp_path)).entries()
    assert [(each.name, each.is_folder, each.size, each.link) for each in entries] == [
        ("folder", True, 0, ""),
        ("leads", True, 0, str((tmp_path / "folder").resolve())),
        ("named", False, 10, ""),
        ("ten", False, 10, ""),
    ]
    tags = {each.name: each.tag for each in entries}
    assert tags["ten"] == tags["named"] == str((tmp_path / "ten").stat().st_mtime_ns)
    assert tags["folder"] == str((tmp_path / "folder").stat().st_mtime_ns)
    with pytest.raises(NotFoundError, match="no such file or folder"):
        LocalFolder(str(tmp_path / "nothing")).entries()


def test_here(tmp_path: Path, file: LocalFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = LocalFolder(".")
    assert here.name == tmp_path.name
    found = here.file("ten")
    assert found is not None
    assert found.path == "ten"
    assert found.sibling("ten") is not None
    with found.open() as stream:
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

    def test_here(self, tmp_path: Path, file: LocalFile, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert self.found("ten") == (".", "ten", None)
        assert self.found(".") == (None, ".", ".")

    @pytest.mark.parametrize("scheme", ["file://", "local://", "file://localhost"])
    def test_urls_of_this_machine(self, scheme: str, file: LocalFile) -> None:
        assert self.found(f"{scheme}{file.path}") == self.found(file.path)

    def test_what_is_neither(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(BnstatError, match="pipe: is neither a file nor a folder"):
            find(str(tmp_path / "pipe"), Access())


class Far(MemoryFile):
    """A file that is read by ranges, as one is that is far away."""

    open = File.open


def test_ranges_as_a_stream() -> None:
    file = Far(b"0123456789")
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


def test_a_pointer_is_hinted_at_where_bytes_are_missing() -> None:
    with pytest.raises(DamagedError, match="it is a git-lfs pointer: run `git lfs pull`"):
        MemoryFile(POINTER).read(0, 2000)
    # What only begins so is a file of its own.
    with pytest.raises(DamagedError, match="copy or download it again"):
        MemoryFile(POINTER.ljust(1024)).read(0, 2000)
    assert MemoryFile(POINTER.ljust(1023)).is_lfs_pointer()


class TestRefusals:
    """As of files that may not be read, which root may all the same."""

    @staticmethod
    def refuse(*arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    def test_of_opening(self, file: LocalFile, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "open", self.refuse)
        with pytest.raises(BnstatError, match="ten: cannot be opened: Permission denied"):
            LocalFile(file.path)

    def test_of_looking(self, file: LocalFile, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "stat", self.refuse)
        for look in (local.kind_of, LocalFile, lambda path: find(path, Access())):
            with pytest.raises(BnstatError, match="ten: cannot be opened: Permission denied"):
                look(file.path)

    def test_of_listing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "listdir", self.refuse)
        with pytest.raises(BnstatError, match="cannot be opened: Permission denied"):
            LocalFolder(str(tmp_path)).names()

    def test_of_names_that_no_file_can_have(self, tmp_path: Path) -> None:
        with pytest.raises(BnstatError, match="cannot be opened: embedded null byte"):
            LocalFile(f"{tmp_path}/a\0b")


def test_a_file_that_goes_while_it_is_looked_for_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "kind_of", lambda path: stat.S_IFREG)
    assert LocalFolder(str(tmp_path)).file("gone") is None
