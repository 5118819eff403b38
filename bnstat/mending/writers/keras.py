"""Write datasets of HDF5 files, alone or in a `.keras` archive.

A contiguous dataset is replaced in place. Other datasets are written by h5py, which compresses
and checksums as the dataset specifies. h5py opens only files that bnstat's reader has found valid.

If a compressed member of a zip changes, the zip is written again; the other members keep their
bytes, headers and dates.

    local header    signature, version, flags (+6), method, time, checksum (+14), sizes (+18, +22),
                    lengths of name and extra (+26, +28), name, extra
    entry of the    signature, versions, flags (+8), method, time, checksum (+16), sizes (+20, +24),
    directory       lengths of name, extra and comment (+28), ..., local header's offset (+42)
    end             signature, ..., directory's offset (+16)
    extra 1         sizes of 8 bytes each, where those of 4 are all ones
    descriptor      [signature,] checksum, sizes: after the data, if bit 3 of the flags is set

Source: APPNOTE.TXT 6.3.10, 4.3.7 to 4.3.16 and 4.5.3, PKWARE.
"""

from __future__ import annotations

import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Final, NamedTuple

from bnstat.errors import BnstatError, DamagedError, UnsupportedError, first_line
from bnstat.formats.contents import Contents
from bnstat.formats.hdf5.file import Hdf5, is_hdf5
from bnstat.formats.keras.weights import shard_names
from bnstat.mending.writers import patch
from bnstat.model import Array
from bnstat.storage.local import LocalFile


def write_hdf5(contents: Contents, arrays: Mapping[str, Array]) -> None:
    """Write datasets; see `write_arrays`."""
    _, others = patch(contents, arrays)
    write_by_library(_files(contents.source.path), {key: arrays[key] for key in others})


def write_by_library(paths: Iterable[str], arrays: Mapping[str, Array]) -> None:
    """Write datasets with h5py, each into the file that contains it.

    Raises:
        UnsupportedError: no file contains a dataset.
        BnstatError: h5py cannot write.
    """
    left = dict(arrays)
    for path in paths:
        file = LocalFile(path)
        if not left or not is_hdf5(file):
            continue
        if keys := Hdf5(file).variables.keys() & left.keys():
            _write(path, {key: left.pop(key) for key in keys})
    if left:
        raise UnsupportedError(next(iter(left)), "cannot be written")


def _write(path: str, arrays: Mapping[str, Array]) -> None:
    import h5py

    try:
        with h5py.File(path, "r+") as file:
            for key, array in arrays.items():
                dataset: Any = file[key]
                # HDF5 has no bfloat16; it is stored as opaque pairs of bytes.
                raw = array.view(dataset.dtype) if dataset.dtype.kind == "V" else array
                dataset[...] = raw
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise BnstatError(path, f"HDF5 cannot write it ({first_line(error)})") from error


def _files(path: str) -> list[str]:
    """Return the files that may contain the datasets of a copy."""
    if os.path.isdir(path):
        return [entry.path for entry in os.scandir(path) if entry.is_file()]
    folder = os.path.dirname(path)
    return [os.path.join(folder, name) for name in shard_names(LocalFile(path))[1]] or [path]


_HEADER: Final = 30
_ENTRY: Final = 46
_END: Final = b"PK\x05\x06"
_DESCRIPTOR: Final = b"PK\x07\x08"
_DESCRIBED: Final = 8
_MOST: Final = 0xFFFFFFFF
_PIECE: Final = 1 << 20


class _Member(NamedTuple):
    """The offsets of a member's local header, data, and entry in the directory."""

    info: zipfile.ZipInfo
    header: int
    start: int
    end: int
    entry: int


def renew_checksums(path: str, offsets: Sequence[int]) -> None:
    """Update the checksums of members whose data has changed.

    Args:
        path: the zip.
        offsets: the offsets of changed bytes, in any stored members.
    """
    with open(path, "r+b") as file:
        for member in _members(path, file):
            if not any(member.start <= offset < member.end for offset in offsets):
                continue
            checksum, left = 0, member.end - member.start
            file.seek(member.start)
            while left:
                piece = file.read(min(_PIECE, left))
                checksum = zlib.crc32(piece, checksum)
                left -= len(piece)
            packed = checksum.to_bytes(4, "little")
            _put(file, member.entry + 16, packed)
            if not member.info.flag_bits & _DESCRIBED:
                _put(file, member.header + 14, packed)
                continue
            file.seek(member.end)
            signed = file.read(4) == _DESCRIPTOR
            _put(file, member.end + (4 if signed else 0), packed)


def replace(path: str, name: str, content: str) -> None:
    """Replace a member by the content of a file, with the member's compression.

    Raises:
        UnsupportedError: the archive is larger than 4 GiB.
    """
    temporary = path + ".anew"
    with open(path, "rb") as file, open(temporary, "xb") as out:
        members = list(_members(path, file))
        member = next(other for other in members if other.info.filename == name)
        after = [other.header for other in members if other.header > member.header]
        directory = members[0].entry
        file.seek(0)
        _copy(file, out, member.header)
        out.write(bytes(member.start - member.header))
        new = _pack(content, member.info.compress_type, out)
        _put(out, member.header, _local_header(file, member, new))
        out.seek(0, os.SEEK_END)
        resume = min([*after, directory])
        moved = out.tell() - resume
        file.seek(resume)
        _copy(file, out, directory - resume)
        for other in members:
            out.write(_entry(file, other, member, moved, new))
        _raw_entry(file, members[-1].entry)
        end = bytearray(file.read())
        at = end.rfind(_END)
        offset = int.from_bytes(end[at + 16 : at + 20], "little")
        if at != 0 or offset == _MOST or offset + moved >= _MOST:
            raise UnsupportedError(path, "is a zip of 4 GiB or more, which bnstat does not write")
        end[16:20] = (offset + moved).to_bytes(4, "little")
        out.write(end)
    os.replace(temporary, path)


def _members(path: str, file: BinaryIO) -> Iterator[_Member]:
    """Yield all members in the order of the directory."""
    with zipfile.ZipFile(path) as archive:
        infos, at = archive.infolist(), archive.start_dir
    for info in infos:
        file.seek(info.header_offset)
        header = file.read(_HEADER)
        entry = _raw_entry(file, at)
        if len(header) < _HEADER or entry[:4] != b"PK\x01\x02":
            raise DamagedError(path, "is a zip whose directory does not match its members")
        name_length, extra_length = struct.unpack_from("<2H", header, 26)
        start = info.header_offset + _HEADER + name_length + extra_length
        yield _Member(info, info.header_offset, start, start + info.compress_size, at)
        at += len(entry)


def _raw_entry(file: BinaryIO, at: int) -> bytes:
    file.seek(at)
    fixed = file.read(_ENTRY)
    if len(fixed) < _ENTRY:
        return fixed
    return fixed + file.read(sum(struct.unpack_from("<3H", fixed, 28)))


def _pack(content: str, method: int, out: BinaryIO) -> tuple[int, int, int]:
    """Write the content of a file as a member's data.

    Returns:
        The checksum and the size of the content, and the size of the data.
    """
    begin, checksum, size = out.tell(), 0, 0
    packer = zlib.compressobj(wbits=-15) if method == zipfile.ZIP_DEFLATED else None
    with open(content, "rb") as file:
        while piece := file.read(_PIECE):
            checksum, size = zlib.crc32(piece, checksum), size + len(piece)
            out.write(packer.compress(piece) if packer else piece)
    out.write(packer.flush() if packer else b"")
    return checksum, size, out.tell() - begin


def _local_header(file: BinaryIO, member: _Member, new: tuple[int, int, int]) -> bytes:
    checksum, size, packed = new
    file.seek(member.header)
    header = bytearray(file.read(member.start - member.header))
    struct.pack_into("<H", header, 6, member.info.flag_bits & ~_DESCRIBED)
    struct.pack_into("<I", header, 14, checksum)
    name_length = struct.unpack_from("<H", header, 26)[0]
    at = _HEADER + name_length
    while at + 4 <= len(header):
        kind, length = struct.unpack_from("<2H", header, at)
        if kind == 1 and length >= 16:
            struct.pack_into("<2Q", header, at + 4, size, packed)
            struct.pack_into("<2I", header, 18, _MOST, _MOST)
            return bytes(header)
        at += 4 + length
    _refuse_large(file, size, packed)
    struct.pack_into("<2I", header, 18, packed, size)
    return bytes(header)


def _entry(
    file: BinaryIO, other: _Member, member: _Member, moved: int, new: tuple[int, int, int]
) -> bytes:
    """Return the directory entry of the replaced member, or of another that may have moved."""
    entry = bytearray(_raw_entry(file, other.entry))
    offset = struct.unpack_from("<I", entry, 42)[0]
    _refuse_large(file, offset, offset + moved)
    if other.entry == member.entry:
        checksum, size, packed = new
        _refuse_large(file, packed, size)
        struct.pack_into("<H", entry, 8, other.info.flag_bits & ~_DESCRIBED)
        struct.pack_into("<3I", entry, 16, checksum, packed, size)
    elif other.header > member.header:
        struct.pack_into("<I", entry, 42, offset + moved)
    return bytes(entry)


def _refuse_large(file: BinaryIO, *sizes: int) -> None:
    if max(sizes) >= _MOST:
        raise UnsupportedError(file.name, "is a zip of 4 GiB or more, which bnstat does not write")


def _copy(file: BinaryIO, out: BinaryIO, length: int) -> None:
    while length:
        piece = file.read(min(_PIECE, length))
        if not piece:
            return
        out.write(piece)
        length -= len(piece)


def _put(file: BinaryIO, offset: int, data: bytes) -> None:
    file.seek(offset)
    file.write(data)


def write_keras_archive(contents: Contents, arrays: Mapping[str, Array]) -> None:
    """Write variables; see `write_arrays`."""
    path = contents.source.path
    if os.path.isdir(path):
        if contents.source.checkpoint is None:
            write_hdf5(contents, arrays)
            return
        path = os.path.join(path, contents.source.checkpoint)
    done, others = patch(contents, arrays)
    renew_checksums(path, [place.offset for place in done])
    if others:
        _write_members(path, {key: arrays[key] for key in others})


def _write_members(path: str, arrays: Mapping[str, Array]) -> None:
    """Extract the members that contain the arrays, write into them, and put them back."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".h5")]
    left = dict(arrays)
    member = path + ".member"
    for name in names:
        with (
            zipfile.ZipFile(path) as archive,
            archive.open(name) as packed,
            open(member, "wb") as unpacked,
        ):
            shutil.copyfileobj(packed, unpacked, 1 << 20)
        if is_hdf5(file := LocalFile(member)) and (
            keys := Hdf5(file).variables.keys() & left.keys()
        ):
            write_by_library([member], {key: left.pop(key) for key in keys})
            replace(path, name, member)
        os.unlink(member)
    write_by_library([], left)
