r"""NPZ, NumPy's archive of named arrays: a zip of `.npy` files.

    version 1  "\x93NUMPY", 1, 0 (u8 each), length of the header (u16), header, elements
    version 2  "\x93NUMPY", 2, 0 (u8 each), length of the header (u32), header, elements
    header     a Python literal: a dict with the keys descr, fortran_order and shape

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
from typing import Final, Literal
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipInfo

import numpy as np

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.contents import Contents, Layer
from bnstat.formats.detection import first_in_zip
from bnstat.formats.dtypes import as_shape, dtype_of_descr, extents
from bnstat.model import Array, Source, Variable
from bnstat.storage.archive import fetch_starts, packed_slice_of, zip_members
from bnstat.storage.files import File, Range

_ENDING: Final = ".npy"
_MAGIC: Final = b"\x93NUMPY"
_LONGEST_HEADER: Final = 10_000
"""Bytes of a header, as in NumPy, because longer ones take long to parse."""
_LONG: Final = re.compile(r"(?<=\d)L\b")
_SHOWN: Final = 60
_USUAL_HEADER: Final = 256
"""Bytes that nearly every header fits into, compressed or not."""
_SAVE: Final = "save it again with numpy.savez"
_OF_CHAINER: Final = re.compile(r"(^|/)avg_mean$")

_MAX_RATIO: Final = 50
_BOMB_FLOOR: Final = 64 << 20
"""A member may be inflated to this many bytes, or to `_MAX_RATIO` times its compressed bytes."""


def matches(file: File) -> bool:
    """Return True for a zip that contains only `.npy` files."""
    first = first_in_zip(file)
    if first is None or not first.endswith(_ENDING.encode()):
        return False
    return all(info.filename.endswith(_ENDING) for info in members(file))


def open_contents(file: File, source: Source) -> Contents:
    """Return the arrays, keyed by their members' names without `.npy`."""
    variables: dict[str, Variable] = {}
    infos = members(file)
    fetch_starts(file, infos, _USUAL_HEADER)
    for info in infos:
        key = info.filename.removesuffix(_ENDING)
        if key in variables:
            raise DamagedError(file.path, f"contains {info.filename} twice")
        npy = _Npy(file, info)
        dtype = npy.descr if npy.dtype is None else npy.dtype.name
        name = key.removesuffix(":0")
        variables[key] = Variable(key, name, dtype, npy.shape, npy.read, npy.extents)
    scopes: dict[str, dict[str, str]] = {}
    names = [variable.name for variable in variables.values()]
    for key, name in zip(variables, names, strict=True):
        scope, slash, label = name.rpartition("/")
        if slash and not label.isdecimal():
            scopes.setdefault(scope, {})[label] = key
    return Contents(
        source=replace(source, format="npz"),
        variables=variables,
        names=dict(zip(variables, names, strict=True)),
        layers=tuple(Layer(scope, None, {}, labels, scope) for scope, labels in scopes.items()),
        layers_in_order=_are_in_network_order(names),
    )


def _are_in_network_order(names: Sequence[str]) -> bool:
    """Return True if the arrays with these names are stored in the order of the layers.

    Chainer keeps layers in a set, whose order is arbitrary, and names statistics `avg_mean`. Before
    Python 3.6, `numpy.savez` stored all arrays in an arbitrary order. The order of the layers'
    first arrays then differs from the order of their last arrays. Other programs sort by name.
    """
    scopes = [name.rpartition("/")[0] for name in names]
    by_first = list(dict.fromkeys(scopes))
    by_last = list(dict.fromkeys(reversed(scopes)))[::-1]
    is_sorted = list(names) == sorted(names)
    return by_first == by_last and not is_sorted and not any(map(_OF_CHAINER.search, names))


def members(file: File) -> Sequence[ZipInfo]:
    """Return the entries of the zip's table of contents."""
    try:
        infos = zip_members(file)
    except (BadZipFile, OSError, ValueError, NotImplementedError, LookupError) as error:
        reason = f"is a truncated or damaged NPZ ({error})"
        raise DamagedError(file.path, reason, "copy or download it again") from error
    if sum(info.compress_size for info in infos) > file.size:
        raise DamagedError(file.path, "the members of the zip overlap", _SAVE)
    return infos


class _Npy:
    """A `.npy` in a zip: `descr` is the stored type; `dtype` is None if the type is not numeric."""

    def __init__(self, file: File, info: ZipInfo) -> None:
        """Read the header without NumPy's parser, which would build any dtype in a header."""
        packed = packed_slice_of(file, info)
        if packed is None or info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
            reason = f"{info.filename} is encrypted, or its compression is not deflate"
            raise UnsupportedError(file.path, reason, _SAVE)
        self.path = packed.path
        self._packed, self._info = packed, info
        head = self._head(_USUAL_HEADER)
        if not head.startswith(_MAGIC) or len(head) < 12:
            raise self._damaged("it has no .npy signature")
        begin = {b"\1\0": 10, b"\2\0": 12}.get(head[6:8])
        if begin is None:
            raise UnsupportedError(self.path, f"has the unknown .npy version {head[6]}.{head[7]}")
        length = int.from_bytes(head[8:begin], "little")
        if length > _LONGEST_HEADER:
            raise self._damaged(f"its header takes {length} bytes")
        self._start = begin + length
        if self._start > len(head):
            head = self._head(self._start)
        text = head[begin : self._start].decode("latin1")
        try:
            # Integers of Python 2 may end in L.
            fields = ast.literal_eval(_LONG.sub("", text.strip()))
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
            raise self._damaged("its header is not a Python literal") from error
        match fields:
            case {"descr": descr, "fortran_order": bool(is_fortran), "shape": tuple(shape)} if (
                len(text) == length and len(fields) == 3 and as_shape(shape) is not None
            ):
                self.shape = shape
            case _:
                raise self._damaged("its header does not describe an array")
        self._order: Literal["C", "F"] = "F" if is_fortran else "C"
        is_plain = isinstance(descr, str)
        self.descr = descr[:_SHOWN] if is_plain else "a structure"
        self.dtype = dtype_of_descr(descr) if is_plain else None

    def extents(self) -> Sequence[Range]:
        return extents(self._packed, 0, self._packed.size, None, self.shape)

    def read(self) -> Array:
        size, packed_size = self._info.file_size, self._packed.size
        if self.dtype is None:
            raise UnsupportedError(self.path, f"holds {self.descr}, not numbers")
        count = math.prod(self.shape)
        if self._start + count * self.dtype.itemsize != size:
            raise DamagedError(self.path, f"claims {count} elements, but has {size} bytes")
        if size > max(_BOMB_FLOOR, _MAX_RATIO * packed_size):
            raise DamagedError(self.path, f"claims to inflate from {packed_size} to {size} bytes")
        data = self._inflated(self._packed.read(), size)
        if len(data) != size or zlib.crc32(data) != self._info.CRC:
            raise self._damaged("it does not match its checksum")
        array = np.frombuffer(data, self.dtype, offset=self._start)
        array = array.reshape(self.shape, order=self._order)
        return array.astype(self.dtype.newbyteorder("="), order="C", copy=False)

    def _head(self, length: int) -> bytes:
        return self._inflated(self._packed.head(length), length)

    def _inflated(self, data: bytes, length: int) -> bytes:
        if self._info.compress_type == ZIP_STORED:
            return data
        try:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, length) if length else b""
        except zlib.error as error:
            raise DamagedError(self.path, f"cannot be inflated ({error})") from error

    def _damaged(self, reason: str) -> DamagedError:
        what = f"is not a valid .npy ({reason})"
        return DamagedError(self.path, what, "copy or download it again")
