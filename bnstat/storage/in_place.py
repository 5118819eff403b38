"""A run of another file's bytes as a file of its own, such as a stored member of a zip.

`zipfile` goes back in a member by reading it from its start again, which for the random access
of HDF5 means to read gigabytes. A member that is stored without compression needs none of that:
its bytes lie in the archive as they are.

Source: APPNOTE.TXT 6.3.10, 4.3.7 "Local file header", PKWARE.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from bnstat.errors import DamagedError
from bnstat.storage.files import File
from bnstat.storage.ranges import Range

if TYPE_CHECKING:
    from zipfile import ZipInfo

_HEADER: Final = struct.Struct("<4s22x2H")
_SIGNATURE: Final = b"PK\x03\x04"
_EXTRA: Final = 128
"""Bytes between a member's name and its data: PyTorch fills up to 64, so that it is aligned."""
_ENCRYPTED: Final = 1


class Slice(File):
    """`size` bytes of another file from `start` on."""

    def __init__(self, whole: File, start: int, size: int, name: str) -> None:
        """Check the range.

        Raises:
            DamagedError: the file does not have it.
        """
        self.name = name
        self.path = f"{whole.path}/{name}"
        self.size = size
        self._whole = whole
        self._start = start
        whole.read(start + size, 0)

    def _read(self, offset: int, length: int) -> bytes:
        return self._whole.read(self._start + offset, length)

    def prefetch(self, spans: Sequence[tuple[int, int]]) -> None:
        self._whole.prefetch([(self._start + offset, length) for offset, length in spans])

    def has(self, offset: int, length: int) -> bool:
        return self._whole.has(self._start + offset, length)

    def allow_waste(self, size: int) -> None:
        self._whole.allow_waste(size)

    def place(
        self, offset: int, length: int, part: tuple[slice, ...] | None = None
    ) -> Range | None:
        return self._whole.place(self._start + offset, length, part)

    def sibling(self, name: str) -> File | None:
        """None: a slice is alone."""
        del name
        return None


def stored_member(archive: File, name: str) -> Slice | None:
    """A member of a zip; None where there is none, or it is compressed or encrypted.

    Raises:
        DamagedError: the archive contradicts itself.
    """
    import zipfile

    try:
        with archive.open() as stream, zipfile.ZipFile(stream) as opened:
            info = opened.getinfo(name)
    except KeyError:
        return None
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DamagedError(archive.path, f"is a damaged archive ({error})") from error
    return slice_of(archive, info)


def slice_of(archive: File, info: ZipInfo) -> Slice | None:
    """The bytes of a zip's member; None where it is compressed or encrypted.

    Raises:
        DamagedError: the archive contradicts itself.
    """
    import zipfile

    return packed_slice_of(archive, info) if info.compress_type == zipfile.ZIP_STORED else None


def fetch_starts(archive: File, members: Iterable[ZipInfo], length: int) -> None:
    """Let the first bytes of a zip's members, and the headers before them, be fetched together.

    Raises:
        BnstatError: they cannot be fetched.
    """
    archive.prefetch(
        [
            (
                info.header_offset,
                _HEADER.size + len(info.filename) + _EXTRA + min(length, info.compress_size),
            )
            for info in members
        ]
    )


def packed_slice_of(archive: File, info: ZipInfo) -> Slice | None:
    """The bytes of a zip's member as they lie there, compressed or not; None if encrypted.

    Raises:
        DamagedError: the archive contradicts itself.
    """
    if info.flag_bits & _ENCRYPTED:
        return None
    header = archive.read(info.header_offset, _HEADER.size)
    signature, name_length, extra_length = _HEADER.unpack(header)
    if signature != _SIGNATURE:
        raise DamagedError(archive.path, f"has no {info.filename} where its table of contents says")
    start = info.header_offset + _HEADER.size + name_length + extra_length
    return Slice(archive, start, info.compress_size, info.filename)
