"""Files are copied byte for byte, on any system."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bnstat.mending.draft import copy_file, exchange

RANDOM = os.urandom(3 << 20)


@pytest.fixture(params=["supported", "refused", "missing"])
def copy_in_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the system can copy between files without reading them."""

    def refuse(*_: Any) -> int:
        raise OSError(18, "Invalid cross-device link")

    if request.param == "refused":
        monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    elif request.param == "missing":
        for name in ("copy_file_range", "posix_fadvise"):
            monkeypatch.delattr(os, name, raising=False)


@pytest.mark.usefixtures("copy_in_kernel")
@pytest.mark.parametrize("data", [b"", b"x", RANDOM], ids=len)
def test_a_copy_has_the_same_bytes(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    copy_file(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "b").read_bytes() == data


@pytest.mark.usefixtures("copy_in_kernel")
def test_a_file_with_holes(tmp_path: Path) -> None:
    with open(tmp_path / "a", "wb") as file:
        file.seek(8 << 20)
        file.write(b"middle")
        file.truncate(32 << 20)
    copy_file(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"new")
    (tmp_path / "b").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        copy_file(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "b").read_bytes() == b"old"


def test_folders_swap_their_names(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of-{name}").touch()
    if not exchange(str(tmp_path / "a"), str(tmp_path / "b")):
        pytest.skip("the system cannot swap names")
    assert os.listdir(tmp_path / "a") == ["of-b"]
    assert os.listdir(tmp_path / "b") == ["of-a"]
    assert not exchange(str(tmp_path / "a"), str(tmp_path / "c"))
