"""The arrays of HDF5 datasets: the ranges of the bytes, and reading.

Messages of a dataset's header. Parentheses give the size of a field. Other fields are one byte, or
are addresses and lengths of the sizes that the superblock specifies:

    datatype           class and version, flags (3 bytes), size (u32), properties
    layout v1, v2      version, rank, class, 5 unused, then by class:
      0, in header     the shape (u32 each), size (u32), the elements
      1, contiguous    address of the elements, the shape (u32 each)
      2, chunked       address of a chunk tree, a chunk's shape and an element's size (u32 each)
    layout v3, v4      version, class, then by class:
      0, in header     size (u16), the elements
      1, contiguous    address and size of the elements
      2, chunked (v3)  rank + 1, address of a chunk tree, a chunk's shape and an element's size
                       (u32 each)
      2, chunked (v4)  only HDF5's library reads it
      3, virtual       parts of other datasets; never read
    fill, old          size (u32), the value
    fill v1, v2        version, 2 skipped, 1 if a value is defined, size (u32), the value
    fill v3            version, flags (0x20: a value is defined), size (u32), the value

A node of a chunk tree:

    node               "TREE", type 1, level, number of entries (u16), addresses of the two sibling
                       nodes, then the entries
    entry              a chunk's stored size (u32), mask of skipped filters (u32), coordinates of
                       the chunk's first element (rank + 1 numbers, u64 each), address of the chunk
                       or of a node of the level below

This module reads contiguous arrays, as Keras stores them. HDF5's own library reads chunked arrays,
arrays in a header, and arrays that were never written, whose elements are the fill value. Damaged
files can make the library crash or allocate without a bound. The library therefore opens only a
minimal file, `_OneDataset`: the bytes of the original, but with new headers of checked messages.

Source: HDF5 File Format Specification 3.0, sections II.A, III.A.1 and IV.A.2.d to f, i and l.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from bnstat.errors import DamagedError, UnsupportedError, first_line
from bnstat.formats.dtypes import as_shape, find_dtype
from bnstat.formats.hdf5.headers import SIGNATURE, Cursor, Kind, Message, Objects
from bnstat.model import Array
from bnstat.storage.files import File, Range

_INTEGER, _FLOAT, _OPAQUE, _ENUMERATION = 0, 1, 5, 8
_NOT_NUMERIC: Final = {
    2: "time",
    3: "text",
    4: "bits",
    6: "compound",
    7: "reference",
    9: "variable",
}
_FLOATS: Final = {
    (2, 5, 10): "float16",
    (2, 8, 7): "bfloat16",
    (4, 8, 23): "float32",
    (8, 11, 52): "float64",
}
"""Size, bits of the exponent, bits of the mantissa -> name."""

_COMPACT, _CONTIGUOUS, _CHUNKED, _VIRTUAL = range(4)

_LIBRARY_ERRORS: Final = (OSError, KeyError, RuntimeError, TypeError, ValueError, MemoryError)
_LARGEST_CHUNK: Final = 64 << 20
_CHUNK_RATIO: Final = 50
"""A chunk may have `_LARGEST_CHUNK` bytes or this many times the file's size."""


def _inflated(packed: bytes, limit: int) -> int:
    """Return the length of data that zlib decompresses, or `limit` if it is longer."""
    return len(zlib.decompressobj().decompress(packed, limit))


def _expanded(packed: bytes, limit: int) -> int:
    """Return the length of data that LZF decompresses, or more than `limit` if it is longer.

    A byte below 32 precedes 1 to 32 bytes of data. Any other byte begins a reference to earlier
    data: 3 bits of the length, 13 bits of the distance, with 8 more bits of a length of 7 between.
    Source: https://github.com/h5py/h5py, lzf/lzf/lzf_d.c.
    """
    at = length = 0
    while at < len(packed) and length <= limit:
        code = packed[at]
        if code < 1 << 5:
            length += code + 1
            at += code + 2
        else:
            is_long = code >> 5 == 7
            length += (code >> 5) + 2 + (packed[at + 1] if is_long and at + 1 < len(packed) else 0)
            at += 2 + is_long
    return length


_CHECKSUM: Final = 3
_CHECKSUM_SIZE: Final = 4
_COMPRESSIONS: Final = {1: _inflated, 32000: _expanded}
_FILTERS: Final = {_CHECKSUM, *_COMPRESSIONS, 2}
"""HDF5's numbers of the filters Fletcher32, gzip, LZF and shuffle, which h5py and Keras use.

The library crashes if the parameters or data of other filters, such as szip, are damaged.
"""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset as its header describes it.

    Attributes:
        dtype: the NumPy or ml_dtypes name, or a word such as `text` if not numeric.
        order: the byte order in the file, `<` or `>`.
        messages: type -> message in the dataset's header.
    """

    objects: Objects
    path: str
    dtype: str
    order: Literal["<", ">"]
    shape: tuple[int, ...]
    messages: Mapping[int, Message]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def read(self) -> Array:
        """Read the array in the machine's byte order."""
        dtype = self._stored_dtype()
        if dtype is None:
            what = f"{self.path} contains {self.dtype}, not numbers"
            raise UnsupportedError(self.objects.file.path, what)
        layout = self._layout()
        if Kind.EXTERNAL in self.messages or layout.kind > _CHUNKED:
            raise self.objects.unread(f"{self.path} refers to data outside of the file")
        if as_shape(self.shape) is None:
            raise self._damage(f"claims the impossible shape {self.shape}")
        size = self.count * dtype.itemsize
        if size == 0:
            data = b""
        elif layout.kind == _CONTIGUOUS and layout.address is not None:
            length = size if layout.length is None else min(size, layout.length)
            data = self.objects.file.read(layout.address, length)
        else:
            data = self._read_by_library(layout, dtype.itemsize)
        if len(data) < size:
            raise self._damage(f"claims {size} bytes, but has {len(data)}")
        array: Array = np.frombuffer(data[:size], dtype).reshape(self.shape)
        return array.astype(dtype.newbyteorder("="), copy=False)

    def extents(self) -> list[Range]:
        """Return the ranges of the file that contain the elements, one per chunk if chunked.

        The list is empty if the elements are not numeric or not stored, or lie in a header or in
        another file.
        """
        dtype = self._stored_dtype()
        if dtype is None or Kind.EXTERNAL in self.messages or self.count == 0:
            return []
        layout = self._layout()
        if layout.address is None:
            return []
        if layout.kind == _CHUNKED:
            chunks = self._chunks(layout.address)
            ranges = [self.objects.file.place(*chunk) for chunk in chunks]
        else:
            is_little_endian = self.order == "<" or dtype.itemsize == 1
            part = tuple(slice(0, size) for size in self.shape) if is_little_endian else None
            ranges = [self.objects.file.place(layout.address, self.count * dtype.itemsize, part)]
        return [place for place in ranges if place is not None]

    def _stored_dtype(self) -> np.dtype[np.generic] | None:
        dtype = find_dtype(self.dtype)
        return None if dtype is None else dtype.newbyteorder(self.order)

    def _damage(self, what: str) -> DamagedError:
        return self.objects.damage(f"{self.path} {what}")

    def _layout(self) -> _Layout:
        body = Cursor(self.messages[Kind.LAYOUT].body, self.objects)
        version = body.number(1)
        if version < 3:
            _, kind, _ = body.number(1), body.number(1), body.take(5)
            return _Layout(kind, body.allocated() if kind != _COMPACT else None)
        kind = body.number(1)
        if kind == _CONTIGUOUS:
            return _Layout(kind, body.allocated(), body.length())
        if kind == _CHUNKED and version == 3:
            body.take(1)
            return _Layout(kind, body.allocated())
        return _Layout(kind)

    def _chunks(self, root: int) -> list[tuple[int, int]]:
        """Return the address and the stored size of each chunk in a tree."""
        children = self.objects.tree(root, 1, 8 + 8 * (len(self.shape) + 1))
        return [(address, int.from_bytes(key[:4], "little")) for address, key in children]

    def _read_by_library(self, layout: _Layout, itemsize: int) -> bytes:
        messages = [self.messages[kind] for kind in _COPIED if kind in self.messages]
        if any(message.is_shared for message in messages):
            raise self.objects.unread(f"{self.path} shares header messages with other datasets")
        if any(_fill_size(message) not in (0, itemsize) for message in messages):
            raise self._damage("has a fill value of a size that differs from an element's")
        if layout.kind == _CHUNKED and layout.address is not None:
            # The library follows a tree that contains itself until the stack overflows.
            self._chunks(layout.address)
        import h5py

        copy = _OneDataset(self.objects, messages, itemsize)
        try:
            with copy.open() as stream, h5py.File(stream, "r") as file:
                opened = file[_NAME]
                if layout.kind == _CHUNKED:
                    self._check_chunks(opened.id, itemsize)
                return np.asarray(opened[()]).tobytes()
        except (*_LIBRARY_ERRORS, zlib.error) as error:
            raise self._damage(f"cannot be read ({first_line(error)})") from error

    def _check_chunks(self, opened: Any, itemsize: int) -> None:
        """Raise an error if a chunk of `opened` does not have exactly the claimed length.

        The library reads beyond the end of a short chunk.
        """
        if not hasattr(opened, "chunk_iter"):
            what = f"{self.path} has chunks, for which bnstat needs h5py with HDF5 1.12.3 or later"
            raise UnsupportedError(self.objects.file.path, what, "install h5py from PyPI")
        chunks: list[Any] = []
        opened.chunk_iter(chunks.append)
        settings = opened.get_create_plist()
        size = math.prod(settings.get_chunk()) * itemsize
        if chunks and size > max(_LARGEST_CHUNK, _CHUNK_RATIO * self.objects.file.size):
            raise self._damage(f"claims chunks of {size} bytes")
        if any(chunk.size > self.objects.file.size for chunk in chunks):
            raise self._damage("has a chunk that is larger than the file")
        filters = [settings.get_filter(index)[0] for index in range(settings.get_nfilters())]
        if unknown := [number for number in filters if number not in _FILTERS]:
            what = f"{self.path} is stored with HDF5's filter {unknown[0]}"
            raise self.objects.unread(what, "copy it with `h5repack -f GZIP=4`")
        for chunk in chunks:
            used = [number for at, number in enumerate(filters) if not chunk.filter_mask >> at & 1]
            if self._length(chunk, used, size) != size:
                raise self._damage(f"claims chunks of {size} bytes, but has one of another length")

    def _length(self, chunk: Any, filters: list[int], size: int) -> int:
        """Return the length of a decompressed chunk, or any number above `size` if it is longer.

        `filters` are those of the chunk, in the order in which they were applied.
        """
        length: int = chunk.size
        for at, number in reversed([*enumerate(filters)]):
            if number == _CHECKSUM:
                length -= _CHECKSUM_SIZE
            elif number in _COMPRESSIONS:
                if {*filters[at + 1 :]} - {_CHECKSUM}:
                    raise self.objects.unread(f"{self.path} has its filters in an unusual order")
                packed = self.objects.file.read(chunk.byte_offset, max(0, length))
                # Checksums of an earlier filter may follow the elements.
                length = _COMPRESSIONS[number](packed, size + _CHECKSUM_SIZE * at + 1)
        return length


class _Layout(NamedTuple):
    """Where a dataset's bytes are; `address` and `length` are None if not recorded."""

    kind: int
    address: int | None = None
    length: int | None = None


def find_dataset(objects: Objects, path: str, messages: list[Message]) -> Dataset | None:
    """Return the dataset that the messages describe, or None if they describe something else."""
    by_kind = {message.kind: message for message in messages}
    needed = {Kind.LAYOUT, Kind.DATASPACE, Kind.DATATYPE}
    if not needed <= by_kind.keys() or by_kind[Kind.DATASPACE].is_shared:
        return None
    shape = objects.dimensions(by_kind[Kind.DATASPACE].body)
    if shape is None:
        return None
    datatype = by_kind[Kind.DATATYPE]
    dtype, order = ("shared", "<") if datatype.is_shared else _element(objects, datatype.body)
    return Dataset(objects, path, dtype, ">" if order == ">" else "<", shape, by_kind)


def is_outside(message: Message) -> bool:
    """Return True if a message shows that a dataset's elements are in other datasets or files."""
    is_later = message.kind == Kind.LAYOUT and message.body[:1] >= b"\x03"
    return message.kind == Kind.EXTERNAL or (is_later and message.body[1:2] == bytes([_VIRTUAL]))


def _element(objects: Objects, datatype: bytes) -> tuple[str, str]:
    """Return the dtype (or a word such as `text`) and the byte order of a datatype message."""
    body = Cursor(datatype, objects)
    kind, bits = body.number(1) & 0x0F, body.take(3)
    size = body.number(4)
    order = ">" if bits[0] & 1 else "<"
    if kind == _INTEGER and size in (1, 2, 4, 8):
        return f"{'int' if bits[0] & 0x08 else 'uint'}{8 * size}", order
    if kind == _FLOAT and not bits[0] & 0x40:
        body.take(5)
        exponent, _, mantissa = body.number(1), body.number(1), body.number(1)
        return _FLOATS.get((size, exponent, mantissa), "floats of another kind"), order
    if kind == _ENUMERATION:
        members = int.from_bytes(bits[:2], "little")
        is_bool = (size, members) == (1, 2)
        # The base type is an integer; another enumeration is refused, since 8 bytes are too few.
        return ("bool", order) if is_bool else _element(objects, body.take(8))
    if kind == _OPAQUE:
        # h5py stores bfloat16, which older versions of HDF5 lack, as an opaque type.
        return ("bfloat16" if size == 2 else "opaque"), "<"
    return _NOT_NUMERIC.get(kind, "unknown"), "<"


def _fill_size(message: Message) -> int:
    body = message.body
    if message.kind == Kind.OLD_FILL:
        start = 0
    elif message.kind == Kind.FILL and body[:1] == b"\x03" and body[1:2] >= b"\x20":
        start = 2
    elif message.kind == Kind.FILL and body[:1] < b"\x03" and body[3:4] == b"\x01":
        start = 4
    else:
        return 0
    # Libraries before HDF5 1.8 store an undefined value with a negative size.
    return max(0, int.from_bytes(body[start : start + 4], "little", signed=True))


_NAME: Final = "a"
_COPIED: Final = (Kind.DATASPACE, Kind.OLD_FILL, Kind.FILL, Kind.LAYOUT, Kind.FILTERS)


class _OneDataset(File):
    """A file whose only object is one dataset of another file.

    It contains the other file's bytes at unchanged addresses, except that a superblock of version 1
    replaces the first bytes. Object headers of version 1 of the root group and of the dataset
    follow at the end. The element type is opaque and has the same size, so that HDF5 converts
    nothing.
    """

    def __init__(self, objects: Objects, messages: list[Message], itemsize: int) -> None:
        address = "Q" if objects.offset_size == 8 else "I"
        undefined = (1 << 8 * objects.offset_size) - 1
        self._original = original = objects.file
        start = original.size + -original.size % 8
        datatype = Message(Kind.DATATYPE, False, struct.pack("<B3xI", 0x10 | _OPAQUE, itemsize))
        header = _header([*messages, datatype])
        link = struct.pack(f"<3Bs{address}", 1, 0, len(_NAME), _NAME.encode(), start)
        links = Message(Kind.LINK_INFO, False, struct.pack(f"<2x2{address}", undefined, undefined))
        root_header = _header([links, Message(Kind.LINK, False, link)])
        self._tail = bytes(start - original.size) + header + root_header
        self.name = self.path = original.path
        self.size = original.size + len(self._tail)
        sizes = objects.offset_size, objects.length_size
        widths = 4, 16, objects.tree_width
        addresses = 0, undefined, self.size, undefined, 0, start + len(header)
        layout = f"<B4x2Bx2H4xH2x6{address}24x"
        self._head = SIGNATURE + struct.pack(layout, 1, *sizes, *widths, *addresses)

    def _read(self, offset: int, length: int) -> bytes:
        end, middle_end = offset + length, self._original.size
        data = self._head[offset:end]
        start = offset + len(data)
        if start < min(end, middle_end):
            data += self._original.read(start, min(end, middle_end) - start)
        return data + self._tail[max(0, offset - middle_end) : max(0, end - middle_end)]


def _header(messages: list[Message]) -> bytes:
    body = b""
    for message in messages:
        data = message.body + bytes(-len(message.body) % 8)
        body += struct.pack("<HHB3x", message.kind, len(data), 0) + data
    return struct.pack("<BxHII4x", 1, len(messages), 1, len(body)) + body
