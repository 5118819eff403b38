"""The dense storage of HDF5, in which a group keeps many links and an object many attributes.

Groups have it whose members' names are not ASCII, and all objects of files that were written
for HDF5 1.8 and later alone. The messages lie in a "fractal heap"; a tree tells their places.

    tree          "BTHD", version, type, size of a node (u32), size of a record (u16),
                  depth (u16), 2 unused, root's address, root's records (u16), all records
    its nodes     "BTLF" or "BTIN", version, type, records, then in "BTIN" children of address,
                  records, and above the lowest such level all records below
    record        for a link: hash (u32), place in the heap; for an attribute: place, 9 more
    heap          "FRHP", version, ...: see `_Heap`; a table of blocks, `width` of them a row,
                  that are twice as large from the second row on in each next
    its blocks    "FHDB", version, heap's address, own place, [checksum], messages;
                  "FHIB", version, heap's address, own place, addresses of the table's blocks
    place         kind (0 in bits 4 and 5), offset in all blocks, length

Source: HDF5 File Format Specification 3.0, sections III.A.2 and III.G.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bnstat.errors import UnsupportedError
from bnstat.formats.hdf5.objects import Cursor, Objects

LINKS: Final = 5
ATTRIBUTES: Final = 8
_PLACES: Final = {LINKS: (4, 11), ATTRIBUTES: (0, 8)}
"""Type of a tree -> where in its records the place in the heap begins and ends."""
_MANAGED: Final = 0
_MAX_DEPTH: Final = 32


def dense_messages(objects: Objects, heap: int, tree: int, kind: int) -> Iterator[bytes]:
    """The messages that a tree of type `kind` finds in a heap.

    Raises:
        DamagedError: an address or a length does not fit the file.
        UnsupportedError: a message is larger than the heap's blocks, as no name of Keras is.
    """
    start, end = _PLACES[kind]
    held = _Heap(objects, heap)
    for record in _records(objects, tree, kind):
        yield held.message(record[start:end])


def _records(objects: Objects, tree: int, kind: int) -> Iterator[bytes]:
    """The records of a tree, in any order."""
    head = objects.cursor(tree, 20 + objects.offset_size)
    if head.take(4) != b"BTHD" or head.number(2) >> 8 != kind:
        raise objects.damage("a tree of names is missing")
    node_size, record_size, depth = head.number(4), head.number(2), head.number(2)
    head.take(2)
    root = objects.address(head)
    count = head.number(2)
    if record_size < _PLACES[kind][1] or node_size < 10 + record_size or depth > _MAX_DEPTH:
        raise objects.damage("a tree of names has no valid measures")
    # How many records a node can have tells how wide the counts in its parent are.
    most = (node_size - 10) // record_size
    count_size = _width(most)
    total, total_sizes = most, [0]
    for _ in range(depth):
        pointer = objects.offset_size + count_size + total_sizes[-1]
        here = max(0, node_size - 10 - pointer) // (record_size + pointer)
        total = (here + 1) * total + here
        total_sizes.append(_width(total))
    if objects.is_undefined(root):
        return
    pending, seen = [(root, count, depth)], {root}
    while pending:
        address, count, depth = pending.pop()
        node = objects.cursor(address, node_size)
        if node.take(4) != (b"BTIN" if depth else b"BTLF"):
            raise objects.damage("a node of a tree of names is missing")
        node.take(2)
        for _ in range(count):
            yield node.take(record_size)
        for _ in range(count + 1 if depth else 0):
            child, below = objects.address(node), node.number(count_size)
            node.take(total_sizes[depth - 1])
            if child not in seen:
                seen.add(child)
                pending.append((child, below, depth - 1))


class _Heap:
    """A fractal heap."""

    def __init__(self, objects: Objects, address: int) -> None:
        lengths, offsets = objects.length_size, objects.offset_size
        head = objects.cursor(address, 22 + 12 * lengths + 3 * offsets)
        if head.take(4) != b"FRHP":
            raise objects.damage("a heap of names is missing")
        head.take(3)
        if head.number(2):
            raise UnsupportedError(objects.path, "has a compressed heap of names")
        head.take(1)
        largest_message = head.number(4)
        head.take(lengths + offsets + lengths + offsets + 8 * lengths)
        self._objects = objects
        self._width = head.number(2)
        self._first_size, largest_block = head.number(lengths), head.number(lengths)
        self._offset_bits = head.number(2)
        head.take(2)
        self._root, self._rows = objects.address(head), head.number(2)
        if not (0 < self._first_size <= largest_block and self._width > 0):
            raise objects.damage("a heap of names has blocks of no size")
        self._offset_size = (self._offset_bits + 7) // 8
        self._length_size = min(
            (largest_block.bit_length() + 6) // 8, _width(max(1, largest_message))
        )
        self._direct_rows = (largest_block // self._first_size).bit_length() + 1

    def message(self, place: bytes) -> bytes:
        """The message at a place."""
        found = Cursor(place, self._objects.path)
        if found.number(1) >> 4 & 3 != _MANAGED:
            raise UnsupportedError(self._objects.path, "has names too long for their heap")
        offset, length = found.number(self._offset_size), found.number(self._length_size)
        if self._rows == 0:
            return self._objects.cursor(self._root + offset, length).data
        block, start = self._block(self._root, self._rows, 0, offset)
        return self._objects.cursor(block + offset - start, length).data

    def _block(self, table: int, rows: int, start: int, offset: int) -> tuple[int, int]:
        """Address and offset of the block that holds an offset, found by way of a table."""
        objects = self._objects
        header = 5 + objects.offset_size + self._offset_size
        for row in range(min(rows, self._offset_bits)):
            size = self._first_size << max(0, row - 1)
            if offset >= start + self._width * size:
                start += self._width * size
                continue
            column = (offset - start) // size
            place = table + header + (row * self._width + column) * objects.offset_size
            child = objects.address(objects.cursor(place, objects.offset_size))
            start += column * size
            if row < self._direct_rows:
                return child, start
            inner = (size // (self._first_size * self._width)).bit_length()
            if inner >= rows:
                break
            return self._block(child, inner, start, offset)
        raise objects.damage("a message is outside of its heap")


def _width(largest: int) -> int:
    """How many bytes a number takes that may be so large."""
    return (largest.bit_length() + 7) // 8
