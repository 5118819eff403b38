r"""NPZ, NumPy's archive of named arrays: a zip of `.npy` files.

    npy  "\x93NUMPY", major, minor version (1 byte each), length of the header (u16; u32 from
         version 2 on), the header: a Python literal of descr, fortran_order and shape; elements

Pickled objects are never read. A compressed member is inflated to no more than its header claims.

Sources: numpy/lib/format.py; APPNOTE.TXT 6.3.10, PKWARE.
"""

from __future__ import annotations

import ast
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.contents import Contents, Layer
from bnstat.formats.dtypes import as_shape, dtype_of_descr
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
_LONG: Final = re.compile(r"(?<=\d)L\b")
_SHOWN: Final = 60
"""Characters of a header that a message quotes."""
_USUAL_HEADER: Final = 256
"""Bytes that nearly every header fits into, compressed or not."""

_MAX_RATIO: Final = 50
_BOMB_FLOOR: Final = 64 << 20
"""Bytes that a member may always be inflated to; beyond that, `_MAX_RATIO` times its own bytes."""


def matches(file: File) -> bool:
    """Return True for a zip of `.npy` files alone.

    Raises:
        DamagedError: the first member is a `.npy` file, but the zip is damaged.
    """
    head = file.head(30)
    if not head.startswith(_ZIP_MEMBER):
        return False
    name = file.head(30 + int.from_bytes(head[26:28], "little"))[30:]
    if not name.endswith(_ENDING.encode()):
        return False
    return all(info.filename.endswith(_ENDING) for info in members(file))


def open_contents(file: File, source: Source) -> Contents:
    """Return the arrays under their keys.

    Raises:
        DamagedError: the archive is inconsistent.
        UnsupportedError: a member is encrypted, or compressed by another method than deflate.
    """
    variables: dict[str, Variable] = {}
    infos = members(file)
    fetch_starts(file, infos, _USUAL_HEADER)
    for info in infos:
        key = info.filename.removesuffix(_ENDING)
        if key in variables:
            raise DamagedError(file.path, f"contains {info.filename} twice")
        variables[key] = _variable(key, _Member.of(file, info))
    # Scopes keep the order of the file, because that is the order of saving.
    scopes: dict[str, dict[str, str]] = {}
    for key, variable in variables.items():
        scope, slash, label = variable.name.rpartition("/")
        if slash and not label.isdecimal():
            scopes.setdefault(scope, {})[label] = key
    return Contents(
        source=replace(source, format="npz"),
        variables=variables,
        names={key: variable.name for key, variable in variables.items()},
        layers=tuple(Layer(scope, None, {}, labels, scope) for scope, labels in scopes.items()),
    )


def members(file: File) -> Sequence[ZipInfo]:
    """Return the entries of the zip's table of contents.

    Raises:
        DamagedError: the table is damaged, or its members overlap.
    """
    from zipfile import BadZipFile

    try:
        infos = zip_members(file)
    except (BadZipFile, OSError, ValueError, NotImplementedError, LookupError) as error:
        raise DamagedError(
            file.path, f"is a truncated or damaged NPZ ({error})", "copy or download it again"
        ) from error
    if sum(info.compress_size for info in infos) > file.size:
        raise DamagedError(file.path, "its members overlap", "save it again with numpy.savez")
    return infos


class _Member(NamedTuple):
    """A member of the zip.

    Attributes:
        packed: the bytes that the archive stores.
        is_deflated: True if they are compressed.
        size: the number of bytes after decompression.
        checksum: the CRC-32 of the decompressed bytes.
    """

    packed: Slice
    is_deflated: bool
    size: int
    checksum: int

    @classmethod
    def of(cls, file: File, info: ZipInfo) -> _Member:
        from zipfile import ZIP_DEFLATED, ZIP_STORED

        packed = packed_slice_of(file, info)
        if packed is None or info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
            raise UnsupportedError(
                file.path,
                f"{info.filename} is encrypted, or compressed by another method than deflate",
                "save it again with numpy.savez",
            )
        return cls(packed, info.compress_type == ZIP_DEFLATED, info.file_size, info.CRC)

    def extents(self) -> Sequence[Range]:
        place = self.packed.place(0, self.packed.size)
        return () if place is None else (place,)

    def head(self) -> bytes:
        """Return at least the header, as far as the member has it."""
        head = self._start(_USUAL_HEADER)
        length = int.from_bytes(head[8:10] if head[6:7] == b"\1" else head[8:12], "little")
        return head if 12 + length <= len(head) else self._start(12 + min(length, _LONGEST_HEADER))

    def _start(self, length: int) -> bytes:
        data = self.packed.head(length)
        return self._inflated(data, length) if self.is_deflated else data

    def read(self) -> bytes:
        """Return the decompressed bytes.

        Raises:
            DamagedError: they do not have their checksum, or claim an implausible size.
        """
        path = self.packed.path
        if self.size > max(_BOMB_FLOOR, _MAX_RATIO * self.packed.size):
            raise DamagedError(path, f"claims {self.size} bytes, but stores {self.packed.size}")
        data = self.packed.read()
        if self.is_deflated:
            data = self._inflated(data, self.size)
        if len(data) != self.size or zlib.crc32(data) != self.checksum:
            raise DamagedError(path, "does not match its checksum", "copy or download it again")
        return data

    def _inflated(self, data: bytes, length: int) -> bytes:
        try:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, length) if length else b""
        except zlib.error as error:
            raise DamagedError(self.packed.path, f"cannot be inflated ({error})") from error


def _variable(key: str, member: _Member) -> Variable:
    header = _header(member.head(), member.packed.path)
    return Variable(
        key,
        key.removesuffix(":0"),
        header.descr if header.dtype is None else header.dtype.name,
        header.shape,
        partial(_read, member, header),
        member.extents,
    )


class _Header(NamedTuple):
    """The header of a `.npy`.

    Attributes:
        start: offset of the first element.
        shape: the dimensions.
        order: "C" if the last index varies fastest in the file, "F" if the first does.
        descr: the element type as the file writes it.
        dtype: the element type; None if it is not numeric.
    """

    start: int
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    descr: str
    dtype: np.dtype[np.generic] | None


def _header(head: bytes, where: str) -> _Header:
    """Parse the header of a `.npy`; `where` names the array.

    NumPy's own parser is not used, because it builds whatever dtype a header describes.
    """
    if not head.startswith(_MAGIC) or len(head) < 12:
        raise _damaged(where, "it has no .npy signature")
    version = head[6], head[7]
    if version not in ((1, 0), (2, 0)):
        raise UnsupportedError(where, f"has the unknown .npy version {version[0]}.{version[1]}")
    begin = 10 if version == (1, 0) else 12
    length = int.from_bytes(head[8:begin], "little")
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
    if as_shape(shape) is None:
        raise DamagedError(where, f"has an invalid shape: {str(shape)[:_SHOWN]}")
    is_plain = isinstance(descr, str)
    return _Header(
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


def _read(member: _Member, header: _Header) -> Array:
    path, dtype = member.packed.path, header.dtype
    if dtype is None:
        raise UnsupportedError(path, f"holds {header.descr}, not numbers")
    count = math.prod(header.shape)
    if header.start + count * dtype.itemsize != member.size:
        raise DamagedError(path, f"claims {count} elements, but has {member.size} bytes")
    array = np.frombuffer(member.read(), dtype, offset=header.start)
    array = array.reshape(header.shape, order=header.order)
    return array.astype(dtype.newbyteorder("="), order="C", copy=False)
