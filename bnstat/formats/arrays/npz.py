r"""NPZ, NumPy's archive of named arrays: a zip of `.npy` files.

    npy  "\x93NUMPY", major, minor version (1 byte each), length of the header (u16; u32 from
         version 2 on), the header: a Python literal of descr, fortran_order and shape; elements

Pickled objects are never read. Members are as a zip keeps them, stored or deflated; a deflated
one is inflated to no more than its header claims.

Sources: numpy/lib/format.py; APPNOTE.TXT 6.3.10, PKWARE.
"""

from __future__ import annotations

import ast
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.contents import Contents, Layer
from bnstat.formats.dtypes import dtype_of_descr
from bnstat.model import Array, Source, Variable
from bnstat.storage.archive import Slice, fetch_starts, packed_slice_of, zip_members
from bnstat.storage.files import File, Range

if TYPE_CHECKING:
    from zipfile import ZipInfo


_ENDING: Final = ".npy"
_ZIP_MEMBER: Final = b"PK\x03\x04"
_MAGIC: Final = b"\x93NUMPY"
_LONGEST_HEADER: Final = 10_000
"""Bytes of a header, as in NumPy, because longer ones take long to parse."""
HEADER_BYTES: Final = 12 + _LONGEST_HEADER
_LONG: Final = re.compile(r"(?<=\d)L\b")
_MOST_DIMS: Final = 32
_SHOWN: Final = 60
"""Characters that are shown of what a header contains."""
_USUAL_HEADER: Final = 256
"""Bytes that all but the strangest headers have, compressed or not."""

_MAX_RATIO: Final = 50
_BOMB_FLOOR: Final = 64 << 20
"""So many bytes are inflated, however few the member has; beyond that, `_MAX_RATIO` times those."""


def matches(file: File) -> bool:
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
    """The arrays of a file that `matches`, under their keys.

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
    if sum(info.compress_size for info in members) > file.size:
        raise DamagedError(file.path, "its members overlap", "save it again with numpy.savez")
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
    header = read_header(member.header(), member.packed.path)
    return Variable(
        key,
        key.removesuffix(":0"),
        header.descr if header.dtype is None else header.dtype.name,
        header.shape,
        partial(_read, member, header),
        member.extents,
    )


class Header(NamedTuple):
    """The header of a `.npy`.

    Attributes:
        start: offset of the first element.
        shape: the dimensions.
        order: which index varies fastest in the file, the last ("C") or the first ("F").
        descr: the element type as the file writes it.
        dtype: the element type; None where it is not numeric.
    """

    start: int
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    descr: str
    dtype: np.dtype[np.generic] | None


def read_header(head: bytes, where: str) -> Header:
    """Parse the header of a `.npy`.

    NumPy's own parser is not used, because it builds whatever dtype a header describes.

    Args:
        head: the first bytes of the file, `HEADER_BYTES` of them where there are so many.
        where: the array's name, for errors.

    Raises:
        DamagedError: the header is cut short, or contradicts itself.
        UnsupportedError: it is of a version of which nothing is known.
    """
    if not head.startswith(_MAGIC) or len(head) < 12:
        raise _damaged(where, "its first bytes are not those of one")
    version = head[6], head[7]
    if version not in ((1, 0), (2, 0)):
        raise UnsupportedError(where, f"is .npy of version {version[0]}.{version[1]}")
    width = 2 if version == (1, 0) else 4
    length, begin = int.from_bytes(head[8 : 8 + width], "little"), 8 + width
    if length > _LONGEST_HEADER:
        raise _damaged(where, f"its header takes {length} bytes")
    text = head[begin : begin + length].decode("latin1")
    fields = _literal(text, where)
    match fields:
        case {"descr": descr, "fortran_order": bool(is_fortran), "shape": tuple(shape)} if (
            len(text) == length and len(fields) == 3
        ):
            pass
        case _:
            raise _damaged(where, "its header does not describe an array")
    if len(shape) > _MOST_DIMS or not all(
        type(size) is int and 0 <= size < 1 << 63 for size in shape
    ):
        raise DamagedError(where, f"has a shape of {str(shape)[:_SHOWN]}")
    is_plain = isinstance(descr, str)
    return Header(
        begin + length,
        shape,
        "F" if is_fortran else "C",
        descr[:_SHOWN] if is_plain else "a structure",
        dtype_of_descr(descr) if is_plain else None,
    )


def _literal(text: str, where: str) -> Any:
    """Return the value of a Python literal. Integers of Python 2 may end in L."""
    try:
        try:
            return ast.literal_eval(text.strip())
        except SyntaxError:
            return ast.literal_eval(_LONG.sub("", text.strip()))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise _damaged(where, "its header is not a Python literal") from error


def _damaged(where: str, reason: str) -> DamagedError:
    return DamagedError(where, f"is not a valid .npy ({reason})", "copy or download it again")


def _read(member: _Member, header: Header) -> Array:
    """The array, in the machine's byte order.

    Raises:
        DamagedError: the member does not hold it.
        UnsupportedError: its elements are not numbers.
    """
    dtype = header.dtype
    if dtype is None:
        raise UnsupportedError(member.packed.path, f"holds {header.descr}, not numbers")
    count = math.prod(header.shape)
    if header.start + count * dtype.itemsize != member.size:
        raise DamagedError(
            member.packed.path, f"claims {count} elements, it has {member.size} bytes"
        )
    array = np.frombuffer(member.read(), dtype, offset=header.start)
    array = array.reshape(header.shape, order=header.order)
    return array.astype(dtype.newbyteorder("="), order="C", copy=False)
