r"""NPZ, NumPy's archive of named arrays: a zip of `.npy` files.

    npy  "\x93NUMPY", major, minor version (1 byte each), length of the header (u16; u32 from
         version 2 on), the header: a Python literal of descr, fortran_order and shape; elements

Pickled objects are never read. Members are as a zip keeps them, stored or deflated; a deflated
one is inflated to no more than its header claims.

Sources: numpy/lib/format.py; APPNOTE.TXT 6.3.10, PKWARE.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.contents import Contents, Layer
from bnstat.model import Array, Source, Variable
from bnstat.storage.files import File
from bnstat.storage.in_place import Slice, fetch_starts, packed_slice_of, zip_members
from bnstat.storage.ranges import Range

if TYPE_CHECKING:
    from zipfile import ZipInfo

_ENDING: Final = ".npy"
_ZIP_MEMBER: Final = b"PK\x03\x04"
_LONGEST_HEADER: Final = 10_000
"""Characters, as NumPy has it; longer ones take long to parse."""
_USUAL_HEADER: Final = 256
"""Bytes that all but the strangest headers have, compressed or not."""

_MAX_RATIO: Final = 50
_BOMB_FLOOR: Final = 64 << 20
"""So many bytes are inflated, however few the member has; beyond that, `_MAX_RATIO` times those."""


def recognises(file: File) -> bool:
    """Whether this is a zip of `.npy` files alone.

    Raises:
        DamagedError: it begins as one does, but is cut short.
    """
    head = file.head(30)
    if not head.startswith(_ZIP_MEMBER):
        return False
    name = file.head(30 + int.from_bytes(head[26:28], "little"))[30:]
    if not name.endswith(_ENDING.encode()):
        return False
    return all(info.filename.endswith(_ENDING) for info in _members(file))


def open_contents(file: File, source: Source) -> Contents:
    """The arrays of a file that `recognises`, under their keys.

    Raises:
        DamagedError: the archive contradicts itself.
        UnsupportedError: a member is encrypted, or compressed otherwise than by deflate.
    """
    variables = {}
    members = _members(file)
    fetch_starts(file, members, _USUAL_HEADER)
    for info in members:
        key = info.filename.removesuffix(_ENDING)
        variables[key] = _variable(key, _Member.of(file, info))
    return Contents(
        source=replace(source, format="npz"),
        variables=variables,
        names={key: variable.name for key, variable in variables.items()},
        layers=_layers(variables),
    )


def _members(file: File) -> Sequence[ZipInfo]:
    from zipfile import BadZipFile

    try:
        members = zip_members(file)
    except (BadZipFile, OSError, ValueError, NotImplementedError, LookupError) as error:
        raise DamagedError(
            file.path, f"is a truncated or damaged NPZ ({error})", "copy or download it again"
        ) from error
    return members


def _layers(variables: Mapping[str, Variable]) -> tuple[Layer, ...]:
    """The scopes of names with slashes, in stored order, which is that of whoever saved them."""
    scopes: dict[str, dict[str, str]] = {}
    for key, variable in variables.items():
        scope, slash, label = variable.name.rpartition("/")
        if slash and not label.isdecimal():
            scopes.setdefault(scope, {})[label] = key
    return tuple(Layer(scope, None, {}, labels, scope) for scope, labels in scopes.items())


@dataclass(frozen=True, slots=True)
class _Member:
    """A member of the zip.

    Attributes:
        packed: its bytes as they lie in the archive.
        deflated: whether they are compressed.
        size: how many they are without that.
        checksum: the CRC-32 of those.
    """

    packed: Slice
    deflated: bool
    size: int
    checksum: int

    @classmethod
    def of(cls, file: File, info: ZipInfo) -> _Member:
        from zipfile import ZIP_DEFLATED, ZIP_STORED

        packed = packed_slice_of(file, info)
        if packed is None or info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
            raise UnsupportedError(
                file.path,
                f"{info.filename} is encrypted, or not compressed by deflate",
                "save it again with numpy.savez",
            )
        return cls(packed, info.compress_type == ZIP_DEFLATED, info.file_size, info.CRC)

    def header(self) -> bytes:
        """The header, and perhaps more; what there is of one that is cut short."""
        head = self._head(_USUAL_HEADER)
        length = int.from_bytes(head[8:10] if head[6:7] == b"\1" else head[8:12], "little")
        return head if 12 + length <= len(head) else self._head(12 + min(length, _LONGEST_HEADER))

    def extents(self) -> Sequence[Range]:
        """Where the bytes lie; see `Variable.extents`."""
        place = self.packed.place(0, self.packed.size)
        return () if place is None else (place,)

    def _head(self, length: int) -> bytes:
        """The first bytes, at most so many."""
        data = self.packed.head(length)
        return self._inflated(data, length) if self.deflated else data

    def read(self) -> bytes:
        """All bytes, checked.

        Raises:
            DamagedError: they are not what the archive says, or grow out of all proportion.
        """
        if self.size > max(_BOMB_FLOOR, _MAX_RATIO * self.packed.size):
            raise DamagedError(
                self.packed.path, f"claims {self.size} bytes, of {self.packed.size} in the archive"
            )
        data = self.packed.read()
        if self.deflated:
            data = self._inflated(data, self.size)
        if len(data) != self.size or zlib.crc32(data) != self.checksum:
            raise DamagedError(
                self.packed.path, "does not have its checksum", "copy or download it again"
            )
        return data

    def _inflated(self, data: bytes, length: int) -> bytes:
        try:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, length) if length else b""
        except zlib.error as error:
            raise DamagedError(self.packed.path, f"cannot be inflated ({error})") from error


def _variable(key: str, member: _Member) -> Variable:
    start, shape, is_fortran, dtype = _header(member.header(), member.packed.path)
    return Variable(
        key,
        key.removesuffix(":0"),
        dtype.name if dtype.kind in "biufc" else dtype.str,
        shape,
        partial(_read, member, start, shape, is_fortran, dtype),
        member.extents,
    )


def _header(head: bytes, where: str) -> tuple[int, tuple[int, ...], bool, np.dtype[np.generic]]:
    """Where the elements begin, their shape, whether the first axis runs fastest, their type."""
    import warnings
    from tokenize import TokenError

    stream = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise UnsupportedError(where, f"is .npy of version {version[0]}.{version[1]}")
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        with warnings.catch_warnings():
            # NumPy also tries what it takes for a header of Python 2, and says so.
            warnings.simplefilter("ignore")
            shape, is_fortran, dtype = read(stream, max_header_size=_LONGEST_HEADER)
    except (ValueError, TypeError, SyntaxError, TokenError, MemoryError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise DamagedError(where, f"is no .npy ({reason})", "copy or download it again") from error
    if any(size < 0 for size in shape):
        raise DamagedError(where, f"has a shape of {shape}")
    return stream.tell(), shape, is_fortran, dtype


def _read(
    member: _Member,
    start: int,
    shape: tuple[int, ...],
    is_fortran: bool,
    dtype: np.dtype[np.generic],
) -> Array:
    """The array, in the machine's byte order.

    Raises:
        DamagedError: the member does not hold it.
        UnsupportedError: its elements are no numbers.
    """
    if dtype.kind not in "biufc":
        raise UnsupportedError(member.packed.path, f"holds {dtype.str}, not numbers")
    if start + math.prod(shape) * dtype.itemsize != member.size:
        raise DamagedError(
            member.packed.path, f"claims {math.prod(shape)} elements, it has {member.size} bytes"
        )
    array = np.frombuffer(member.read(), dtype, offset=start)
    array = array.reshape(shape, order="F" if is_fortran else "C")
    return array.astype(dtype.newbyteorder("="), order="C", copy=False)
