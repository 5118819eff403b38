"""TensorFlow Lite: a flatbuffer of operations and their constants.

Flatbuffers, read in place.

    file     u32 where the root table is, 4 bytes of identifier
    table    i32 how far before it its vtable is, then its fields
    vtable   u16 its own bytes, u16 the table's, a u16 for each field: where it is in the table; 0,
             or beyond the vtable, where the field has its default
    vector   u32 count, then the elements; a string is one of bytes

All is little-endian. A field that is a table, a vector or a string holds a u32, which counts from
where it stands to what is meant.

Source: https://flatbuffers.dev/internals.

What a TensorFlow Lite model holds: the constants of its operations, and no batch norm.

The converter folds each batch norm into the weights and bias of the operation beside it, or into
a multiplication and an addition (tensorflow/compiler/mlir/lite/transforms/optimize.cc,
prepare_tf.cc). What is read of the tables in tensorflow/compiler/mlir/lite/schema/schema.fbs:

    Model         2 subgraphs, 4 buffers
    SubGraph      0 tensors
    Tensor        0 shape, 1 type, 2 number of its buffer, 3 name, 4 quantization, 6 sparsity
    Quantization  2 scale, 3 zero point, 4 kind of details, 6 axis of the scales
    Buffer        0 bytes, or 1 offset in the file and 2 length of those that lie behind the rest

A quantized number is `scale * (number - zero point)`, with one scale for all, or one for each
index along an axis. It is shown as float32, as TensorFlow Lite's Dequantize gives it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.contents import Contents
from bnstat.formats.dtypes import (
    TFLITE,
    Scales,
    bytes_needed,
    extents,
    find_dtype,
    from_little_endian,
    numpy_dtype,
)
from bnstat.model import Source, Variable
from bnstat.storage.files import File, Range

_IDENTIFIER: Final = b"TFL3"
_AT: Final = 4


def matches(file: File) -> bool:
    """Whether the file is a TensorFlow Lite model."""
    return file.head(_AT + len(_IDENTIFIER))[_AT:] == _IDENTIFIER


def open_contents(file: File, source: Source) -> Contents:
    """The constants of a file that `matches`. Raises as `contents_of` does."""
    return contents_of(file, source)


I8, U8, I32, U32, U64 = (struct.Struct(f"<{each}") for each in "bBiIQ")
_VTABLE: Final = struct.Struct("<HH")

_PAGE: Final = 1 << 12
_MOST_TIMES: Final = 8
_MOST: Final = 1 << 25
"""So many times its size may be read of a file in all, and so many bytes: an honest one says
little twice, and its tables are small."""


class Flatbuffer:
    """The tables of a file, read page by page."""

    def __init__(self, file: File) -> None:
        self.file = file
        self._pages: dict[int, bytes] = {}
        self._left = min(_MOST_TIMES * file.size, _MOST)

    def root(self) -> Table:
        """The table that all others are below.

        Raises:
            DamagedError: there is none.
        """
        return self.table(self.number(0, U32))

    def table(self, at: int) -> Table:
        """The table at an offset. Raises as `root` does."""
        vtable = at - self.number(at, I32)
        size, extent = _VTABLE.unpack(self.read(vtable, _VTABLE.size))
        if size < _VTABLE.size:
            raise self.damaged()
        fields = self.read(vtable + _VTABLE.size, size - _VTABLE.size & ~1)
        return Table(self, at, extent, np.frombuffer(fields, "<u2").tolist())

    def number(self, at: int, form: struct.Struct) -> int:
        """The number at an offset."""
        return int(form.unpack(self.read(at, form.size))[0])

    def read(self, at: int, length: int) -> bytes:
        """The bytes at an offset.

        Raises:
            DamagedError: the file does not have them, or has far more of them than it is large.
        """
        self._left -= length
        if not 0 <= at <= self.file.size - length or self._left < 0:
            raise self.damaged()
        first, last = at // _PAGE, (at + length - 1) // _PAGE
        if last > first + 1:
            return self.file.read(at, length)
        data = b"".join(self._page(number) for number in range(first, last + 1))
        return data[at - first * _PAGE :][:length]

    def damaged(self) -> DamagedError:
        """The error for offsets that lead nowhere."""
        return DamagedError(
            self.file.path,
            "is cut short, or has offsets that lead nowhere",
            "copy or download it again",
        )

    def _page(self, number: int) -> bytes:
        if number not in self._pages:
            start = number * _PAGE
            self._pages[number] = self.file.read(start, min(_PAGE, self.file.size - start))
        return self._pages[number]


@dataclass(frozen=True, slots=True)
class Table:
    """A table. All of its methods raise `DamagedError` where the file does not have what it says.

    Attributes:
        within: the file.
        at: where it begins.
        size: its bytes.
        fields: where its fields begin in it, by their number; 0 where one is left out.
    """

    within: Flatbuffer
    at: int
    size: int
    fields: Sequence[int]

    def number(self, field: int, form: struct.Struct, default: int = 0) -> int:
        """A number of one of the forms of this module."""
        place = self._place(field, form.size)
        return default if place is None else self.within.number(place, form)

    def table(self, field: int) -> Table | None:
        """The table that a field leads to; None where it is left out."""
        at = self._target(field)
        return None if at is None else self.within.table(at)

    def tables(self, field: int) -> Iterator[Table]:
        """The tables of a vector, in order."""
        start, count = self.vector(field, U32.size)
        for place in range(start, start + count * U32.size, U32.size):
            yield self.within.table(place + self.within.number(place, U32))

    def numbers(self, field: int, dtype: str) -> NDArray[np.generic]:
        """The numbers of a vector; `dtype` is NumPy's, little-endian."""
        kind = np.dtype(dtype)
        start, count = self.vector(field, kind.itemsize)
        return np.frombuffer(self.within.read(start, count * kind.itemsize), kind)

    def text(self, field: int) -> str:
        """A string; empty where it is left out."""
        return self.numbers(field, "u1").tobytes().decode("utf-8", "replace")

    def vector(self, field: int, width: int) -> tuple[int, int]:
        """Where the elements of a vector begin, and how many there are, of so many bytes each."""
        at = self._target(field)
        if at is None:
            return 0, 0
        count = self.within.number(at, U32)
        if count * width > self.within.file.size - at - U32.size:
            raise self.within.damaged()
        return at + U32.size, count

    def _place(self, field: int, width: int) -> int | None:
        inside = self.fields[field] if field < len(self.fields) else 0
        if inside + width > self.size and inside:
            raise self.within.damaged()
        return self.at + inside if inside else None

    def _target(self, field: int) -> int | None:
        place = self._place(field, U32.size)
        return None if place is None else place + self.within.number(place, U32)


_MOST_DIMS: Final = 32
_UNNAMED: Final = "tensor"

_FOLDED: Final = (
    "TensorFlow Lite's converter folds batch norm into the operations beside it: "
    "nothing of it is left to show; look at the model that was converted "
    "(bnstat diff tells whether this one does the same)"
)


def contents_of(file: File, source: Source) -> Contents:
    """The constants of a model by their names, and why there is no batch norm among them.

    One that is called like another is told apart by a `#2`.

    Raises:
        DamagedError: the file is truncated, or contradicts itself.
    """
    variables: dict[str, Variable] = {}
    uses: dict[str, int] = {}
    for constant in _constants(Flatbuffer(file)):
        name = constant.name or _UNNAMED
        uses[name] = uses.get(name, 0) + 1
        key = name if uses[name] == 1 else f"{name}#{uses[name]}"
        variables.setdefault(key, _variable(key, constant))
    return Contents(replace(source, format="tflite"), variables, notes=[_FOLDED])


@dataclass(frozen=True, slots=True)
class _Constant:
    """A tensor whose numbers are in the file: `length` bytes from `start` on."""

    file: File
    start: int
    length: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    scales: Scales | None
    is_plain: bool

    @property
    def where(self) -> str:
        return f"{self.file.path}: {self.name}"

    def read(self) -> NDArray[np.generic]:
        """The numbers, as float32 where they are quantized."""
        stored = self._stored()
        return stored if self.scales is None else self.scales.unpack(stored, self.where)

    def step(self) -> NDArray[np.generic]:
        """How far apart quantized numbers are; see `Variable.step`."""
        return np.zeros(()) if self.scales is None else self.scales.step(self.shape, self.where)

    def extents(self) -> Sequence[Range]:
        """Where the bytes are stored; see `Variable.extents`."""
        dtype = None if self.scales is not None or self.dtype == "int4" else find_dtype(self.dtype)
        return extents(self.file, self.start, self.length, dtype, self.shape)

    def _stored(self) -> NDArray[np.generic]:
        if not self.is_plain:
            raise UnsupportedError(self.where, "is stored sparsely or in blocks, which is not read")
        dtype = numpy_dtype(self.dtype, self.where)
        needed = bytes_needed(self.shape, dtype)
        is_packed = self.dtype == "int4"
        if self.length != ((needed + 1) // 2 if is_packed else needed):
            raise DamagedError(self.where, f"{self.length} bytes do not fit its shape")
        data = self.file.read(self.start, self.length)
        if is_packed:
            pairs = np.frombuffer(data, np.int8)
            both = np.stack([pairs << 4 >> 4, pairs >> 4], axis=-1)
            return both.ravel()[:needed].reshape(self.shape)
        return from_little_endian(data, dtype, self.shape)


def _variable(key: str, constant: _Constant) -> Variable:
    is_scaled = constant.scales is not None
    return Variable(
        key,
        key,
        "float32" if is_scaled else constant.dtype,
        constant.shape,
        constant.read,
        constant.extents,
        constant.step if is_scaled else None,
    )


def _constants(flatbuffer: Flatbuffer) -> Iterator[_Constant]:
    """The tensors of all graphs that have numbers, in stored order."""
    model = flatbuffer.root()
    buffers = [_span(buffer) for buffer in model.tables(4)]
    for graph in model.tables(2):
        for tensor in graph.tables(0):
            number = tensor.number(2, U32)
            start, length = buffers[number] if number < len(buffers) else (0, 0)
            if length:
                yield _constant(tensor, start, length)


def _span(buffer: Table) -> tuple[int, int]:
    """Where the bytes of a buffer lie, and how many there are."""
    offset, size = buffer.number(1, U64), buffer.number(2, U64)
    # 1 says that it will be set, which a finished file has done.
    if offset <= 1:
        return buffer.vector(0, 1)
    if offset + size > buffer.within.file.size:
        raise buffer.within.damaged()
    return offset, size


def _constant(tensor: Table, start: int, length: int) -> _Constant:
    file, name = tensor.within.file, tensor.text(3)
    shape, code = tuple(tensor.numbers(0, "<i4").tolist()), tensor.number(1, I8)
    if len(shape) > _MOST_DIMS or min(shape, default=0) < 0:
        raise DamagedError(f"{file.path}: {name}", "is of no possible shape")
    quantization = tensor.table(4)
    is_plain = tensor.table(6) is None and not (quantization and quantization.number(4, U8))
    dtype = TFLITE.get(code, f"type {code}")
    return _Constant(
        file,
        start,
        length,
        name,
        dtype,
        shape,
        _scales(quantization, f"{file.path}: {name}") if quantization else None,
        is_plain,
    )


def _scales(quantization: Table, where: str) -> Scales | None:
    scales = quantization.numbers(2, "<f4").astype(np.float64)
    zeros = quantization.numbers(3, "<i8").astype(np.float64)
    if not scales.size:
        return None
    if zeros.size not in (0, 1, scales.size) or not np.isfinite(scales).all():
        raise DamagedError(where, "has other zero points than scales")
    return Scales(scales, zeros if zeros.size else np.zeros(1), quantization.number(6, I32))
