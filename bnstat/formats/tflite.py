"""TensorFlow Lite: a flatbuffer of operations and constants, without batch norm.

    file     u32 offset of the root table, 4 bytes of identifier
    table    i32 distance back to its vtable, then its fields
    vtable   u16 size of the vtable, u16 size of the table, then a u16 for each field: the offset of
             the field in the table, or 0 if the field has its default. Fields at the end that have
             their default may be missing from the vtable.
    vector   u32 count, then the elements; a string is a vector of bytes

All numbers are little-endian. A field that is a table, a vector or a string is a u32: the distance
from its own position to the target.

The converter folds each batch norm into the weights and bias of the operation beside it, or into a
multiplication and an addition (tensorflow/compiler/mlir/lite/transforms/optimize.cc,
prepare_tf.cc). bnstat reads these tables and, by number, these fields of
tensorflow/compiler/mlir/lite/schema/schema.fbs:

    Model         2 subgraphs, 4 buffers
    SubGraph      0 tensors
    Tensor        0 shape, 1 type, 2 number of its buffer, 3 name, 4 quantization, 6 sparsity
    Quantization  2 scale, 3 zero point, 4 kind of details, 6 axis of the scales
    Buffer        0 bytes, or 1 offset in the file and 2 length of bytes behind the flatbuffer

A quantized number is `scale * (number - zero point)`, with one scale for all numbers or one for
each index along an axis. bnstat shows this value as float32, like TensorFlow Lite's Dequantize.

Source of the layout: https://flatbuffers.dev/internals.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Final

import numpy as np

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.contents import Contents
from bnstat.formats.dtypes import Scales, as_shape, by_code, contiguous_variable, extents
from bnstat.model import Array, Source, Variable
from bnstat.storage.files import File

DTYPES: Final = by_code(
    """
    float32 float16 int32 uint8 int64 - bool int16 complex64 int8 float64 complex128 uint64 - -
    uint32 uint16 int4 bfloat16
    """
)
"""Value of `TensorType` -> name; two int4 elements share a byte."""

I8, U8, I32, U32, U64 = (struct.Struct(f"<{each}") for each in "bBiIQ")
_VTABLE: Final = struct.Struct("<HH")

_PAGE: Final = 1 << 12
_MOST_TIMES: Final = 8
_MOST: Final = 1 << 25
"""Limits on the bytes that are read from tables: a multiple of the file's size, and a fixed number.
Valid files stay below both, because their tables are small and not shared."""
_FOLDED: Final = (
    "TensorFlow Lite's converter folds batch norm into the operations beside it, so this file "
    "contains none; look at the model that was converted "
    "(bnstat diff shows whether both compute the same)"
)


def matches(file: File) -> bool:
    """Return True for a TensorFlow Lite model."""
    return file.head(8)[4:] == b"TFL3"


def open_contents(file: File, source: Source) -> Contents:
    """Return the constants as variables; repeated names become keys such as `name#2`."""
    variables: dict[str, Variable] = {}
    uses: dict[str, int] = {}
    flat = Flatbuffer(file)
    model = flat.table(flat.number(0, U32))
    buffers = [_span(buffer) for buffer in model.tables(4)]
    for graph in model.tables(2):
        for tensor in graph.tables(0):
            number = tensor.number(2, U32)
            start, length = buffers[number] if number < len(buffers) else (0, 0)
            if not length:
                continue
            name = tensor.numbers(3, "u1").tobytes().decode("utf-8", "replace") or "tensor"
            uses[name] = uses.get(name, 0) + 1
            key = name if uses[name] == 1 else f"{name}#{uses[name]}"
            variables.setdefault(key, _variable(key, tensor, start, length))
    return Contents(replace(source, format="tflite"), variables, notes=[_FOLDED])


class Flatbuffer:
    """Reads the tables of a file, page by page."""

    def __init__(self, file: File) -> None:
        self.file = file
        self._pages: dict[int, bytes] = {}
        self._left = min(_MOST_TIMES * file.size, _MOST)

    def table(self, at: int) -> Table:
        vtable = at - self.number(at, I32)
        size, extent = _VTABLE.unpack(self.read(vtable, _VTABLE.size))
        if size < _VTABLE.size:
            raise self.damaged()
        fields = self.read(vtable + _VTABLE.size, size - _VTABLE.size & ~1)
        return Table(self, at, extent, np.frombuffer(fields, "<u2").tolist())

    def number(self, at: int, form: struct.Struct) -> int:
        return int(form.unpack(self.read(at, form.size))[0])

    def read(self, at: int, length: int) -> bytes:
        """Return bytes; raise `DamagedError` outside the file, or if all reads exceed a limit."""
        self._left -= length
        if not 0 <= at <= self.file.size - length or self._left < 0:
            raise self.damaged()
        first, last = at // _PAGE, (at + length - 1) // _PAGE
        for number in range(first, last + 1):
            if number not in self._pages:
                start = number * _PAGE
                self._pages[number] = self.file.read(start, min(_PAGE, self.file.size - start))
        data = b"".join(self._pages[number] for number in range(first, last + 1))
        return data[at - first * _PAGE :][:length]

    def damaged(self) -> DamagedError:
        problem = "is truncated, or contains invalid offsets"
        return DamagedError(self.file.path, problem, "copy or download it again")


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the methods raise `DamagedError` if an offset leads out of the table or the file."""

    within: Flatbuffer
    at: int
    size: int
    fields: Sequence[int]
    """The offset of each field in the table; 0 for an omitted field."""

    def number(self, field: int, form: struct.Struct) -> int:
        """Return the number in a field; 0 if the field is omitted."""
        inside = self.fields[field] if field < len(self.fields) else 0
        if not inside:
            return 0
        if inside + form.size > self.size:
            raise self.within.damaged()
        return self.within.number(self.at + inside, form)

    def table(self, field: int) -> Table | None:
        """Return the table that a field points to, or None if the field is omitted."""
        at = self._target(field)
        return None if at is None else self.within.table(at)

    def tables(self, field: int) -> Iterator[Table]:
        """Yield the tables in the vector that a field points to."""
        start, count = self.vector(field, U32.size)
        for place in range(start, start + count * U32.size, U32.size):
            yield self.within.table(place + self.within.number(place, U32))

    def numbers(self, field: int, dtype: str) -> Array:
        """Return the numbers in a field's vector; an empty array if the field is omitted."""
        kind = np.dtype(dtype)
        start, count = self.vector(field, kind.itemsize)
        return np.frombuffer(self.within.read(start, count * kind.itemsize), kind)

    def vector(self, field: int, width: int) -> tuple[int, int]:
        """Return (offset, count) of a vector's elements; (0, 0) if the field is omitted."""
        at = self._target(field)
        if at is None:
            return 0, 0
        count = self.within.number(at, U32)
        if count * width > self.within.file.size - at - U32.size:
            raise self.within.damaged()
        return at + U32.size, count

    def _target(self, field: int) -> int | None:
        distance = self.number(field, U32)
        return self.at + self.fields[field] + distance if distance else None


def _span(buffer: Table) -> tuple[int, int]:
    """Return (offset in the file, length) of a buffer's bytes."""
    offset, size = buffer.number(1, U64), buffer.number(2, U64)
    # 1 is a placeholder for an offset that is set when the file is finished.
    if offset <= 1:
        return buffer.vector(0, 1)
    if offset + size > buffer.within.file.size:
        raise buffer.within.damaged()
    return offset, size


def _variable(key: str, tensor: Table, start: int, length: int) -> Variable:
    file = tensor.within.file
    where = f"{file.path}: {key}"
    shape, code = as_shape(tensor.numbers(0, "<i4").tolist()), tensor.number(1, I8)
    if shape is None:
        raise DamagedError(where, "has an invalid shape")
    dtype = DTYPES.get(code, f"type {code}")
    plain = contiguous_variable(file, start, length, dtype, shape, key)
    quantization = tensor.table(4)
    is_sparse = tensor.table(6) is not None or (quantization and quantization.number(4, U8))

    def stored() -> Array:
        if is_sparse:
            problem = "is stored sparsely or in blocks; bnstat does not read such tensors"
            raise UnsupportedError(where, problem)
        if dtype != "int4":
            return plain.read()
        count = prod(shape)
        if length != (count + 1) // 2:
            raise DamagedError(where, f"{length} bytes do not fit its shape")
        pairs = np.frombuffer(file.read(start, length), np.int8)
        both = np.stack([pairs << 4 >> 4, pairs >> 4], axis=-1)
        return both.ravel()[:count].reshape(shape)

    finder = partial(extents, file, start, length, None, shape)
    scales = _scales(quantization, where) if quantization else None
    if scales is not None:
        return replace(
            plain,
            dtype="float32",
            reader=lambda: scales.unpack(stored(), where),
            finder=finder,
            stepper=lambda: scales.step(shape, where),
        )
    return replace(plain, reader=stored, finder=finder) if is_sparse or dtype == "int4" else plain


def _scales(quantization: Table, where: str) -> Scales | None:
    scales = quantization.numbers(2, "<f4").astype(np.float64)
    zeros = quantization.numbers(3, "<i8").astype(np.float64)
    if not scales.size:
        return None
    if zeros.size not in (0, 1, scales.size) or not np.isfinite(scales).all():
        raise DamagedError(where, "has invalid scales, or a wrong number of zero points")
    return Scales(scales, zeros if zeros.size else np.zeros(1), quantization.number(6, I32))
