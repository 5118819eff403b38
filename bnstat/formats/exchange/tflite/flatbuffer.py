"""Flatbuffers, read in place.

    file     u32 where the root table is, 4 bytes of identifier
    table    i32 how far before it its vtable is, then its fields
    vtable   u16 its own bytes, u16 the table's, a u16 for each field: where it is in the table; 0,
             or beyond the vtable, where the field has its default
    vector   u32 count, then the elements; a string is one of bytes

All is little-endian. A field that is a table, a vector or a string holds a u32, which counts from
where it stands to what is meant.

Source: https://flatbuffers.dev/internals.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import DamagedError
from bnstat.storage.files import File

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
