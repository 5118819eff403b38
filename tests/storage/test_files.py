"""Files and folders on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bnstat.errors import BnstatError, DamagedError, NotFoundError
from bnstat.storage.local import LocalFile, LocalFolder

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"


@pytest.fixture
def file(tmp_path: Path) -> LocalFile:
    (tmp_path / "ten").write_bytes(b"0123456789")
    return LocalFile(str(tmp_path / "ten"))


def test_ranges(file: LocalFile) -> None:
    assert (file.name, file.size) == ("ten", 10)
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


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    assert LocalFolder(str(tmp_path)).file(name) is None
    assert LocalFolder(str(tmp_path)).folder(name) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(file: LocalFile, tmp_path: Path) -> None:
    (tmp_path / "ten").chmod(0)
    with pytest.raises(BnstatError, match="Permission denied"):
        LocalFile(str(tmp_path / "ten"))
