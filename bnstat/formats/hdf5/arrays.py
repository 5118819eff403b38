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

HDF5 datasets as their headers describe them: element types, shapes, filters.

    datatype  class and version, three bytes of flags, size (u32), properties
    filters   version, count, then filters of id (u16), [length of name (u16)], flags (u16),
              count of parameters (u16), [name], parameters (u32 each)
    fill, old      size (u32), the value
    fill v1, v2    version, two bytes of times, defined, size (u32), the value; v2 ends after
                   `defined` if that is 0
    fill v3        version, flags (0x20: defined), size (u32), the value

Source: HDF5 File Format Specification 3.0, sections IV.A.2.d, e, f and l.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np

from bnstat.errors import UnsupportedError
from bnstat.formats.hdf5.objects import (
    DATASPACE,
    DATATYPE,
    EXTERNAL,
    FILL,
    FILTERS,
    LAYOUT,
    OLD_FILL,
    Cursor,
    Message,
    Objects,
    product,
)
from bnstat.model import Array
from bnstat.storage.files import Range

_INTEGER, _FLOAT, _OPAQUE, _ENUMERATION = 0, 1, 5, 8
_OTHERS: Final = {2: "time", 3: "text", 4: "bits", 6: "compound", 7: "reference", 9: "variable"}
_FLOATS: Final = {
    (2, 5, 10): "float16",
    (2, 8, 7): "bfloat16",
    (4, 8, 23): "float32",
    (8, 11, 52): "float64",
}
"""Size, bits of the exponent, bits of the mantissa -> name."""

_NUMBERS: Final = {
    "bool",
    *(f"{kind}{8 * size}" for kind in ("int", "uint") for size in (1, 2, 4, 8)),
    *_FLOATS.values(),
}
_Order = Literal["<", ">"]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset as its header describes it.

    Attributes:
        path: its path in the file.
        dtype: NumPy's or ml_dtypes' name of the element type in the machine's byte order; another
            word where the elements are no numbers.
        order: the byte order of the file, `<` or `>`.
        shape: the dimensions.
        layout: the message that tells where the bytes are.
        filters: what chunks were put through, first to last.
        fill: the element that stands wherever no bytes were allocated, as the file stores it;
            empty for zero, None if it is stored in another object.
        is_foreign: whether the bytes are in other files.
    """

    path: str
    dtype: str
    order: _Order
    shape: tuple[int, ...]
    layout: bytes
    filters: tuple[int, ...]
    fill: bytes | None
    is_foreign: bool


def dataset(objects: Objects, path: str, messages: list[Message]) -> Dataset | None:
    """The dataset that an object's messages describe; None where it is none or has no shape.

    Raises:
        DamagedError: a message is cut short.
    """
    held = {message.kind: message for message in messages}
    if LAYOUT not in held or DATASPACE not in held or DATATYPE not in held:
        return None
    shape = objects.dimensions(held[DATASPACE].body) if not held[DATASPACE].is_shared else None
    if shape is None:
        return None
    datatype = held[DATATYPE]
    element: tuple[str, _Order] = ("shared", "<")
    if not datatype.is_shared:
        element = _element(objects, datatype.body)
    filters = _filters(objects, held[FILTERS].body) if FILTERS in held else ()
    layout = held[LAYOUT].body
    fill = _fill(objects, held)
    return Dataset(path, *element, shape, layout, filters, fill, EXTERNAL in held)


def _fill(objects: Objects, held: Mapping[int, Message]) -> bytes | None:
    """The bytes of a dataset's fill value. The newer message takes precedence."""
    message = held.get(FILL) or held.get(OLD_FILL)
    if message is None:
        return b""
    if message.is_shared:
        return None
    body = Cursor(message.body, objects.path)
    if message.kind == FILL:
        version, flags = body.number(1), body.number(1)
        if version == 3:
            is_stored = bool(flags & 0x20)
        else:
            body.take(1)
            is_stored = body.number(1) == 1
        if not is_stored:
            return b""
    size = body.number(4)
    # Libraries before HDF5 1.8 store an undefined value with a negative size.
    return body.take(size) if size < 1 << 31 else b""


def _filters(objects: Objects, data: bytes) -> tuple[int, ...]:
    """The numbers of a pipeline's filters."""
    body = Cursor(data, objects.path)
    version, count = body.number(1), body.number(1)
    body.take(6 if version == 1 else 0)
    found = []
    for _ in range(count):
        kind = body.number(2)
        has_name = version == 1 or kind >= 256
        name_size = body.number(2) if has_name else 0
        body.take(2)
        parameters = body.number(2)
        body.take(name_size + -name_size % (8 if version == 1 else 1))
        body.take(4 * parameters)
        body.take(4 if version == 1 and parameters % 2 else 0)
        found.append(kind)
    return tuple(found)


def _element(objects: Objects, data: bytes) -> tuple[str, _Order]:
    """Name and byte order of an element type.

    HDF5 had no bfloat16 until lately: h5py stores it as opaque pairs of bytes, as it does
    nothing else of Keras.
    """
    datatype = Cursor(data, objects.path)
    kind, bits = datatype.number(1) & 0x0F, datatype.take(3)
    size = datatype.number(4)
    order: _Order = ">" if bits[0] & 1 else "<"
    if kind == _INTEGER and size in (1, 2, 4, 8):
        return f"{'int' if bits[0] & 0x08 else 'uint'}{8 * size}", order
    if kind == _FLOAT and not bits[0] & 0x40:
        datatype.take(5)
        exponent, _, mantissa = datatype.number(1), datatype.number(1), datatype.number(1)
        return _FLOATS.get((size, exponent, mantissa), "floats of another kind"), order
    if kind == _ENUMERATION:
        members = int.from_bytes(bits[:2], "little")
        return (
            ("bool", order)
            if (size, members) == (1, 2)
            else _element(objects, datatype.take(datatype.left))
        )
    if kind == _OPAQUE:
        return ("bfloat16" if size == 2 else "opaque"), "<"
    return _OTHERS.get(kind, "unknown"), "<"


def numpy_type(held: Dataset) -> np.dtype[np.generic] | None:
    """The elements' dtype in the file; None where they are no numbers."""
    if held.dtype == "bfloat16":
        import ml_dtypes

        dtype: np.dtype[np.generic] = np.dtype(ml_dtypes.bfloat16)
    elif held.dtype in _NUMBERS:
        dtype = np.dtype(held.dtype)
    else:
        return None
    return dtype.newbyteorder(held.order)


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
