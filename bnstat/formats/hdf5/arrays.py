"""The arrays of HDF5 datasets: where their bytes are, and how to read them.

    layout v1, v2  version, rank, class, 5 unused, address (not of class 0), the shape (u32 each;
                   of class 2 the chunk's, and an element's size); class 0: size (u32), bytes
    layout v3, v4  version, class: 0, in the header: size (u16), bytes
                                   1, in one piece: address, size
                                   2, in chunks, v3: rank + 1, address of a tree, the chunk's
                                      shape and an element's size (u32 each)
                                   2, in chunks, v4: flags, rank + 1, width of a size, the
                                      chunk's shape and an element's size, kind of index, its
                                      parameters, its address
    chunk tree     "TREE", type 1, level, entries (u16), two addresses of siblings, then entries
                   of size (u32), filters left out (u32), position (u64 each, and one more),
                   address of a chunk or of the tree below

Keras stores every array in one piece. Chunks, which other tools make of it when they compress a
file, are read where they are kept as HDF5 1.6 to 1.8 does by default. HDF5 allocates space when
elements are first written: an address that is undefined, and a chunk that no tree lists, stand
for elements that hold the dataset's fill value.

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
_SINGLE_FILTERED: Final = 2
"""The flag of layout v4 for a single chunk whose size after filters is told."""
_LARGEST_CHUNK: Final = 64 << 20
"""Bytes of a chunk that is read from a file of any size; HDF5's default is below 1 MiB."""
_MOST_TIMES: Final = 50
"""Beyond that, a chunk must not exceed the file's size by more than this factor."""
_FOREIGN: Final = "refers to data outside of the file, which is never followed"


class LibraryNeededError(UnsupportedError):
    """The array is kept in the file, but in a way that Keras never uses."""


class _Layout(NamedTuple):
    """Where a dataset's bytes are.

    Attributes:
        kind: in the header, in one piece, in chunks, or in other datasets.
        is_tree: for chunks, True if a tree of version 1 lists them.
        address: of the bytes or of what lists the chunks; None if nothing was allocated.
        length: how many bytes are stored in one piece.
        inside: the bytes in the header.
        chunk_shape: the shape of a chunk.
    """

    kind: int
    is_tree: bool = False
    address: int | None = None
    length: int = 0
    inside: bytes = b""
    chunk_shape: tuple[int, ...] = ()


_INDEX_PARAMETERS: Final = {2: 0, 3: 1, 4: 5, 5: 6}
"""Kind of a chunk index of layout v4 -> bytes of its parameters."""


def _layout(objects: Objects, held: Dataset, itemsize: int) -> _Layout:
    """What a dataset's layout message says.

    Raises:
        DamagedError: it is cut short, or its chunks do not fit the dataset.
        LibraryNeededError: its version is not known.
    """
    body = Cursor(held.layout, objects.path)
    version = body.number(1)
    if not 1 <= version <= 4:
        raise LibraryNeededError(objects.path, f"{held.path} has a layout of version {version}")
    if version < 3:
        return _old_layout(objects, held, body, itemsize)
    kind = body.number(1)
    if kind == _COMPACT:
        return _Layout(kind, inside=body.take(body.number(2)))
    if kind == _CONTIGUOUS:
        return _Layout(
            kind, address=_allocated(objects, body), length=body.number(objects.length_size)
        )
    if kind != _CHUNKED:
        return _Layout(kind)
    if version == 3:
        rank = body.number(1) - 1
        address = _allocated(objects, body)
        return _Layout(kind, True, address, chunk_shape=_chunk_shape(objects, held, body, rank, 4))
    flags, rank, width = body.number(1), body.number(1) - 1, body.number(1)
    chunk_shape = _chunk_shape(objects, held, body, rank, width)
    body.take(width)
    index = body.number(1)
    single = objects.length_size + 4 if flags & _SINGLE_FILTERED else 0
    body.take(_INDEX_PARAMETERS.get(index, single))
    return _Layout(kind, False, _allocated(objects, body), chunk_shape=chunk_shape)


def _old_layout(objects: Objects, held: Dataset, body: Cursor, itemsize: int) -> _Layout:
    """A layout of HDF5 1.6.2 and earlier, after its version."""
    rank, kind = body.number(1), body.number(1)
    body.take(5)
    address = _allocated(objects, body) if kind != _COMPACT else None
    if kind == _CHUNKED:
        chunk_shape = _chunk_shape(objects, held, body, rank - 1, 4)
        return _Layout(kind, True, address, chunk_shape=chunk_shape)
    sizes = tuple(body.number(4) for _ in range(rank))
    if kind == _COMPACT:
        return _Layout(kind, inside=body.take(body.number(4)))
    return _Layout(kind, address=address, length=product(sizes) * itemsize)


def _allocated(objects: Objects, body: Cursor) -> int | None:
    address = objects.address(body)
    return None if objects.is_undefined(address) else address


def _chunk_shape(
    objects: Objects, held: Dataset, body: Cursor, rank: int, width: int
) -> tuple[int, ...]:
    if rank != len(held.shape):
        raise objects.damage(f"{held.path} has chunks of another rank")
    shape = tuple(body.number(width) for _ in range(rank))
    if 0 in shape:
        raise objects.damage(f"{held.path} has chunks without elements")
    return shape


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
    layout = _layout(objects, held, dtype.itemsize)
    if layout.kind not in (_COMPACT, _CONTIGUOUS, _CHUNKED):
        raise UnsupportedError(objects.path, f"{held.path} {_FOREIGN}")
    if layout.kind != _COMPACT and layout.address is None:
        return _native(_filled(objects, held, dtype))
    if layout.kind == _CHUNKED:
        if not layout.is_tree:
            raise LibraryNeededError(objects.path, f"{held.path} is kept in chunks of a newer kind")
        return _chunked(objects, held, dtype, layout)
    size = product(held.shape) * dtype.itemsize
    data = layout.inside
    if layout.address is not None:
        data = objects.array_bytes(layout.address, min(size, layout.length))
    if len(data) < size:
        raise objects.damage(f"{held.path} claims {size} bytes, it has {len(data)}")
    return _native(np.frombuffer(data[:size], dtype).reshape(held.shape))


def _filled(objects: Objects, held: Dataset, dtype: np.dtype[np.generic]) -> Array:
    """An array of the dataset's shape in which every element is the fill value."""
    if held.fill is None:
        raise LibraryNeededError(objects.path, f"{held.path} shares its fill value")
    if held.fill and len(held.fill) != dtype.itemsize:
        raise objects.damage(f"{held.path} has a fill value of another type")
    value = np.frombuffer(held.fill or bytes(dtype.itemsize), dtype)
    array: Array = np.empty(held.shape, dtype)
    array[...] = value[0]
    return array


def extents(objects: Objects, held: Dataset) -> list[Range]:
    """Where a dataset's bytes lie: in one piece, or chunk by chunk.

    None where nothing was allocated, or they are among a header's, in another file, or nobody
    but HDF5 knows.

    Raises:
        DamagedError: the tree of chunks contradicts itself.
    """
    dtype = numpy_type(held)
    if dtype is None or held.is_foreign or 0 in held.shape:
        return []
    try:
        layout = _layout(objects, held, dtype.itemsize)
    except LibraryNeededError:
        return []
    if layout.address is None:
        return []
    is_plain = held.order == "<" or dtype.itemsize == 1
    places: list[Range | None] = []
    if layout.kind == _CONTIGUOUS:
        whole = tuple(slice(0, size) for size in held.shape) if is_plain else None
        places = [objects.place(layout.address, product(held.shape) * dtype.itemsize, whole)]
    elif layout.is_tree:
        chunks = _chunks(objects, held, layout, layout.address)
        # Chunks that are missing have no place to write to.
        is_plain = is_plain and not held.filters and _are_all(chunks, held, layout)
        for chunk in chunks:
            part = chunk.part(layout.chunk_shape, held.shape)
            is_whole = tuple(span.stop - span.start for span in part) == layout.chunk_shape
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


def _chunked(
    objects: Objects, held: Dataset, dtype: np.dtype[np.generic], layout: _Layout
) -> Array:
    """Put an array together from its chunks."""
    chunk_shape = layout.chunk_shape
    chunks = [] if layout.address is None else _chunks(objects, held, layout, layout.address)
    are_all = _are_all(chunks, held, layout)
    array: Array = np.empty(held.shape, dtype) if are_all else _filled(objects, held, dtype)
    size = product(chunk_shape) * dtype.itemsize
    if chunks and size > max(_LARGEST_CHUNK, _MOST_TIMES * objects.size):
        raise objects.damage(f"{held.path} claims chunks of {size} bytes")
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


def _chunks(objects: Objects, held: Dataset, layout: _Layout, root: int) -> list[_Chunk]:
    """The chunks of an array that were allocated."""
    chunks = _tree(objects, held, root, layout.chunk_shape)
    return list({chunk.position: chunk for chunk in chunks}.values())


def _are_all(chunks: list[_Chunk], held: Dataset, layout: _Layout) -> bool:
    """Return True if the chunks make up the whole array."""
    pairs = zip(held.shape, layout.chunk_shape, strict=True)
    return len(chunks) == product(tuple(-(-whole // part) for whole, part in pairs))


def _tree(
    objects: Objects, held: Dataset, root: int, chunk_shape: tuple[int, ...]
) -> Iterator[_Chunk]:
    """The chunks that a tree lists."""
    rank = len(chunk_shape)
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
                if any(at % part for at, part in zip(position, chunk_shape, strict=True)):
                    raise objects.damage(f"{held.path} has chunks that overlap")
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
