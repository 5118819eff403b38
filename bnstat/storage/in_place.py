"""A run of another file's bytes as a file of its own, such as a stored member of a zip.

`zipfile` goes back in a member by reading it from its start again, which for the random access
of HDF5 means to read gigabytes. A member that is stored without compression needs none of that:
its bytes lie in the archive as they are.

Source: APPNOTE.TXT 6.3.10, 4.3.7 "Local file header", PKWARE.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import IO, TYPE_CHECKING, Final, cast
from weakref import WeakKeyDictionary

from bnstat.errors import BnstatError, DamagedError
from bnstat.storage.files import File, Range

if TYPE_CHECKING:
    from zipfile import ZipInfo


_HEADER: Final = struct.Struct("<4s22x2H")
_SIGNATURE: Final = b"PK\x03\x04"
_EXTRA: Final = 128
"""Bytes between a member's name and its data: PyTorch fills up to 64, so that it is aligned."""
_ENCRYPTED: Final = 1

MAX_MEMBERS: Final = 100_000
"""Members of an archive."""

_LARGEST_DIRECTORY: Final = 64 << 20
"""Bytes of a zip's table of contents."""

_ENTRY: Final = b"PK\x01\x02"
"""Every entry of the table of contents begins with these bytes."""


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


_directories: WeakKeyDictionary[File, Sequence[ZipInfo]] = WeakKeyDictionary()


def zip_members(archive: File) -> Sequence[ZipInfo]:
    """Return the entries of a zip's table of contents, which is read once for each `File`.

    Raises:
        BnstatError: the table of contents has too many entries, or is too large.
        BadZipFile, OSError, ValueError, NotImplementedError, LookupError: it is damaged.
    """
    import zipfile

    if archive not in _directories:
        with archive.open() as stream:
            bounded = cast(IO[bytes], _BoundedStream(stream, archive.path))
            with zipfile.ZipFile(bounded) as opened:
                _directories[archive] = tuple(opened.infolist())
    return _directories[archive]


class _BoundedStream:
    """A zip as `zipfile` reads it, which refuses a table of contents before it is parsed.

    `zipfile` reads the whole table at once and makes an object of each entry.
    """

    def __init__(self, stream: IO[bytes], path: str) -> None:
        self._path = path
        self._stream = stream
        self.seek, self.tell, self.close = stream.seek, stream.tell, stream.close

    def read(self, size: int = -1) -> bytes:
        """Read as a stream does.

        Raises:
            BnstatError: the bytes have more entries than an archive may have members.
        """
        if size > _LARGEST_DIRECTORY:
            raise BnstatError(self._path, "has a table of contents of more than 64 MB")
        data = self._stream.read(size)
        if data.count(_ENTRY) > MAX_MEMBERS:
            raise too_many(self._path)
        return data


def too_many(path: str) -> BnstatError:
    """Return the error about an archive with more members than are read."""
    return BnstatError(path, f"holds more than {MAX_MEMBERS} files")


def stored_member(archive: File, name: str) -> Slice | None:
    """A member of a zip; None where there is none, or it is compressed or encrypted.

    Raises:
        DamagedError: the archive contradicts itself.
    """
    import zipfile

    try:
        members = zip_members(archive)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, LookupError) as error:
        raise DamagedError(archive.path, f"is a damaged archive ({error})") from error
    named = (info for info in reversed(members) if info.filename == name)
    info = next(named, None)
    return None if info is None else slice_of(archive, info)


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
