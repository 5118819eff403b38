"""The text attributes of HDF5 objects, read without the HDF5 library.

The library reads texts of variable length from a "global heap" in ways that a file can abuse:
an empty entry there makes it loop forever, and an attribute whose elements all point to one
large entry makes it allocate that many copies. Text attributes are all that a model file keeps
in such a heap, so they are read here, every length checked against the file first.

    object header v1   version, messages (u16), references (u32), size (u32), then messages of
                       type (u16), size (u16), flags, 3 unused; data
    object header v2   "OHDR", version, flags, ..., then messages of type (u8), size (u16),
                       flags, [order (u16)]; data; a checksum at the end of each block
    attribute          version, flags, sizes of name, datatype, dataspace (u16 each), [encoding],
                       these three, the elements; in version 1 each padded to 8 bytes
    variable text      length (u32), heap's address, entry's number (u32)
    global heap        "GCOL", version, size, then entries of number (u16), references (u16),
                       4 unused, size; data padded to 8 bytes; number 0 ends them

Source: HDF5 File Format Specification 3.0, sections III.E, IV.A.1, IV.A.2.b, d, m and q.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.storage import File

_ATTRIBUTE: Final = 0x0C
_CONTINUATION: Final = 0x10
_ATTRIBUTE_INFO: Final = 0x15
_SHARED: Final = 0x02
_FIXED_TEXT: Final = 3
_VARIABLE: Final = 9
_SPACE_PADDED: Final = 2


class Attributes:
    """The text attributes of the objects of one file."""

    def __init__(self, file: File, start: int) -> None:
        """Read the superblock.

        Args:
            file: the file.
            start: where HDF5's signature stands in it; addresses count from there.
        """
        self._file = file
        self._start = start
        version = file.read(start + 8, 1)[0]
        sizes = file.read(start + (13 if version < 2 else 9), 2)
        self._offset_size, self._length_size = sizes
        if not {self._offset_size, self._length_size} <= {2, 4, 8}:
            raise DamagedError(file.path, "damaged HDF5: its addresses have no valid size")

    def names(self, header: int) -> set[str]:
        """The names of all attributes of the object whose header is at that address."""
        return {name for name, _ in self._attributes(header)}

    def texts(self, header: int, name: str) -> list[str] | None:
        """The texts of an attribute, in order; None where it is missing or holds no texts.

        Raises:
            DamagedError: a length or an address does not fit the file.
            UnsupportedError: the object keeps its attributes in a heap of their own, as Keras
                never does.
        """
        for found, message in self._attributes(header):
            if found == name:
                return self._elements(message)
        return None

    def _attributes(self, header: int) -> Iterator[tuple[str, _Attribute]]:
        for kind, flags, body in self._messages(header):
            if kind == _ATTRIBUTE_INFO and not self._is_undefined(body):
                raise UnsupportedError(self._file.path, "keeps its attributes in dense storage")
            if kind == _ATTRIBUTE and not flags & _SHARED:
                attribute = _Attribute(_Bytes(body, self._file.path))
                yield attribute.name, attribute

    def _is_undefined(self, info: bytes) -> bool:
        """Whether an attribute-info message tells of no heap: its address is all ones."""
        at = 4 if info[1:2] and info[1] & 1 else 2
        return info[at : at + self._offset_size] == b"\xff" * self._offset_size

    def _messages(self, header: int) -> Iterator[tuple[int, int, bytes]]:
        """Type, flags and data of each message of an object header."""
        prefix = self._bytes(header, 12).data
        is_v2 = prefix.startswith(b"OHDR")
        if is_v2:
            flags = prefix[5]
            at = header + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
            width = 1 << (flags & 3)
            first = (at + width, self._bytes(at, width).number(width))
            head = _Head(1, 2 if flags & 0x04 else 0)
        else:
            first = (header + 16, int.from_bytes(prefix[8:12], "little"))
            head = _Head(2, 3)
        pending = [first]
        total = 0
        while pending:
            address, length = pending.pop(0)
            total += length
            if total > self._file.size:
                raise DamagedError(self._file.path, "damaged HDF5: an object header has a cycle")
            block = self._bytes(address, length)
            while block.left >= head.size:
                kind, size, message_flags = head.take(block)
                body = block.take(size)
                yield kind, message_flags, body
                if kind == _CONTINUATION:
                    place, extent = self._continuation(body)
                    # Version 2 has "OCHK" before the messages and a checksum after them.
                    pending.append((place + 4, extent - 8) if is_v2 else (place, extent))

    def _continuation(self, body: bytes) -> tuple[int, int]:
        found = _Bytes(body, self._file.path)
        return found.number(self._offset_size), found.number(self._length_size)

    def _elements(self, attribute: _Attribute) -> list[str] | None:
        count, size = attribute.count(self._length_size), attribute.size
        if attribute.kind not in (_FIXED_TEXT, _VARIABLE):
            # An empty list of names is stored as an empty array of floats.
            return [] if count == 0 else None
        if count * max(size, 1) > attribute.values.left:
            raise DamagedError(
                self._file.path, f"damaged HDF5: an attribute claims {count} elements"
            )
        if attribute.kind == _FIXED_TEXT:
            fixed = (attribute.values.take(size) for _ in range(count))
            return [_decoded(text, attribute.is_space_padded) for text in fixed]
        if not attribute.is_variable_text or size != 8 + self._offset_size:
            return None
        return list(self._variable_texts(attribute.values, count))

    def _variable_texts(self, values: _Bytes, count: int) -> Iterator[str]:
        heaps: dict[int, dict[int, tuple[int, int]]] = {}
        total = 0
        for _ in range(count):
            length = values.number(4)
            heap, number = values.number(self._offset_size), values.number(4)
            if length == 0:
                yield ""
                continue
            if heap not in heaps:
                heaps[heap] = self._entries(heap)
            address, size = heaps[heap].get(number, (0, 0))
            total += length
            if length > size or total > self._file.size:
                raise DamagedError(self._file.path, "damaged HDF5: a text is not in its heap")
            yield _decoded(self._bytes(address, length).data, False)

    def _entries(self, heap: int) -> dict[int, tuple[int, int]]:
        """Number -> address and size, of a global heap's entries."""
        header = 8 + self._length_size
        start = self._bytes(heap, header)
        if start.take(4) != b"GCOL":
            raise DamagedError(self._file.path, "damaged HDF5: a global heap is missing")
        start.take(4)
        collection = self._bytes(heap, start.number(self._length_size))
        collection.take(header)
        entries: dict[int, tuple[int, int]] = {}
        while collection.left >= header:
            number = collection.number(2)
            collection.take(6)
            size = collection.number(self._length_size)
            if number == 0:
                break
            entries[number] = (heap + collection.at, size)
            collection.take(size)
            collection.take(min(-size % 8, collection.left))
        return entries

    def _bytes(self, address: int, length: int) -> _Bytes:
        return _Bytes(self._file.read(self._start + address, length), self._file.path)


@dataclass(frozen=True, slots=True)
class _Head:
    """What stands before each message: its type, its size (u16), its flags (u8) and more.

    Attributes:
        type_size: the size of its type.
        unused: the size of what follows the flags.
    """

    type_size: int
    unused: int

    @property
    def size(self) -> int:
        return self.type_size + 3 + self.unused

    def take(self, block: _Bytes) -> tuple[int, int, int]:
        """Type, size and flags of the next message."""
        kind, size, flags = block.number(self.type_size), block.number(2), block.number(1)
        block.take(self.unused)
        return kind, size, flags


class _Attribute:
    """An attribute message, taken apart as far as all attributes are alike."""

    def __init__(self, body: _Bytes) -> None:
        version, flags = body.number(1), body.number(1)
        name_size, type_size, space_size = body.number(2), body.number(2), body.number(2)
        if version == 3:
            body.take(1)
        pad = 8 if version == 1 else 1
        name = body.take(name_size + -name_size % pad)
        datatype = body.take(type_size + -type_size % pad)
        self._space = body.take(space_size + -space_size % pad)
        self._path = body.path
        is_shared = version > 1 and flags & 3
        self.name = name[:name_size].split(b"\0")[0].decode("utf-8", "surrogateescape")
        self.kind = datatype[0] & 0x0F if len(datatype) >= 8 and not is_shared else -1
        self.size = int.from_bytes(datatype[4:8], "little")
        self.is_space_padded = self.kind == _FIXED_TEXT and datatype[1] & 0x0F == _SPACE_PADDED
        self.is_variable_text = self.kind == _VARIABLE and datatype[1] & 0x0F == 1
        self.values = body

    def count(self, length_size: int) -> int:
        """The number of elements."""
        space = _Bytes(self._space, self._path)
        version, rank, _ = space.number(1), space.number(1), space.number(1)
        if version == 1:
            space.take(5)
        elif space.number(1) == 2:
            return 0
        return math.prod(space.number(length_size) for _ in range(rank))


class _Bytes:
    """Bytes that are consumed from the front; asking for more than there are is damage."""

    def __init__(self, data: bytes, path: str) -> None:
        self.data = data
        self.path = path
        self.at = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, length: int) -> bytes:
        if length > self.left:
            raise DamagedError(self.path, "damaged HDF5: an object header is cut short")
        self.at += length
        return self.data[self.at - length : self.at]

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "little")


def _decoded(text: bytes, is_space_padded: bool) -> str:
    text = text.rstrip(b" ") if is_space_padded else text.split(b"\0")[0]
    return text.decode("utf-8", "surrogateescape")
