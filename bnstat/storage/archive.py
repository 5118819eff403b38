"""Zip and tar archives as folders, read in place: nothing is unpacked beside them.

A compressed tar is decompressed into a temporary file that has no name and goes with the
process; so is a compressed member of a zip. What would grow out of all proportion is refused.
Links, devices and members that point out of the archive do not exist here.

    tar  for each member a header of 512 bytes, then its bytes, filled up to a multiple of 512;
         types "x", "g" and "L" describe the member that follows; a header of zeros ends it
    pax  records of a length in decimal digits, a space, KEY=VALUE and a newline; the length
         counts all of the record

Headers are walked here because Python's tarfile bounds neither their size nor their contents.

Sources: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual,
"Basic Tar Format" and "Storing Sparse Files".
"""

from __future__ import annotations

import os
import struct
import tarfile
import tempfile
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from threading import Lock
from typing import Final, NamedTuple

from bnstat.errors import BnstatError, DamagedError, UnsupportedError
from bnstat.storage.files import File, Folder, Range
from bnstat.storage.in_place import (
    MAX_MEMBERS,
    Slice,
    fetch_starts,
    packed_slice_of,
    slice_of,
    too_many,
    zip_members,
)
from bnstat.storage.local import Handle

_MAX_RATIO: Final = 50
_CHUNK: Final = 1 << 20

_LONGEST_PATH: Final = 4096
"""Characters; Linux has the same bound. Each level of a path costs a search for models."""

_MEMBER_HEADER: Final = 1 << 10
"""So much is fetched beyond a member's bytes, for what stands before them."""

_TEXT: Final = ("utf-8", "surrogateescape")
_BLOCK: Final = 512
_PAX: Final = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_ABOUT_NEXT: Final = (
    *_PAX,
    tarfile.XGLTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
"""Types of headers that describe the members after them, in as many bytes as they need."""

_LARGEST_ABOUT: Final = 1 << 20
"""Bytes of such a header; libarchive has the same bound."""

_MAX_RECORDS: Final = 10 * MAX_MEMBERS
"""Such headers, and records in them, of a tar together."""

_MOST_DIGITS: Final = 8

_SPARSE: Final = "GNU.sparse."
_GOES_ON_AT: Final = 482
_GOES_ON_AGAIN_AT: Final = 504
"""Where the header of a sparse member, and each block after it, tells whether a block follows."""

_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,
    ValueError,
    RuntimeError,
    ArithmeticError,
    LookupError,
    struct.error,
)


def open_archive(file: File) -> Folder | None:
    """The archive as a folder; None where the file is no archive.

    Raises:
        DamagedError: it begins as an archive does, but is damaged.
        BnstatError: it grows out of all proportion when it is decompressed.
    """
    head = file.head(512)
    try:
        if head.startswith(b"PK\x03\x04"):
            return _zip_folder(file)
        if head.startswith(b"\x1f\x8b"):
            import gzip

            file.prefetch([(0, file.size)])
            with file.open() as raw, gzip.GzipFile(fileobj=raw) as stream:
                chunks = iter(partial(stream.read, _CHUNK), b"")
                return _tar_folder(file, _Spool(file, file.name, chunks, file.size))
        if head[257:262] == b"ustar":
            file.prefetch([(0, file.size)])
            return _tar_folder(file, file)
    except _DAMAGE as error:
        raise DamagedError(
            file.path, f"is a truncated or damaged archive ({error})", "copy or download it again"
        ) from error
    return None


class _Spool(File):
    """Decompressed bytes, in a temporary file.

    Args:
        source: the file that they come from.
        name: the name of the file that they are.
        chunks: the bytes, piece by piece.
        packed: how many bytes they have compressed.

    Raises:
        BnstatError: the bytes grow out of all proportion.
    """

    def __init__(self, source: File, name: str, chunks: Iterable[bytes], packed: int) -> None:
        self.name = name
        self.path = source.path
        self.size = 0
        with tempfile.TemporaryFile() as stream:
            for chunk in chunks:
                stream.write(chunk)
                self.size += len(chunk)
                if self.size > _largest(packed):
                    raise _grows(source)
            stream.flush()
            self._handle = Handle(os.dup(stream.fileno()))

    def _read(self, offset: int, length: int) -> bytes:
        return self._handle.read(offset, length)

    def sibling(self, name: str) -> File | None:
        """Return None: these bytes are in no folder."""
        del name
        return None


def _largest(packed: int) -> int:
    """Return to how many bytes this many compressed bytes may grow."""
    return _MAX_RATIO * packed + _CHUNK


def _grows(file: File) -> BnstatError:
    return BnstatError(
        file.path,
        f"grows more than {_MAX_RATIO} times when it is decompressed",
        "unpack it yourself if you trust it",
    )


class _Member(File):
    """A file in an archive; its bytes are unpacked when they are first read."""

    def __init__(self, folder: _ArchiveFolder, name: str, stored: _Stored) -> None:
        self.name = name.rsplit("/", 1)[-1]
        self.path = f"{folder.path}/{self.name}"
        self.size = stored.size
        self._folder = folder
        self._unpack = stored.unpack
        self._in_place = stored.in_place
        self._unpacked: File | None = None
        self._lock = Lock()

    def _read(self, offset: int, length: int) -> bytes:
        try:
            with self._lock:
                if self._unpacked is None:
                    self._unpacked = self._unpack()
            return self._unpacked.read(offset, length)
        except _DAMAGE as error:
            raise DamagedError(self.path, f"cannot be unpacked ({error})") from error

    def place(
        self, offset: int, length: int, part: tuple[slice, ...] | None = None
    ) -> Range | None:
        """None where the member is compressed, or is one of a tar."""
        whole = self._in_place()
        return None if whole is None else whole.place(offset, length, part)

    def sibling(self, name: str) -> File | None:
        return self._folder.file(name)


class _Stored(NamedTuple):
    """A member of an archive.

    Attributes:
        size: its size in bytes.
        unpack: returns its bytes as a file.
        in_place: returns it as a part of the archive's file; None where it is none.
        info: the entry of a zip.
    """

    size: int
    unpack: Callable[[], File]
    in_place: Callable[[], File | None]
    info: zipfile.ZipInfo | None = None


_Members = dict[str, _Stored]


class _ArchiveFolder(Folder):
    """A folder in an archive.

    Args:
        archive: the archive's file.
        inside: the path of the folder in it; empty for the top.
        members: all members of the archive, by their paths.
        paths: these paths, sorted: those of a folder stand together.
    """

    def __init__(self, archive: File, inside: str, members: _Members, paths: Sequence[str]) -> None:
        self.path = f"{archive.path}/{inside}".rstrip("/")
        self.name = inside.rsplit("/", 1)[-1]
        self._archive = archive
        self._inside = inside
        self._members = members
        self._paths = paths

    def names(self) -> list[str]:
        start = self._below("")
        at = bisect_left(self._paths, start)
        found = set()
        while at < len(self._paths) and self._paths[at].startswith(start):
            name, slash, _ = self._paths[at][len(start) :].partition("/")
            found.add(name)
            # What is below a folder comes before its name with the character after the slash.
            at = bisect_left(self._paths, f"{start}{name}0", at) if slash else at + 1
        return sorted(found)

    def expect(self, names: Iterable[str]) -> None:
        """Fetch these files, those of a zip that is far away, together."""
        stored = (self._members.get(self._below(name)) for name in names)
        infos = [each.info for each in stored if each is not None and each.info is not None]
        fetch_starts(self._archive, infos, self._archive.size)

    def file(self, name: str) -> File | None:
        path = self._below(name)
        if path not in self._members:
            return None
        return _Member(self._at(path.rpartition("/")[0]), path, self._members[path])

    def folder(self, name: str) -> Folder | None:
        path = self._below(name)
        at = bisect_left(self._paths, f"{path}/")
        if at < len(self._paths) and self._paths[at].startswith(f"{path}/"):
            return self._at(path)
        return None

    def parent(self) -> Folder | None:
        return self._at(self._inside.rpartition("/")[0]) if self._inside else None

    def _at(self, inside: str) -> _ArchiveFolder:
        return _ArchiveFolder(self._archive, inside, self._members, self._paths)

    def modified(self, name: str) -> float:
        del name
        return 0.0

    def _below(self, name: str) -> str:
        return f"{self._inside}/{name}" if self._inside else name


def _zip_folder(file: File) -> Folder:
    members: _Members = {}
    for info in zip_members(file):
        name = _inside(info.filename)
        if name and not info.is_dir():
            unpack, in_place = partial(_unzipped, file, info), partial(slice_of, file, info)
            members[name] = _Stored(info.file_size, unpack, in_place, info)
            _refuse_many(file, members)
    return _top_folder(file, members)


def _unzipped(file: File, info: zipfile.ZipInfo) -> File:
    """Return the bytes of a zip's member, decompressed.

    Raises:
        DamagedError: the member contradicts itself.
        UnsupportedError: the member is encrypted or not compressed by deflate.
    """
    # LZMA would take as much memory as the file asks for.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UnsupportedError(file.path, f"{info.filename} is not compressed by deflate")
    if (stored := slice_of(file, info)) is not None:
        return stored
    file.prefetch([(info.header_offset, info.compress_size + _MEMBER_HEADER)])
    packed = packed_slice_of(file, info)
    if packed is None:
        raise DamagedError(f"{file.path}/{info.filename}", "is encrypted", "unpack the archive")
    if info.file_size > _largest(packed.size):
        raise _grows(file)
    return _Spool(file, info.filename, _inflated(packed, info), packed.size)


def _inflated(packed: File, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield the bytes of a deflated member, piece by piece, and check them.

    Raises:
        DamagedError: there are more or fewer, or their checksum is another.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    size = checksum = 0
    for at in range(0, packed.size, _CHUNK):
        data = packed.read(at, min(_CHUNK, packed.size - at))
        while size <= info.file_size and (piece := inflater.decompress(data, _CHUNK)):
            size += len(piece)
            checksum = zlib.crc32(piece, checksum)
            yield piece
            data = inflater.unconsumed_tail
    if size != info.file_size or checksum != info.CRC:
        raise DamagedError(packed.path, "cannot be unpacked (its size or checksum is wrong)")


def _tar_folder(file: File, plain: File) -> Folder:
    members: _Members = {}
    for name, offset, size in _tar_members(plain):
        path = _inside(name)
        if path:
            unpack = partial(Slice, plain, offset, size, path)
            members[path] = _Stored(size, unpack, lambda: None)
            _refuse_many(file, members)
    return _top_folder(file, members)


def _tar_members(file: File) -> Iterator[tuple[str, int, int]]:
    """Yield the name, the offset and the size of each regular file in a tar.

    Raises:
        DamagedError: a header is damaged, or there is more in headers than any archive needs.
    """
    at = members = records = 0
    about: dict[str, str] = {}
    while (header := file.read(at, min(_BLOCK, file.size - at))).strip(b"\0"):
        info = tarfile.TarInfo.frombuf(header, *_TEXT)
        at = _after_map(file, at, header) if info.issparse() else at + _BLOCK
        is_member = info.type not in _ABOUT_NEXT
        size = int(about.get("size", info.size)) if is_member else info.size
        # A negative size would lead back to where the walk has been.
        if size < 0 or not (is_member or size <= _LARGEST_ABOUT):
            raise _leads_nowhere(file)
        has_bytes = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES or not is_member
        end = at + -(-size // _BLOCK) * _BLOCK if has_bytes else at
        if end > file.size:
            raise tarfile.ReadError("unexpected end of data")
        if is_member:
            # A sparse member can claim any size without having it.
            is_sparse = info.issparse() or any(key.startswith(_SPARSE) for key in about)
            if info.isreg() and not is_sparse:
                yield about.get("path", info.name), at, size
            members += 1
            about = {}
        else:
            records += 1
            for key, value in _about_next(file, info.type, at, size):
                about[key] = value
                records += 1
                if records > _MAX_RECORDS:
                    break
        if members > MAX_MEMBERS + 1 or records > _MAX_RECORDS:
            raise _leads_nowhere(file)
        at = end


def _after_map(file: File, at: int, header: bytes) -> int:
    """Return where the bytes of a sparse member begin, whose header is at `at`."""
    at += _BLOCK
    goes_on = header[_GOES_ON_AT]
    while goes_on:
        goes_on = file.read(at, _BLOCK)[_GOES_ON_AGAIN_AT]
        at += _BLOCK
    return at


def _about_next(file: File, kind: bytes, at: int, size: int) -> Iterator[tuple[str, str]]:
    """Yield what a header says of the member after it; nothing where that does not matter."""
    data = file.read(at, size) if kind in (*_PAX, tarfile.GNUTYPE_LONGNAME) else b""
    if kind == tarfile.GNUTYPE_LONGNAME:
        yield "path", data.partition(b"\0")[0].decode(*_TEXT)
        return
    start = 0
    while start < size and data:
        digits = data[start : start + _MOST_DIGITS].partition(b" ")[0]
        end = start + int(digits)
        record = data[start + len(digits) + 1 : end]
        if end > size or not record.endswith(b"\n"):
            raise DamagedError(file.path, "is a tar with a damaged pax header")
        key, _, value = record[:-1].partition(b"=")
        yield key.decode(*_TEXT), value.decode(*_TEXT)
        start = end


def _leads_nowhere(file: File) -> DamagedError:
    return DamagedError(file.path, "is a tar that leads nowhere")


def _top_folder(file: File, members: _Members) -> Folder:
    return _ArchiveFolder(file, "", members, sorted(members))


def _refuse_many(file: File, members: _Members) -> None:
    if len(members) > MAX_MEMBERS:
        raise too_many(file.path)


def _inside(name: str) -> str:
    """Return a member's name as a clean path; empty where no folder could have such a file."""
    if len(name) > _LONGEST_PATH:
        return ""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    return "" if ".." in parts else "/".join(parts)
