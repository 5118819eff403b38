"""Files are copied as they are, whatever the system can do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bnstat.mending.copying import copy_file, exchange

RANDOM = os.urandom(3 << 20)


@pytest.fixture(params=["in the kernel", "refused", "absent"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that copies within itself, one that refuses to, one that never heard of it."""

    def refuse(*_: Any) -> int:
        raise OSError(18, "Invalid cross-device link")

    if request.param == "refused":
        monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    elif request.param == "absent":
        for name in ("copy_file_range", "posix_fadvise", "SEEK_DATA"):
            monkeypatch.delattr(os, name, raising=False)


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("data", [b"", b"x", RANDOM], ids=len)
def test_the_bytes_are_the_same(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    copy_file(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "b").read_bytes() == data


@pytest.mark.usefixtures("system")
def test_holes(tmp_path: Path) -> None:
    with open(tmp_path / "a", "wb") as file:
        file.seek(8 << 20)
        file.write(b"middle")
        file.truncate(32 << 20)
    copy_file(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


def test_holes_take_no_room(tmp_path: Path) -> None:
    with open(tmp_path / "a", "wb") as file:
        file.truncate(1 << 30)
    if os.stat(tmp_path / "a").st_blocks:
        pytest.skip("the file system knows no holes")
    copy_file(str(tmp_path / "a"), str(tmp_path / "b"))
    assert os.stat(tmp_path / "b").st_blocks == 0


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"new")
    (tmp_path / "b").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        copy_file(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "b").read_bytes() == b"old"


def test_folders_exchange_their_names(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of-{name}").touch()
    if not exchange(str(tmp_path / "a"), str(tmp_path / "b")):
        pytest.skip("the system cannot do it")
    assert os.listdir(tmp_path / "a") == ["of-b"]
    assert os.listdir(tmp_path / "b") == ["of-a"]
    assert not exchange(str(tmp_path / "a"), str(tmp_path / "c"))
