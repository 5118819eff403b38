"""Zip and tar archives as folders, read in place.

Stored members of a zip and members of a plain tar are ranges of the archive. `zipfile` itself would
reread a member from the start for every backward seek, which is slow for HDF5. Compressed members
are unpacked into unnamed temporary files, which the system deletes. Archives with an extreme
compression ratio are refused. Links, devices and members that point out of the archive are ignored.

    zip  each member is a local header, its name, extra bytes, then its data
    tar  each member is a header of 512 bytes, then its data, padded to a multiple of 512; types
         "x", "g" and "L" describe the next member; a header of zeros ends the archive
    pax  each record is its length in decimal digits, a space, KEY=VALUE and a newline; the length
         counts the whole record

Headers of tars are parsed here because Python's tarfile limits neither their size nor number.

Sources: APPNOTE.TXT 6.3.10, 4.3.7 "Local file header", PKWARE; POSIX.1-2017, pax, "ustar
Interchange Format" and "pax Extended Header"; GNU tar manual, "Basic Tar Format" and "Storing
Sparse Files".
"""

from __future__ import annotations

import os
import struct
import tarfile
import tempfile
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import IO, Final, NamedTuple, cast
from weakref import WeakKeyDictionary

from bnstat.errors import BnstatError, DamagedError, UnsupportedError
from bnstat.storage.files import File, Folder, Part, Range
from bnstat.storage.local import Handle

MAX_MEMBERS: Final = 100_000

_MAX_RATIO: Final = 50
_CHUNK: Final = 1 << 20

_LONGEST_PATH: Final = 4096  # the longest in Linux; each level costs a search for models
_LOCAL_HEADER: Final = struct.Struct("<4s22x2H")
_LOCAL_SIGNATURE: Final = b"PK\x03\x04"
_DIRECTORY_SIGNATURE: Final = b"PK\x01\x02"
_MAX_DIRECTORY: Final = 64 << 20  # bytes of a zip's directory
_ENCRYPTED: Final = 1
_EXTRA: Final = 128  # bytes fetched between a member's name and its data: PyTorch aligns to 64

_TEXT: Final = ("utf-8", "surrogateescape")
_BLOCK: Final = 512
_PAX: Final = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_DESCRIBING: Final = (*_PAX, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
"""Types of headers that describe the next member."""
_MAX_DESCRIPTION: Final = 1 << 20  # bytes of such a header, as in libarchive
_MAX_RECORDS: Final = 10 * MAX_MEMBERS
"""Headers that describe the next member, and records in these headers, per tar."""
_MAX_DIGITS: Final = 8
_SPARSE: Final = "GNU.sparse."
_MORE_AT: Final = 482
_STILL_MORE_AT: Final = 504
"""Byte offsets of the flag for another block of a sparse map: in the header, and in a block."""

_UNPACK: Final = "unpack the archive and pass the folder"
_DAMAGE: Final = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
    ArithmeticError,
    LookupError,
    struct.error,
)


def open_archive(file: File) -> Folder | None:
    """Return the archive as a folder; None if the file is not an archive."""
    head = file.head(_BLOCK)
    members: dict[str, _Entry] = {}
    try:
        if head.startswith(_LOCAL_SIGNATURE):
            for info in zip_members(file):
                name = _clean_path(info.filename)
                if name and not info.is_dir():
                    members[name] = _Entry(info.file_size, partial(_unzip, file, info), info)
            return _ArchiveFolder(file, members, sorted(members))
        is_packed = head.startswith(b"\x1f\x8b")
        if is_packed:
            head = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, _BLOCK)
        # An empty tar is a block of zeros.
        if head[257:262] != b"ustar" and not (is_packed and not head.strip(b"\0")):
            return None
        file.prefetch([(0, file.size)])
        plain = file
        if is_packed:
            import gzip

            with file.open() as raw, gzip.GzipFile(fileobj=raw) as stream:
                chunks = iter(partial(stream.read, _CHUNK), b"")
                plain = _Unpacked(file, file.name, chunks, file.size)
        for name, offset, size in _tar_members(plain):
            if path := _clean_path(name):
                last = path.rpartition("/")[2]
                members[path] = _Entry(size, partial(Slice, plain, offset, size, last))
        return _ArchiveFolder(file, members, sorted(members))
    except _DAMAGE as error:
        reason = f"is a truncated or damaged archive ({error})"
        raise DamagedError(file.path, reason, "copy or download it again") from error


class Slice(File):
    """A range of another file that behaves like a separate file."""

    def __init__(self, file: File, start: int, size: int, name: str) -> None:
        self.name = name
        self.path = f"{file.path}/{name}"
        self.size = size
        self._file = file
        self._start = start
        file.read(start + size, 0)

    def _read(self, offset: int, length: int) -> bytes:
        return self._file.read(self._start + offset, length)

    def prefetch(self, spans: Sequence[tuple[int, int]]) -> None:
        self._file.prefetch([(self._start + offset, length) for offset, length in spans])

    def has(self, offset: int, length: int) -> bool:
        return self._file.has(self._start + offset, length)

    def allow_waste(self, size: int) -> None:
        self._file.allow_waste(size)

    def refuse_changed(self) -> None:
        self._file.refuse_changed()

    def place(self, offset: int, length: int, part: Part | None = None) -> Range | None:
        return self._file.place(self._start + offset, length, part)


class _Unpacked(File):
    """A temporary file with decompressed `chunks`; `packed` is the compressed size in bytes."""

    def __init__(self, source: File, name: str, chunks: Iterable[bytes], packed: int) -> None:
        self.name = name
        self.path = source.path
        self.size = 0
        with tempfile.TemporaryFile() as stream:
            for chunk in chunks:
                stream.write(chunk)
                self.size += len(chunk)
                _refuse_growth(source, packed, self.size)
            stream.flush()
            self._handle = Handle(os.dup(stream.fileno()))

    def _read(self, offset: int, length: int) -> bytes:
        return self._handle.read(offset, length)


def _refuse_growth(file: File, packed: int, unpacked: int) -> None:
    if unpacked > _MAX_RATIO * packed + _CHUNK:
        reason = f"grows more than {_MAX_RATIO} times when it is decompressed"
        raise BnstatError(file.path, reason, "unpack it yourself if you trust it")


class _Entry(NamedTuple):
    """A member of an archive; `info` is its entry in the directory of a zip, None in a tar."""

    size: int
    open: Callable[[], File]
    info: zipfile.ZipInfo | None = None


class _Member(File):
    """A file in an archive, which is unpacked when it is first read."""

    def __init__(self, folder: _ArchiveFolder, name: str, entry: _Entry) -> None:
        self.name = name
        self.path = f"{folder.path}/{name}"
        self.size = entry.size
        self._folder = folder
        self._entry = entry
        self._opened: File | None = None
        self._lock = Lock()

    def _read(self, offset: int, length: int) -> bytes:
        try:
            with self._lock:
                self._opened = self._opened or self._entry.open()
            return self._opened.read(offset, length)
        except _DAMAGE as error:
            raise DamagedError(self.path, f"cannot be unpacked ({error})") from error

    def place(self, offset: int, length: int, part: Part | None = None) -> Range | None:
        info = self._entry.info
        stored = None if info is None else _stored_slice(self._folder.archive, info)
        return None if stored is None else stored.place(offset, length, part)

    def sibling(self, name: str) -> File | None:
        return self._folder.file(name)


class _ArchiveFolder(Folder):
    """A folder in an archive; `inside` is the path in the archive, empty for the top."""

    def __init__(
        self, archive: File, members: Mapping[str, _Entry], paths: Sequence[str], inside: str = ""
    ) -> None:
        self.path = f"{archive.path}/{inside}".rstrip("/")
        self.name = inside.rpartition("/")[2]
        self.archive = archive
        self._members = members
        self._paths = paths
        self._inside = inside

    def names(self) -> list[str]:
        paths, start = self._paths, self._below("")
        index = bisect_left(paths, start)
        names = set()
        while index < len(paths) and paths[index].startswith(start):
            name, slash, _ = paths[index][len(start) :].partition("/")
            names.add(name)
            # "0" follows "/": skip everything in the folder `name`.
            index = bisect_left(paths, f"{start}{name}0", index) if slash else index + 1
        return sorted(names)

    def expect(self, names: Iterable[str]) -> None:
        entries = (self._members.get(self._below(name)) for name in names)
        infos = [entry.info for entry in entries if entry is not None and entry.info is not None]
        fetch_starts(self.archive, infos, self.archive.size)

    def file(self, name: str) -> File | None:
        path = self._below(name)
        if path not in self._members:
            return None
        above, _, last = path.rpartition("/")
        return _Member(self._at(above), last, self._members[path])

    def folder(self, name: str) -> Folder | None:
        paths, path = self._paths, self._below(name)
        index = bisect_left(paths, f"{path}/")
        exists = index < len(paths) and paths[index].startswith(f"{path}/")
        return self._at(path) if exists else None

    def parent(self) -> Folder | None:
        return self._at(self._inside.rpartition("/")[0]) if self._inside else None

    def _at(self, inside: str) -> _ArchiveFolder:
        return _ArchiveFolder(self.archive, self._members, self._paths, inside)

    def _below(self, name: str) -> str:
        return f"{self._inside}/{name}" if self._inside else name


def _clean_path(name: str) -> str:
    """Return a member's path with `/` as separator; empty if too long or outside the archive."""
    if len(name) > _LONGEST_PATH:
        return ""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    return "" if ".." in parts else "/".join(parts)


_directories: WeakKeyDictionary[File, Sequence[zipfile.ZipInfo]] = WeakKeyDictionary()


def zip_members(archive: File) -> Sequence[zipfile.ZipInfo]:
    """Return the entries of a zip's directory, which is read once per `File` object."""
    if archive not in _directories:
        with archive.open() as stream:
            bounded = cast(IO[bytes], _BoundedStream(stream, archive.path))
            with zipfile.ZipFile(bounded) as opened:
                _directories[archive] = tuple(opened.infolist())
    return _directories[archive]


class _BoundedStream:
    """A stream that limits the size of a zip's directory, which `zipfile` reads in one call."""

    def __init__(self, stream: IO[bytes], path: str) -> None:
        self._path = path
        self._stream = stream
        self.seek, self.tell, self.close = stream.seek, stream.tell, stream.close

    def read(self, size: int = -1) -> bytes:
        if size > _MAX_DIRECTORY:
            raise BnstatError(self._path, "is a zip with a directory of more than 64 MB", _UNPACK)
        data = self._stream.read(size)
        if data.count(_DIRECTORY_SIGNATURE) > MAX_MEMBERS:
            raise BnstatError(self._path, f"contains more than {MAX_MEMBERS} files", _UNPACK)
        return data


def stored_member(archive: File, name: str) -> Slice | None:
    """Return a member as a range of the zip; None if missing, compressed or encrypted."""
    members = reversed(zip_members(archive))
    info = next((info for info in members if info.filename == name), None)
    return None if info is None else _stored_slice(archive, info)


def _stored_slice(archive: File, info: zipfile.ZipInfo) -> Slice | None:
    return packed_slice_of(archive, info) if info.compress_type == zipfile.ZIP_STORED else None


def packed_slice_of(archive: File, info: zipfile.ZipInfo) -> Slice | None:
    """Return a member's bytes as stored in the zip, perhaps compressed; None if encrypted."""
    if info.flag_bits & _ENCRYPTED:
        return None
    header = archive.read(info.header_offset, _LOCAL_HEADER.size)
    signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    if signature != _LOCAL_SIGNATURE:
        reason = f"the directory of the zip has a wrong offset for {info.filename}"
        raise DamagedError(archive.path, reason)
    start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    return Slice(archive, start, info.compress_size, info.filename)


def fetch_starts(archive: File, members: Iterable[zipfile.ZipInfo], length: int) -> None:
    """Fetch the headers and the first `length` bytes of a zip's members together."""
    spans = []
    for info in members:
        header = _LOCAL_HEADER.size + len(info.filename) + _EXTRA
        spans.append((info.header_offset, header + min(length, info.compress_size)))
    archive.prefetch(spans)


def _unzip(file: File, info: zipfile.ZipInfo) -> File:
    # LZMA would take as much memory as the file asks for.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        reason = f"bnstat does not read the compression method of {info.filename}"
        raise UnsupportedError(file.path, reason, _UNPACK)
    if (stored := _stored_slice(file, info)) is not None:
        return stored
    fetch_starts(file, [info], info.compress_size)
    packed = packed_slice_of(file, info)
    if packed is None:
        where = f"{file.path}/{info.filename}"
        raise DamagedError(where, "this member of the zip is encrypted", _UNPACK)
    _refuse_growth(file, packed.size, info.file_size)
    return _Unpacked(file, info.filename, _inflate(packed, info), packed.size)


def _inflate(packed: File, info: zipfile.ZipInfo) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    size = checksum = 0
    for position in range(0, packed.size, _CHUNK):
        data = packed.read(position, min(_CHUNK, packed.size - position))
        while size <= info.file_size and (piece := inflater.decompress(data, _CHUNK)):
            size += len(piece)
            checksum = zlib.crc32(piece, checksum)
            yield piece
            data = inflater.unconsumed_tail
    if size != info.file_size or checksum != info.CRC:
        reason = "cannot be unpacked (the size or checksum of the data is wrong)"
        raise DamagedError(packed.path, reason)


def _tar_members(file: File) -> Iterator[tuple[str, int, int]]:
    """Yield (name, byte offset of the data, size in bytes) for each regular file in a tar."""
    endless = DamagedError(file.path, "is a tar with contradictory or too many headers")
    position = members = records = 0
    described: dict[str, str] = {}
    while (header := file.read(position, min(_BLOCK, file.size - position))).strip(b"\0"):
        info = tarfile.TarInfo.frombuf(header, *_TEXT)
        position += _BLOCK
        has_more = info.issparse() and header[_MORE_AT]
        while has_more:
            has_more = file.read(position, _BLOCK)[_STILL_MORE_AT]
            position += _BLOCK
        is_member = info.type not in _DESCRIBING
        size = int(described.get("size", info.size)) if is_member else info.size
        # A negative size would lead back to a header that was read before.
        if size < 0 or not (is_member or size <= _MAX_DESCRIPTION):
            raise endless
        has_data = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES or not is_member
        end = position + -(-size // _BLOCK) * _BLOCK if has_data else position
        if end > file.size:
            raise tarfile.ReadError("unexpected end of data")
        if is_member:
            # A sparse member can claim any size.
            is_sparse = info.issparse() or any(key.startswith(_SPARSE) for key in described)
            if info.isreg() and not is_sparse:
                yield described.get("path", info.name), position, size
            members += 1
            described = {}
        else:
            records += 1
            for key, value in _description(file, info.type, position, size):
                described[key] = value
                records += 1
        if members > MAX_MEMBERS or records > _MAX_RECORDS:
            raise endless
        position = end


def _description(file: File, kind: bytes, offset: int, size: int) -> Iterator[tuple[str, str]]:
    """Yield (key, value) from each record of a pax header, or from a GNU long name."""
    data = file.read(offset, size) if kind in (*_PAX, tarfile.GNUTYPE_LONGNAME) else b""
    if kind == tarfile.GNUTYPE_LONGNAME:
        yield "path", data.partition(b"\0")[0].decode(*_TEXT)
        return
    start = 0
    while start < size and data:
        digits = data[start : start + _MAX_DIGITS].partition(b" ")[0]
        end = start + int(digits)
        record = data[start + len(digits) + 1 : end]
        if end > size or not record.endswith(b"\n"):
            raise DamagedError(file.path, "is a tar with a damaged pax header")
        key, _, value = record[:-1].partition(b"=")
        yield key.decode(*_TEXT), value.decode(*_TEXT)
        start = end
