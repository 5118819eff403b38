"""The arrays of HDF5 datasets: where their bytes are, and how to read them.

    layout v3, v4  version, class: 0, in the header: size (u16), bytes
                                   1, in one piece: address, size
                                   2, in chunks: rank + 1, address of a tree, the chunk's shape
                                      and an element's size (u32 each); v4 has other trees
    chunk tree     "TREE", type 1, level, entries (u16), two addresses of siblings, then entries
                   of size (u32), filters left out (u32), position (u64 each, and one more),
                   address of a chunk or of the tree below

Keras stores every array in one piece. Chunks, which other tools make of it when they compress a
file, are read where they are kept as HDF5 1.6 to 1.8 does by default.

Source: HDF5 File Format Specification 3.0, sections III.A.1 and IV.A.2.i.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from bnstat.errors import UnsupportedError
from bnstat.formats.hdf5.datasets import Dataset, numpy_type
from bnstat.formats.hdf5.objects import Cursor, Objects, product
from bnstat.model import Array
from bnstat.storage.ranges import Range

_COMPACT, _CONTIGUOUS, _CHUNKED, _VIRTUAL = range(4)
_DEFLATE, _SHUFFLE, _FLETCHER = 1, 2, 3
_FOREIGN: Final = "refers to data outside of the file, which is never followed"


class LibraryNeededError(UnsupportedError):
    """The array is kept in the file, but in a way that Keras never uses."""


def read(objects: Objects, held: Dataset) -> Array:
    """A dataset's array, in the machine's byte order.

    Raises:
        DamagedError: its bytes are missing, or it claims more than the file holds.
        LibraryNeededError: it is kept in a way that Keras never uses.
        UnsupportedError: it is not numeric, or refers to data outside of the file.
    """
    dtype = numpy_type(held)
    if dtype is None:
        raise UnsupportedError(objects.path, f"{held.path} holds {held.dtype}, not numbers")
    if held.is_foreign:
        raise UnsupportedError(objects.path, f"{held.path} {_FOREIGN}")
    if 0 in held.shape:
        return np.empty(held.shape, dtype.newbyteorder("="))
    layout = Cursor(held.layout, objects.path)
    version, kind = layout.number(1), layout.number(1)
    if version not in (3, 4):
        raise LibraryNeededError(objects.path, f"{held.path} has a layout of version {version}")
    size = product(held.shape) * dtype.itemsize
    if kind == _COMPACT:
        data = layout.take(layout.number(2))
    elif kind == _CONTIGUOUS:
        address, length = objects.address(layout), layout.number(objects.length_size)
        if objects.is_undefined(address):
            raise objects.damage(f"{held.path} was never written")
        data = objects.array_bytes(address, min(size, length))
    elif kind == _VIRTUAL:
        raise UnsupportedError(objects.path, f"{held.path} {_FOREIGN}")
    elif version == 3:
        return _chunked(objects, held, dtype, layout)
    else:
        raise LibraryNeededError(objects.path, f"{held.path} is kept in chunks of a newer kind")
    if len(data) < size:
        raise objects.damage(f"{held.path} claims {size} bytes, it has {len(data)}")
    return _native(np.frombuffer(data[:size], dtype).reshape(held.shape))


def extents(objects: Objects, held: Dataset) -> list[Range]:
    """Where a dataset's bytes lie: in one piece, or chunk by chunk.

    None where they are among a header's, in another file, or nobody but HDF5 knows.

    Raises:
        DamagedError: the tree of chunks contradicts itself.
    """
    dtype = numpy_type(held)
    if dtype is None or held.is_foreign or 0 in held.shape:
        return []
    layout = Cursor(held.layout, objects.path)
    version, kind = layout.number(1), layout.number(1)
    is_plain = held.order == "<" or dtype.itemsize == 1
    places: list[Range | None] = []
    if version in (3, 4) and kind == _CONTIGUOUS:
        address = objects.address(layout)
        if not objects.is_undefined(address):
            whole = tuple(slice(0, size) for size in held.shape) if is_plain else None
            places = [objects.place(address, product(held.shape) * dtype.itemsize, whole)]
    elif version == 3 and kind == _CHUNKED:
        chunk_shape, chunks = _chunks(objects, held, layout)
        is_plain = is_plain and not held.filters
        for chunk in chunks:
            part = chunk.part(chunk_shape, held.shape)
            is_whole = tuple(span.stop - span.start for span in part) == chunk_shape
            kept = part if is_plain and is_whole else None
            places.append(objects.place(chunk.address, chunk.length, kept))
    return [place for place in places if place is not None]


class _Chunk(NamedTuple):
    """A piece of an array: where its first element is in it, and its bytes in the file."""

    position: tuple[int, ...]
    address: int
    length: int
    skipped: int
    """Bit N: whether filter N was left out."""

    def part(self, chunk_shape: tuple[int, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
        """What the chunk holds of an array of that shape."""
        return tuple(
            slice(at, min(at + size, whole))
            for at, size, whole in zip(self.position, chunk_shape, shape, strict=True)
        )


def _chunked(objects: Objects, held: Dataset, dtype: np.dtype[np.generic], layout: Cursor) -> Array:
    """Put an array together from its chunks."""
    chunk_shape, chunks = _chunks(objects, held, layout)
    size = product(chunk_shape) * dtype.itemsize
    array: Array = np.empty(held.shape, dtype)
    for chunk in chunks:
        data = objects.array_bytes(chunk.address, chunk.length)
        for place in reversed(range(len(held.filters))):
            if not chunk.skipped >> place & 1:
                data = _undone(objects, held, held.filters[place], data, size, dtype.itemsize)
        if len(data) < size:
            raise objects.damage(f"{held.path} has a chunk that is too short")
        part = chunk.part(chunk_shape, held.shape)
        inside = tuple(slice(0, span.stop - span.start) for span in part)
        array[part] = np.frombuffer(data[:size], dtype).reshape(chunk_shape)[inside]
    return _native(array)


def _chunks(
    objects: Objects, held: Dataset, layout: Cursor
) -> tuple[tuple[int, ...], list[_Chunk]]:
    """The shape of an array's chunks, and all of them."""
    rank = layout.number(1) - 1
    root = objects.address(layout)
    chunk_shape = tuple(layout.number(4) for _ in range(rank))
    if rank != len(held.shape) or 0 in chunk_shape:
        raise objects.damage(f"{held.path} has chunks of another rank")
    expected = product(
        tuple(-(-whole // part) for whole, part in zip(held.shape, chunk_shape, strict=True))
    )
    # A chunk takes more than 24 bytes to tell of.
    if expected * 24 > objects.size:
        raise objects.damage(f"{held.path} claims {expected} chunks")
    chunks = {chunk.position: chunk for chunk in _tree(objects, held, root, rank)}
    if len(chunks) != expected:
        raise objects.damage(f"{held.path} has {len(chunks)} of {expected} chunks")
    return chunk_shape, list(chunks.values())


def _tree(objects: Objects, held: Dataset, root: int, rank: int) -> Iterator[_Chunk]:
    """The chunks that a tree lists."""
    pending, seen = [root], {root}
    entry = 8 + 8 * (rank + 1) + objects.offset_size
    while pending:
        address = pending.pop()
        head = objects.cursor(address, 8 + 2 * objects.offset_size)
        if head.take(5) != b"TREE\x01":
            raise objects.damage(f"{held.path} has no tree of chunks")
        level, entries = head.number(1), head.number(2)
        node = objects.cursor(address + len(head.data), entries * entry)
        for _ in range(entries):
            size, skipped = node.number(4), node.number(4)
            position = tuple(node.number(8) for _ in range(rank + 1))[:rank]
            child = objects.address(node)
            if level == 0:
                if any(at >= whole for at, whole in zip(position, held.shape, strict=True)):
                    raise objects.damage(f"{held.path} has a chunk outside of it")
                yield _Chunk(position, child, size, skipped)
            elif child not in seen:
                seen.add(child)
                pending.append(child)


def _undone(
    objects: Objects, held: Dataset, kind: int, data: bytes, size: int, itemsize: int
) -> bytes:
    """A chunk's bytes before they were put through a filter; never more than a chunk has."""
    if kind == _DEFLATE:
        try:
            # The checksum of another filter may still follow the elements.
            return zlib.decompressobj().decompress(data, size + 4)
        except zlib.error as error:
            raise objects.damage(f"{held.path} cannot be decompressed ({error})") from error
    if kind == _SHUFFLE:
        whole = len(data) - len(data) % itemsize
        planes = np.frombuffer(data[:whole], np.uint8).reshape(itemsize, -1)
        return planes.T.tobytes() + data[whole:]
    if kind == _FLETCHER:
        return data[:-4]
    raise LibraryNeededError(objects.path, f"{held.path} went through a filter of number {kind}")


def _native(array: Array) -> Array:
    return array.astype(array.dtype.newbyteorder("="), copy=False)
