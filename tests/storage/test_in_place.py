"""Runs of another file's bytes, and the stored members of zips."""

from __future__ import annotations

import io
import zipfile

import pytest

from bnstat.errors import DamagedError
from bnstat.storage.archive import Slice, stored_member
from tests.builders.memory import MemoryFile


class Far(MemoryFile):
    """A file that remembers what else it was asked."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, "whole")
        self.asked: list[tuple[int, ...]] = []

    def has(self, offset: int, length: int) -> bool:
        self.asked.append((offset, length))
        return offset < 5

    def allow_waste(self, size: int) -> None:
        self.asked.append((size,))


def test_a_slice_is_a_file_of_its_own() -> None:
    part = Slice(MemoryFile(b"0123456789", "whole"), 3, 7, "part")
    assert (part.name, part.path, part.size) == ("part", "whole/part", 7)
    assert part.read() == b"3456789"
    assert part.sibling("part") is None
    with pytest.raises(DamagedError, match="whole/part: truncated"):
        part.read(7, 1)
    with pytest.raises(DamagedError, match="whole: truncated"):
        Slice(MemoryFile(b"0123456789", "whole"), 3, 8, "part")


def test_a_slice_asks_the_whole_file() -> None:
    whole = Far(b"0123456789")
    part = Slice(whole, 3, 7, "part")
    assert part.has(1, 2) is True
    assert part.has(2, 2) is False
    part.allow_waste(99)
    assert whole.asked == [(4, 2), (5, 2), (99,)]


def archive() -> bytearray:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as whole:
        for name, method in (("stored", zipfile.ZIP_STORED), ("packed", zipfile.ZIP_DEFLATED)):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.extra = b"\x99\x99\x04\x00four"
            info.compress_type = method
            whole.writestr(info, b"0123456789" * 10)
    return bytearray(stream.getvalue())


def entry(data: bytearray, name: bytes) -> int:
    """Where a member's entry in the table of contents begins."""
    return data.index(name, data.index(b"PK\1\2")) - 46


def test_a_stored_member_alone_lies_there_as_it_is() -> None:
    file = MemoryFile(bytes(archive()), "m")
    member = stored_member(file, "stored")
    assert member is not None
    assert (member.name, member.path) == ("stored", "m/stored")
    assert member.read() == b"0123456789" * 10
    assert stored_member(file, "packed") is None
    assert stored_member(file, "none") is None


def test_an_encrypted_member_does_not() -> None:
    data = archive()
    data[entry(data, b"stored") + 8] |= 1
    assert stored_member(MemoryFile(bytes(data)), "stored") is None


def test_an_archive_that_contradicts_itself_is_damaged() -> None:
    newer = archive()
    newer[entry(newer, b"stored") + 6] = 99
    for data in (b"", bytes(archive())[:-30], bytes(newer)):
        with pytest.raises(DamagedError, match="m: is a damaged archive"):
            stored_member(MemoryFile(data, "m"), "stored")
    moved = archive()
    moved[0] ^= 1
    with pytest.raises(DamagedError, match="m: stored is not where its directory says"):
        stored_member(MemoryFile(bytes(moved), "m"), "stored")
