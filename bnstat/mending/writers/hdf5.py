"""Write datasets of HDF5 files, alone or in a `.keras` archive.

A contiguous dataset is replaced in place. Other datasets are written by h5py, which applies the
dataset's compression and checksums. h5py opens only files that bnstat's reader has found valid.

If values are in a compressed member of a zip, the zip is written again with the same members.

Layout of a zip (APPNOTE.TXT 6.3.10, 4.3.7 to 4.3.16 and 4.5.3, PKWARE):

    local header    signature, version, flags, method, time, checksum (+14), sizes,
                    lengths of name and extra (+26, +28), name, extra
    descriptor      [signature,] checksum, sizes: after the data, if bit 3 of the flags is set
    entry of the    signature, versions, flags, method, time, checksum (+16), sizes,
    directory       lengths of name, extra and comment (+28), ...
"""

from __future__ import annotations

import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, BinaryIO, Final

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
    left = {key: arrays[key] for key in others}
    path = contents.source.path
    if os.path.isdir(path):
        paths = [entry.path for entry in os.scandir(path) if entry.is_file()]
    else:
        shards = shard_names(LocalFile(path))[1]
        paths = [os.path.join(os.path.dirname(path), name) for name in shards] or [path]
    for each in paths:
        _write_into(each, left)
    _refuse(left)


def _write_into(path: str, left: dict[str, Array]) -> None:
    """Write each array in `left` whose key is a dataset of the file, and remove it from `left`."""
    file = LocalFile(path)
    keys = Hdf5(file).variables.keys() & left.keys() if left and is_hdf5(file) else set()
    if not keys:
        return
    import h5py

    try:
        with h5py.File(path, "r+") as opened:
            for key in keys:
                dataset: Any = opened[key]
                array = left.pop(key)
                # HDF5 has no bfloat16; it is stored as opaque pairs of bytes.
                dataset[...] = array.view(dataset.dtype) if dataset.dtype.kind == "V" else array
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = first_line(error)
        raise BnstatError(path, f"h5py cannot write the new values ({reason})") from error


def _refuse(left: Mapping[str, Array]) -> None:
    if left:
        raise UnsupportedError(next(iter(left)), "is a dataset that bnstat cannot write")


_HEADER: Final = 30
_ENTRY: Final = 46
_DESCRIPTOR: Final = b"PK\x07\x08"
_HAS_DESCRIPTOR: Final = 8
_PIECE: Final = 1 << 20


def renew_checksums(path: str, offsets: Sequence[int]) -> None:
    """Update the checksum of each uncompressed zip member that contains one of the byte offsets."""
    with zipfile.ZipFile(path) as archive:
        members, entry = archive.infolist(), archive.start_dir
    with open(path, "r+b") as file:
        for member in members:
            header = member.header_offset
            start = header + _HEADER + sum(struct.unpack("<2H", _read(file, header + 26, 4)))
            end = start + member.compress_size
            if any(start <= offset < end for offset in offsets):
                file.seek(start)
                checksum = 0
                for place in range(start, end, _PIECE):
                    checksum = zlib.crc32(file.read(min(_PIECE, end - place)), checksum)
                local = header + 14
                if member.flag_bits & _HAS_DESCRIPTOR:
                    local = end + 4 if _read(file, end, 4) == _DESCRIPTOR else end
                for place in (local, entry + 16):
                    file.seek(place)
                    file.write(checksum.to_bytes(4, "little"))
            entry += _ENTRY + sum(struct.unpack("<3H", _read(file, entry + 28, 6)))


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    data = file.read(length)
    if len(data) < length:
        raise DamagedError(file.name, "is a zip whose directory does not match its members")
    return data


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
    """Write the zip again, with new values in the members that contain the arrays."""
    left = dict(arrays)
    temporary, member = path + ".anew", path + ".member"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(temporary, "x") as new:
        new.comment = old.comment
        for info in old.infolist():
            with old.open(info) as packed, open(member, "wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, _PIECE)
            if info.filename.endswith(".h5"):
                _write_into(member, left)
            with open(member, "rb") as unpacked, new.open(copy(info), "w") as packed:
                shutil.copyfileobj(unpacked, packed, _PIECE)
    os.unlink(member)
    os.replace(temporary, path)
    _refuse(left)
