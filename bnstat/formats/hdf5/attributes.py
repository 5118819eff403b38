"""The text attributes of HDF5 objects.

    attribute      version, flags, sizes of name, datatype, dataspace (u16 each), [encoding],
                   these three, the elements; in version 1 each padded to 8 bytes
    variable text  length (u32), heap's address, entry's number (u32)
    global heap    "GCOL", version, size, then entries of number (u16), references (u16),
                   4 unused, size; data padded to 8 bytes; number 0 ends them

Source: HDF5 File Format Specification 3.0, sections III.E, IV.A.2.m and q.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bnstat.formats.hdf5.dense import ATTRIBUTES, dense_messages
from bnstat.formats.hdf5.objects import ATTRIBUTE, ATTRIBUTE_INFO, Cursor, Objects, product

_FIXED_TEXT: Final = 3
_VARIABLE: Final = 9
_SPACE_PADDED: Final = 2


class Attributes:
    """The text attributes of the objects of one file."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._heaps: dict[int, dict[int, tuple[int, int]]] = {}

    def names(self, header: int) -> set[str]:
        """The names of all attributes of the object whose header is at that address.

        Raises:
            DamagedError: its header is cut short.
        """
        return {attribute.name for attribute in self._attributes(header)}

    def texts(self, header: int, name: str) -> list[str] | None:
        """The texts of an attribute, in order; None where it is missing or holds no texts.

        Raises:
            DamagedError: a length or an address does not fit the file.
        """
        for attribute in self._attributes(header):
            if attribute.name == name:
                return self._elements(attribute)
        return None

    def _attributes(self, header: int) -> Iterator[_Attribute]:
        for message in self._objects.messages(header):
            if message.kind == ATTRIBUTE_INFO:
                info = Cursor(message.body, self._objects.path)
                _, flags = info.number(1), info.number(1)
                info.take(2 if flags & 1 else 0)
                heap, tree = self._objects.address(info), self._objects.address(info)
                if not self._objects.is_undefined(heap):
                    for body in dense_messages(self._objects, heap, tree, ATTRIBUTES):
                        yield _Attribute(self._objects, body)
            elif message.kind == ATTRIBUTE and not message.is_shared:
                yield _Attribute(self._objects, message.body)

    def _elements(self, attribute: _Attribute) -> list[str] | None:
        count, size = attribute.count, attribute.size
        if attribute.kind not in (_FIXED_TEXT, _VARIABLE):
            # An empty list of names is stored as an empty array of floats.
            return [] if count == 0 else None
        if count * max(size, 1) > attribute.values.left:
            raise self._objects.damage(f"an attribute claims {count} elements")
        if attribute.kind == _FIXED_TEXT:
            fixed = (attribute.values.take(size) for _ in range(count))
            return [_decoded(text, attribute.is_space_padded) for text in fixed]
        if not attribute.is_variable_text or size != 8 + self._objects.offset_size:
            return None
        return [self._variable_text(attribute.values) for _ in range(count)]

    def _variable_text(self, values: Cursor) -> str:
        length = values.number(4)
        heap, number = self._objects.address(values), values.number(4)
        if length == 0:
            return ""
        if heap not in self._heaps:
            self._heaps[heap] = self._entries(heap)
        address, size = self._heaps[heap].get(number, (0, 0))
        if length > size:
            raise self._objects.damage("a text is not in its heap")
        return _decoded(self._objects.cursor(address, length).data, False)

    def _entries(self, heap: int) -> dict[int, tuple[int, int]]:
        """Number -> address and size, of a global heap's entries."""
        length_size = self._objects.length_size
        header = 8 + length_size
        start = self._objects.cursor(heap, header)
        if start.take(4) != b"GCOL":
            raise self._objects.damage("a heap of texts is missing")
        start.take(4)
        collection = self._objects.cursor(heap, start.number(length_size))
        collection.take(header)
        entries: dict[int, tuple[int, int]] = {}
        while collection.left >= header:
            number = collection.number(2)
            collection.take(6)
            size = collection.number(length_size)
            if number == 0:
                break
            entries[number] = (heap + collection.at, size)
            collection.take(size)
            collection.take(min(-size % 8, collection.left))
        return entries


class _Attribute:
    """An attribute message.

    Attributes:
        name: its name.
        kind: the class of its elements' type; -1 where that is kept elsewhere.
        size: the size of an element.
        count: the number of elements.
        values: the elements.
    """

    def __init__(self, objects: Objects, data: bytes) -> None:
        body = Cursor(data, objects.path)
        version, flags = body.number(1), body.number(1)
        name_size, type_size, space_size = body.number(2), body.number(2), body.number(2)
        body.take(1 if version == 3 else 0)
        step = 8 if version == 1 else 1
        name = body.take(name_size + -name_size % step)
        datatype = body.take(type_size + -type_size % step)
        space = body.take(space_size + -space_size % step)
        is_shared = version > 1 and flags & 3
        is_known = len(datatype) >= 8 and not is_shared
        bits = datatype[1] & 0x0F if is_known else 0
        self.name = name[:name_size].split(b"\0")[0].decode("utf-8", "surrogateescape")
        self.kind = datatype[0] & 0x0F if is_known else -1
        self.size = int.from_bytes(datatype[4:8], "little")
        self.is_space_padded = self.kind == _FIXED_TEXT and bits == _SPACE_PADDED
        self.is_variable_text = self.kind == _VARIABLE and bits == 1
        shape = objects.dimensions(space) if is_known else ()
        self.count = 0 if shape is None else product(shape)
        self.values = body


def _decoded(text: bytes, is_space_padded: bool) -> str:
    text = text.rstrip(b" ") if is_space_padded else text.split(b"\0")[0]
    return text.decode("utf-8", "surrogateescape")
