"""HDF5 datasets as their headers describe them: element types, shapes, filters.

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

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

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
)

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
