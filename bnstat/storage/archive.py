"""Zip and tar archives as folders, read in place: nothing is unpacked beside them.

A compressed tar is decompressed into a temporary file that has no name and goes with the
process; so is a compressed member of a zip. What would grow out of all proportion is refused.
Links, devices and members that point out of the archive do not exist here.
"""

from __future__ import annotations

import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import IO, BinaryIO, NamedTuple, cast
from weakref import finalize

from bnstat.errors import BnstatError, DamagedError, UnsupportedError
from bnstat.storage.files import File, Folder
from bnstat.storage.in_place import fetch_starts, slice_of
from bnstat.storage.ranges import Range

_MAX_RATIO = 50
_MAX_MEMBERS = 100_000
_CHUNK = 1 << 20
_MEMBER_HEADER = 1 << 10
"""So much is fetched beyond a member's bytes, for what stands before them."""

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
                inner = _spool(file, cast(IO[bytes], stream), file.size)
            return _tar_folder(file, inner)
        if head[257:262] == b"ustar":
            file.prefetch([(0, file.size)])
            return _tar_folder(file, file.open())
    except _DAMAGE as error:
        raise DamagedError(
            file.path, f"is a truncated or damaged archive ({error})", "copy or download it again"
        ) from error
    return None


class _Member(File):
    """A file in an archive; its bytes are fetched when they are first asked for."""

    def __init__(self, folder: _ArchiveFolder, name: str, stored: _Stored) -> None:
        self.name = name.rsplit("/", 1)[-1]
        self.path = f"{folder.path}/{self.name}"
        self.size = stored.size
        self._folder = folder
        self._open = stored.open
        self._in_place = stored.in_place
        self._stream: BinaryIO | None = None

    def open(self) -> BinaryIO:
        try:
            return self._open()
        except _DAMAGE as error:
            raise DamagedError(self.path, f"cannot be unpacked ({error})") from error

    def _read(self, offset: int, length: int) -> bytes:
        if self._stream is None:
            self._stream = self.open()
        try:
            self._stream.seek(offset)
            return self._stream.read(length)
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

    def __del__(self) -> None:
        if self._stream is not None:
            self._stream.close()


class _Stored(NamedTuple):
    """A member: its size, how to open it, the member as a part of its archive's file, its entry."""

    size: int
    open: Callable[[], BinaryIO]
    in_place: Callable[[], File | None]
    info: zipfile.ZipInfo | None = None


_Members = dict[str, _Stored]


class _ArchiveFolder(Folder):
    def __init__(self, archive: File, inside: str, members: _Members) -> None:
        self.path = f"{archive.path}/{inside}".rstrip("/")
        self.name = inside.rsplit("/", 1)[-1]
        self._archive = archive
        self._inside = inside
        self._members = members

    def names(self) -> list[str]:
        start = f"{self._inside}/" if self._inside else ""
        return sorted(
            {
                name[len(start) :].split("/", 1)[0]
                for name in self._members
                if name.startswith(start)
            }
        )

    def expect(self, names: Iterable[str]) -> None:
        """Fetch these files, those of a zip that is far away, together."""
        stored = (self._members.get(self._below(name)) for name in names)
        infos = [each.info for each in stored if each is not None and each.info is not None]
        fetch_starts(self._archive, infos, self._archive.size)

    def file(self, name: str) -> File | None:
        path = self._below(name)
        if path not in self._members:
            return None
        parent = path.rpartition("/")[0]
        inside = _ArchiveFolder(self._archive, parent, self._members)
        return _Member(inside, path, self._members[path])

    def folder(self, name: str) -> Folder | None:
        path = self._below(name)
        if any(member.startswith(path + "/") for member in self._members):
            return _ArchiveFolder(self._archive, path, self._members)
        return None

    def parent(self) -> Folder | None:
        if not self._inside:
            return None
        return _ArchiveFolder(self._archive, self._inside.rpartition("/")[0], self._members)

    def modified(self, name: str) -> float:
        del name
        return 0.0

    def _below(self, name: str) -> str:
        return f"{self._inside}/{name}" if self._inside else name


def _zip_folder(file: File) -> Folder:
    stream = file.open()
    try:
        archive = zipfile.ZipFile(stream)
    except BaseException:
        stream.close()
        raise
    finalize(archive, stream.close)
    members: _Members = {}
    for info in archive.infolist():
        name = _inside(info.filename)
        if name and not info.is_dir():
            opener, in_place = _zip_opener(file, archive, info), partial(slice_of, file, info)
            members[name] = _Stored(info.file_size, opener, in_place, info)
            _refuse_many(file, members)
    return _ArchiveFolder(file, "", members)


def _zip_opener(
    file: File, archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> Callable[[], BinaryIO]:
    def open_() -> BinaryIO:
        # LZMA would take as much memory as the file asks for.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UnsupportedError(file.path, f"{info.filename} is not compressed by deflate")
        if (stored := slice_of(file, info)) is not None:
            return stored.open()
        file.prefetch([(info.header_offset, info.compress_size + _MEMBER_HEADER)])
        return _spool(file, archive.open(info), min(info.compress_size, file.size))

    return open_


def _tar_folder(file: File, stream: BinaryIO) -> Folder:
    try:
        archive = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115
    except BaseException:
        stream.close()
        raise
    finalize(archive, stream.close)
    members: _Members = {}
    # A sparse member can claim any size without having it.
    for number, info in enumerate(archive):
        # A negative size would lead back to where the walk has been.
        if info.size < 0 or number > _MAX_MEMBERS:
            raise DamagedError(file.path, "is a tar that leads nowhere")
        name = _inside(info.name)
        if name and info.isreg() and not info.issparse():
            members[name] = _Stored(info.size, _tar_opener(archive, info), lambda: None)
            _refuse_many(file, members)
    return _ArchiveFolder(file, "", members)


def _tar_opener(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], BinaryIO]:
    def open_() -> BinaryIO:
        return cast(BinaryIO, archive.extractfile(info))

    return open_


def _spool(file: File, stream: IO[bytes], compressed: int) -> BinaryIO:
    """All that a decompressing stream gives, in a temporary file."""
    limit = _MAX_RATIO * compressed + _CHUNK
    spool = tempfile.TemporaryFile()  # noqa: SIM115
    while chunk := stream.read(_CHUNK):
        spool.write(chunk)
        if spool.tell() > limit:
            spool.close()
            raise BnstatError(
                file.path,
                f"grows more than {_MAX_RATIO} times when it is decompressed",
                "unpack it yourself if you trust it",
            )
    spool.seek(0)
    return cast(BinaryIO, spool)


def _refuse_many(file: File, members: _Members) -> None:
    if len(members) > _MAX_MEMBERS:
        raise BnstatError(file.path, f"holds more than {_MAX_MEMBERS} files")


def _inside(name: str) -> str:
    """The member's name as a clean path; empty where it points out of the archive."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    return "" if ".." in parts else "/".join(parts)
