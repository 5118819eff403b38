"""The arrays of HDF5 datasets: their element types, and where their bytes are.

    datatype       class and version, three bytes of flags, size (u32), properties
    layout v3, v4  version, class: 0, in the header: size (u16), bytes
                                   1, in one piece: address, size
                                   2, in chunks: rank + 1, address of a tree, the chunk's shape
                                      and an element's size (u32 each); v4 has other trees
    filters        version, count, then filters of id (u16), [length of name (u16)], flags (u16),
                   count of parameters (u16), [name], parameters (u32 each)
    chunk tree     "TREE", type 1, level, entries (u16), two addresses of siblings, then entries
                   of size (u32), filters left out (u32), position (u64 each, and one more),
                   address of a chunk or of the tree below

Keras stores every array in one piece. Chunks, which other tools make of it when they compress a
file, are read where they are kept as HDF5 1.6 to 1.8 does by default.

Source: HDF5 File Format Specification 3.0, sections III.A.1, IV.A.2.d, i and l.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from bnstat.errors import UnsupportedError
from bnstat.formats.hdf5.objects import (
    DATASPACE,
    DATATYPE,
    EXTERNAL,
    FILTERS,
    LAYOUT,
    Cursor,
    Message,
    Objects,
    product,
)
from bnstat.model import Array

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

_COMPACT, _CONTIGUOUS, _CHUNKED, _VIRTUAL = range(4)
_DEFLATE, _SHUFFLE, _FLETCHER = 1, 2, 3
_FOREIGN: Final = "refers to data outside of the file, which is never followed"


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
        is_foreign: whether the bytes are in other files.
    """

    path: str
    dtype: str
    order: _Order
    shape: tuple[int, ...]
    layout: bytes
    filters: tuple[int, ...]
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
    return Dataset(path, *element, shape, layout, filters, EXTERNAL in held)


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


def _chunked(objects: Objects, held: Dataset, dtype: np.dtype[np.generic], layout: Cursor) -> Array:
    """Put an array together from its chunks."""
    rank = layout.number(1) - 1
    root = objects.address(layout)
    chunk_shape = tuple(layout.number(4) for _ in range(rank))
    if rank != len(held.shape) or 0 in chunk_shape:
        raise objects.damage(f"{held.path} has chunks of another rank")
    size = product(chunk_shape) * dtype.itemsize
    expected = product(
        tuple(-(-whole // part) for whole, part in zip(held.shape, chunk_shape, strict=True))
    )
    # A chunk takes more than 24 bytes to tell of.
    if expected * 24 > objects.size:
        raise objects.damage(f"{held.path} claims {expected} chunks")
    chunks = dict(_chunks(objects, held, root, rank))
    if len(chunks) != expected:
        raise objects.damage(f"{held.path} has {len(chunks)} of {expected} chunks")
    array: Array = np.empty(held.shape, dtype)
    for position, (address, length, skipped) in chunks.items():
        data = objects.array_bytes(address, length)
        for place in reversed(range(len(held.filters))):
            if not skipped >> place & 1:
                data = _undone(objects, held, held.filters[place], data, size, dtype.itemsize)
        if len(data) < size:
            raise objects.damage(f"{held.path} has a chunk that is too short")
        chunk = np.frombuffer(data[:size], dtype).reshape(chunk_shape)
        inside = tuple(
            slice(0, min(part, whole - at))
            for part, whole, at in zip(chunk_shape, held.shape, position, strict=True)
        )
        outside = tuple(
            slice(at, at + part.stop) for at, part in zip(position, inside, strict=True)
        )
        array[outside] = chunk[inside]
    return _native(array)


def _chunks(
    objects: Objects, held: Dataset, root: int, rank: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, int, int]]]:
    """Position -> address, size and left-out filters, of all chunks."""
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
                yield position, (child, size, skipped)
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


def _native(array: Array) -> Array:
    return array.astype(array.dtype.newbyteorder("="), copy=False)
