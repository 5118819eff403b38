"""The objects of an HDF5 file: their positions, and the messages that describe them.

    superblock v0, v1  signature, 5 bytes, size of addresses, size of lengths, 1 unused, half the
                       entries of a group's leaf and inner nodes (u16 each), flags (u32), in v1
                       half the entries of a chunk tree's node (u16) and 2 unused, addresses of
                       the start, the free space, the end, the driver; the root's name and
                       header, 24 unused
    superblock v2, v3  signature, version, size of addresses, size of lengths, flags, addresses of
                       the start, the extension, the end and the root's header
    object header v1   version, 1 unused, number of messages (u16), references (u32), size of all
                       messages (u32), 4 unused, the messages
      message          type (u16), size (u16), flags, 3 unused, data
    object header v2   "OHDR", version, flags, ..., the messages, a checksum
      message          type (u8), size (u16), flags, [creation order (u16)], data

Fields in brackets are present only if a flag is set.

Objects with many links or attributes use "dense storage" in files that require HDF5 1.8 or later.
In other files, groups with many links use it if a name is not ASCII. A "fractal heap" contains the
messages, and a tree contains their heap ids. A heap offset counts bytes across all blocks.

    tree               "BTHD", version, type, size of a node (u32), size of a record (u16),
                       depth (u16), 2 unused, root's address, number of the root's records (u16),
                       number of all records
    leaf node          "BTLF", version, type, records
    inner node         "BTIN", version, type, records, then for each child: address, number of
                       records and, unless the children are leaves, number of all records below
    record, link       hash (u32), heap id (7 bytes)
    record, attribute  heap id (8 bytes), 9 more
    heap id            kind of storage in bits 4 and 5 (0: in a block), heap offset, length
    heap               "FRHP", version, ...: see `_Heap`; the table of blocks has `width` blocks a
                       row; blocks in rows 0 and 1 have the same size; from row 2 on, the size
                       doubles with each row
    direct block       "FHDB", version, heap's address, block's heap offset, [checksum], messages
    indirect block     "FHIB", version, heap's address, block's heap offset, addresses of the
                       blocks in its table

    attribute      version, flags, sizes of name, datatype and dataspace (u16 each), [encoding],
                   name, datatype, dataspace, elements; version 1 pads name, datatype and
                   dataspace to 8 bytes
    variable string length (u32), heap's address, entry's number (u32)
    global heap    "GCOL", version, 3 unused, size, the entries
      entry        number (u16; 0 ends the entries), references (u16), 4 unused, size, data
                   padded to 8 bytes

The HDF5 library is not used here, because damaged files make it loop endlessly or allocate
without a bound.

Source: HDF5 File Format Specification 3.0, sections II.A, III.A, III.E, III.G and IV.A,
https://docs.hdfgroup.org/hdf5/develop/_f_m_t3.html
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.storage.files import File

SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"


class Kind(IntEnum):
    """Types of messages."""

    EMPTY = 0x00
    DATASPACE = 0x01
    LINK_INFO = 0x02
    DATATYPE = 0x03
    OLD_FILL = 0x04
    FILL = 0x05
    LINK = 0x06
    EXTERNAL = 0x07
    LAYOUT = 0x08
    FILTERS = 0x0B
    ATTRIBUTE = 0x0C
    CONTINUATION = 0x10
    SYMBOL_TABLE = 0x11
    ATTRIBUTE_INFO = 0x15


_SHARED: Final = 0x02

_WASTE_RATIO: Final = 0.01
_WASTE_FLOOR: Final = 1 << 20
"""Bytes of a remote file that may be fetched without being needed, to save requests."""
_READ_RATIO: Final = 8
_READ_FLOOR: Final = 16 << 20
"""Structures may take `_READ_FLOOR` bytes plus this multiple of the file's size."""
_TREE_WIDTH: Final = 32
SMALLEST: Final = 24
"""The minimum size in bytes of a tree's node and of a heap of names."""


def signature_offset(file: File) -> int | None:
    """Return the offset of HDF5's signature (0, 512, 1024, 2048, ...), or None if it is missing.

    For a tar or zip, the result is None. In a remote file, only fetched bytes are searched.
    """
    head = file.head(512)
    if head[257:262] == b"ustar" or head.startswith(b"PK\x03\x04"):
        return None
    offset = 0
    while offset + len(SIGNATURE) <= file.size and file.has(offset, len(SIGNATURE)):
        if file.read(offset, len(SIGNATURE)) == SIGNATURE:
            return offset
        offset = offset * 2 or 512
    return None


class Cursor:
    """Bytes of a file that are consumed from the front, as bytes, numbers, lengths or addresses.

    Every method raises a `DamagedError` if too few bytes are left.
    """

    def __init__(self, data: bytes, objects: Objects) -> None:
        self.data = data
        self.at = 0
        self._objects = objects

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, length: int) -> bytes:
        if length > self.left:
            raise self._objects.damage("a structure is cut short")
        self.at += length
        return self.data[self.at - length : self.at]

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "little")

    def length(self) -> int:
        return self.number(self._objects.length_size)

    def address(self) -> int:
        return self.number(self._objects.offset_size)

    def allocated(self) -> int | None:
        """Return the next address, or None for the value that marks unallocated storage."""
        address = self.address()
        return None if address == (1 << 8 * self._objects.offset_size) - 1 else address


@dataclass(frozen=True, slots=True)
class Message:
    """A message of an object header; if `is_shared`, the body refers to a message elsewhere."""

    kind: int
    is_shared: bool
    body: bytes


class AbsentError(Exception):
    """Some bytes must be fetched first: `args` are their spans (address, length)."""


class Objects:
    """A reader of the objects in one file; the address of a header identifies an object.

    Attributes:
        file: the file from the superblock on, without the user block that may precede it.
        root: the address of the root group's header.
        tree_width: half of the maximum number of entries in a node of a chunk tree.
    """

    def __init__(self, file: File) -> None:
        """Read the superblock; raise a `DamagedError` if the file is not HDF5 or is truncated."""
        self.file = file
        self._makes_trips = True
        file.allow_waste(max(int(file.size * _WASTE_RATIO), _WASTE_FLOOR))
        self._unread = _READ_RATIO * file.size + _READ_FLOOR
        self._global_heaps: dict[int, dict[int, tuple[int, int]]] = {}
        start = signature_offset(file)
        if start is None:
            raise self.damage("its signature is missing")
        if start:
            from bnstat.storage.archive import Slice

            self.file = Slice(file, start, file.size - start, file.name)
            self.file.path = file.path
        head = self.cursor(8, min(128, self.file.size - 8))
        version = head.number(1)
        if version > 3:
            raise self.unread(f"has version {version} of the HDF5 superblock")
        head.take(4 if version < 2 else 0)
        self.offset_size, self.length_size = head.number(1), head.number(1)
        if not {self.offset_size, self.length_size} <= {4, 8}:
            raise self.damage("its addresses or lengths have an invalid size")
        head.take(9 if version < 2 else 1)
        self.tree_width = head.number(2) if version == 1 else _TREE_WIDTH
        head.take(2 if version == 1 else 0)
        base, _, end = head.address(), head.address(), head.address()
        head.take(2 * self.offset_size if version < 2 else 0)
        self.root = head.address()
        stored = end - base + start
        if stored > file.size:
            what = f"is truncated: it has {file.size} of {stored} bytes"
            raise DamagedError(file.path, what, "copy or download it again")

    def damage(self, what: str) -> DamagedError:
        return DamagedError(self.file.path, f"damaged HDF5: {what}")

    def unread(self, what: str, hint: str = "") -> UnsupportedError:
        return UnsupportedError(self.file.path, f"{what}, which bnstat does not read", hint)

    def cursor(self, address: int, length: int, signature: bytes = b"") -> Cursor:
        """Return a cursor over the `length` bytes at an address, positioned after the signature.

        The bytes of all cursors together are limited, because damaged structures may overlap.
        """
        self.expect([(address, length)])
        self._unread -= length
        if self._unread < 0:
            raise self.damage("its structures overlap")
        cursor = Cursor(self.file.read(address, length), self)
        if cursor.take(len(signature)) != signature:
            raise self.damage(f"{signature[:4].decode()} is missing")
        return cursor

    @contextmanager
    def trips(self, are_made: bool) -> Iterator[None]:
        """In the `with` block, let `expect` raise an `AbsentError` if `are_made` is False."""
        self._makes_trips = are_made
        try:
            yield
        finally:
            self._makes_trips = True

    def expect(self, spans: Iterable[tuple[int, int]]) -> None:
        """Within `trips(False)`, raise an `AbsentError` if spans (address, length) are missing."""
        if self._makes_trips:
            return
        absent = [span for span in spans if not self.file.has(*span)]
        if absent:
            raise AbsentError(*absent)

    def messages(self, header: int) -> Iterator[Message]:
        """Yield the messages of the object whose header starts at the address `header`."""
        prefix = self.cursor(header, 12).data
        is_v2 = prefix.startswith(b"OHDR")
        if is_v2:
            flags = prefix[5]
            at = header + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
            width = 1 << (flags & 3)
            pending = [(at + width, self.cursor(at, width).number(width))]
            head = struct.Struct("<BHB2x" if flags & 0x04 else "<BHB")
        else:
            if prefix[0] != 1:
                raise self.damage(f"an object header has no valid version ({prefix[0]})")
            pending = [(header + 16, int.from_bytes(prefix[8:12], "little"))]
            head = struct.Struct("<HHB3x")
        while pending:
            data = self.cursor(*pending.pop(0)).data
            at = 0
            while at + head.size <= len(data):
                kind, size, flags = head.unpack_from(data, at)
                at += head.size + size
                if at > len(data):
                    raise self.damage("an object header is cut short")
                body = data[at - size : at]
                if kind == Kind.CONTINUATION:
                    block = Cursor(body, self)
                    address, length = block.address(), block.length()
                    # Version 2 has "OCHK" before the messages and a checksum after them.
                    pending.append((address + 4, length - 8) if is_v2 else (address, length))
                elif kind != Kind.EMPTY:
                    yield Message(kind, bool(flags & _SHARED), body)

    def tree(self, root: int, kind: int, key_size: int) -> Iterator[tuple[int, bytes]]:
        """Yield the address and the key of each child of the leaves of a version 1 tree.

        The type `kind` is 0 for the members of a group, and 1 for chunks.
        """
        pending: list[tuple[int, int | None]] = [(root, None)]
        seen = {root}
        while pending:
            self.expect((address, SMALLEST) for address, _ in pending)
            address, expected = pending.pop()
            head = self.cursor(address, 8 + 2 * self.offset_size, b"TREE" + bytes([kind]))
            level, count = head.number(1), head.number(2)
            entries = self.cursor(address + len(head.data), count * (key_size + self.offset_size))
            is_tree = expected in (None, level)
            for _ in range(count):
                key, child = entries.take(key_size), entries.address()
                if level == 0:
                    yield child, key
                else:
                    is_tree = is_tree and child not in seen
                    seen.add(child)
                    pending.append((child, level - 1))
            if not is_tree:
                raise self.damage("has a cyclic or inconsistent tree")

    def variable_text(self, values: Cursor) -> str:
        """Read a string's length and position in a global heap from `values`; return the string."""
        length = values.number(4)
        heap, number = values.address(), values.number(4)
        if length == 0:
            return ""
        if heap not in self._global_heaps:
            self._global_heaps[heap] = dict(self._global_heap(heap))
        address, size = self._global_heaps[heap].get(number, (0, 0))
        if length > size:
            raise self.damage("a string is missing from its heap")
        return decode(self.cursor(address, length).data.split(b"\0")[0])

    def _global_heap(self, address: int) -> Iterator[tuple[int, tuple[int, int]]]:
        """Yield each entry of a global heap: its number, and the address and size of its data."""
        header = 8 + self.length_size
        start = self.cursor(address, header, b"GCOL")
        start.take(4)
        entries = self.cursor(address, start.length())
        entries.take(header)
        while entries.left >= header:
            number = entries.number(2)
            entries.take(6)
            size = entries.length()
            if number == 0:
                return
            yield number, (address + entries.at, size)
            entries.take(size)
            entries.take(min(-size % 8, entries.left))

    def dimensions(self, dataspace: bytes) -> tuple[int, ...] | None:
        """Return the shape in a dataspace message, or None if the dataspace has no elements."""
        space = Cursor(dataspace, self)
        version, rank, _ = space.number(1), space.number(1), space.number(1)
        if version == 1:
            space.take(5)
        elif space.number(1) == 2:
            return None
        return tuple(space.length() for _ in range(rank))


_DENSE: Final[Mapping[int, tuple[int, int, slice]]] = {
    Kind.LINK_INFO: (5, 8, slice(4, 11)),
    Kind.ATTRIBUTE_INFO: (8, 2, slice(0, 8)),
}
"""Type of a message -> (type of the tree, bytes of the message's optional field, position of the
heap id in a record of the tree)."""
_MANAGED: Final = 0
_MAX_DEPTH: Final = 32


def dense_messages(objects: Objects, info: Message) -> Iterator[Cursor]:
    """Yield a cursor over each message that a `LINK_INFO` or `ATTRIBUTE_INFO` refers to."""
    kind, optional, position = _DENSE[info.kind]
    body = Cursor(info.body, objects)
    _, flags = body.number(1), body.number(1)
    body.take(optional if flags & 1 else 0)
    address, tree = body.allocated(), body.address()
    if address is None:
        return
    heap = _Heap(objects, address)
    for record in _records(objects, tree, kind, position.stop):
        yield heap.message(record[position])


def _records(objects: Objects, tree: int, kind: int, least_size: int) -> Iterator[bytes]:
    """Yield the records of the tree at the address `tree` as bytes, in no particular order."""
    head = objects.cursor(tree, 20 + objects.offset_size, b"BTHD")
    head.take(1)
    if head.number(1) != kind:
        raise objects.damage("a tree of names has another type")
    node_size, record_size, depth = head.number(4), head.number(2), head.number(2)
    head.take(2)
    root, count = head.allocated(), head.number(2)
    if record_size < least_size or node_size < 10 + record_size or depth > _MAX_DEPTH:
        raise objects.damage("a tree of names has invalid sizes")
    # The capacity of a node determines the bytes of the counts in its parent.
    capacity = (node_size - 10) // record_size
    count_size = _width(capacity)
    total, total_sizes = capacity, [0]
    for _ in range(depth):
        pointer = objects.offset_size + count_size + total_sizes[-1]
        capacity = max(0, node_size - 10 - pointer) // (record_size + pointer)
        total = (capacity + 1) * total + capacity
        total_sizes.append(_width(total))
    if root is None:
        return
    pending, seen = [(root, count, depth)], {root}
    while pending:
        address, count, depth = pending.pop()
        node = objects.cursor(address, node_size, b"BTIN" if depth else b"BTLF")
        node.take(2)
        for _ in range(count):
            yield node.take(record_size)
        for _ in range(count + 1 if depth else 0):
            child, below = node.address(), node.number(count_size)
            node.take(total_sizes[depth - 1])
            if child not in seen:
                seen.add(child)
                pending.append((child, below, depth - 1))


class _Heap:
    def __init__(self, objects: Objects, address: int) -> None:
        lengths, offsets = objects.length_size, objects.offset_size
        head = objects.cursor(address, 22 + 12 * lengths + 3 * offsets, b"FRHP")
        head.take(3)
        if head.number(2):
            raise objects.unread("stores names in a compressed heap")
        head.take(1)
        largest_message = head.number(4)
        head.take(lengths + offsets + lengths + offsets + 8 * lengths)
        self._objects = objects
        self._width = head.number(2)
        self._first_size, largest_block = head.length(), head.length()
        self._offset_bits = head.number(2)
        head.take(2)
        self._root, self._rows = head.address(), head.number(2)
        if not (0 < self._first_size <= largest_block and self._width > 0):
            raise objects.damage("a heap of names has invalid sizes")
        self._offset_size = (self._offset_bits + 7) // 8
        sizes = (largest_block.bit_length() + 6) // 8, _width(max(1, largest_message))
        self._length_size = min(sizes)
        self._direct_rows = (largest_block // self._first_size).bit_length() + 1

    def message(self, heap_id: bytes) -> Cursor:
        body = Cursor(heap_id, self._objects)
        if body.number(1) >> 4 & 3 != _MANAGED:
            raise self._objects.unread("has names too long for their heap")
        offset, length = body.number(self._offset_size), body.number(self._length_size)
        if self._rows == 0:
            return self._objects.cursor(self._root + offset, length)
        block, start = self._block(self._root, self._rows, 0, offset)
        return self._objects.cursor(block + offset - start, length)

    def _block(self, table: int, rows: int, start: int, offset: int) -> tuple[int, int]:
        """Return the address and starting heap offset of the direct block that contains `offset`.

        Search the indirect block at the address `table`, which starts at the heap offset `start`.
        """
        objects = self._objects
        header = 5 + objects.offset_size + self._offset_size
        for row in range(min(rows, self._offset_bits)):
            size = self._first_size << max(0, row - 1)
            if offset >= start + self._width * size:
                start += self._width * size
                continue
            column = (offset - start) // size
            entry = table + header + (row * self._width + column) * objects.offset_size
            child = objects.cursor(entry, objects.offset_size).address()
            start += column * size
            if row < self._direct_rows:
                return child, start
            inner = (size // (self._first_size * self._width)).bit_length()
            if inner >= rows:
                break
            return self._block(child, inner, start, offset)
        raise objects.damage("a message is outside of its heap")


def _width(largest: int) -> int:
    """Return the number of bytes needed for integers up to `largest`."""
    return (largest.bit_length() + 7) // 8


_FIXED_TEXT: Final = 3
_VARIABLE: Final = 9
_SPACE_PADDED: Final = 2


def attributes(objects: Objects, messages: Iterable[Message]) -> Iterator[Attribute]:
    """Yield the attributes in the header messages of an object."""
    for message in messages:
        if message.kind == Kind.ATTRIBUTE_INFO:
            for body in dense_messages(objects, message):
                yield Attribute(objects, body)
        elif message.kind == Kind.ATTRIBUTE and not message.is_shared:
            yield Attribute(objects, Cursor(message.body, objects))


class Attribute:
    """An attribute of a group or dataset."""

    def __init__(self, objects: Objects, body: Cursor) -> None:
        version, flags = body.number(1), body.number(1)
        sizes = body.number(2), body.number(2), body.number(2)
        body.take(1 if version == 3 else 0)
        step = 8 if version == 1 else 1
        name, datatype, space = (body.take(size + -size % step) for size in sizes)
        self.name = decode(name[: sizes[0]].split(b"\0")[0])
        self._objects = objects
        self._datatype = datatype
        self._space = space
        self._values = body
        self._is_known = len(datatype) >= 8 and not (version > 1 and flags & 3)

    def texts(self) -> list[str] | None:
        """Return the strings of the attribute, or None if the attribute is not of a string type."""
        if not self._is_known:
            return None
        shape = self._objects.dimensions(self._space)
        count = 0 if shape is None else math.prod(shape)
        kind, bits = self._datatype[0] & 0x0F, self._datatype[1] & 0x0F
        size = int.from_bytes(self._datatype[4:8], "little")
        if kind not in (_FIXED_TEXT, _VARIABLE):
            # Keras stores an empty list of names as an empty array of floats.
            return [] if count == 0 else None
        if count * max(size, 1) > self._values.left:
            what = f"an attribute claims {count} elements, more than it contains"
            raise self._objects.damage(what)
        if kind == _VARIABLE:
            if bits != 1 or size != 8 + self._objects.offset_size:
                return None
            return [self._objects.variable_text(self._values) for _ in range(count)]
        texts = [self._values.take(size) for _ in range(count)]
        if bits == _SPACE_PADDED:
            return [decode(text.rstrip(b" ")) for text in texts]
        return [decode(text.split(b"\0")[0]) for text in texts]


def decode(text: bytes) -> str:
    """Decode a name or a string; invalid bytes become surrogates."""
    return text.decode("utf-8", "surrogateescape")
