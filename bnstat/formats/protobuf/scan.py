"""Protocol buffers read in place: where a message's fields lie in a file, without their bytes.

A file of a gigabyte is mostly the numbers in it. Walked through by its lengths it costs what its
structure costs; the numbers are read when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from bnstat.formats.protobuf.wire import WireError, varint
from bnstat.storage.files import File

_FIRST_PIECE = 1 << 12
_LARGEST_PIECE = 1 << 16

_LONGEST_HEAD = 20
"""Bytes of the two varints before a field's value."""


class Window:
    """A file's bytes by range, read in larger pieces: larger ones the longer it goes straight on.

    Attributes:
        file: the file.
    """

    def __init__(self, file: File) -> None:
        self.file = file
        self._start = 0
        self._data = b""
        self._piece = _FIRST_PIECE

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`.

        Raises:
            DamagedError: the file does not have them.
        """
        held = self._start + len(self._data)
        if start < self._start or end > held:
            goes_on = self._start <= start <= held
            self._piece = min(2 * self._piece, _LARGEST_PIECE) if goes_on else _FIRST_PIECE
            wanted = max(end, min(start + self._piece, self.file.size))
            self._data = self.file.read(start, wanted - start)
            self._start = start
        return self._data[start - self._start : end - self._start]


class Field(NamedTuple):
    """A field of a message.

    Attributes:
        number: its number.
        kind: its wire type.
        begin: where it begins.
        start, end: where its value lies; of type 2, without the length.
    """

    number: int
    kind: int
    begin: int
    start: int
    end: int


def scan(window: Window, position: int, end: int) -> Iterator[Field]:
    """The fields of the message that lies between two positions.

    The last one may end beyond the message; the next step raises then.

    Raises:
        WireError: the bytes are no message.
    """
    while position < end:
        head = window.read(position, min(position + _LONGEST_HEAD, end))
        tag, used = varint(head, 0)
        start = position + used
        if tag & 7 == 0:
            stop = position + varint(head, used)[1]
        elif tag & 7 == 2:
            length, used = varint(head, used)
            start = position + used
            stop = start + length
        elif tag & 7 in (1, 5):
            stop = start + (8 if tag & 7 == 1 else 4)
        else:
            raise WireError(f"a field of unknown wire type {tag & 7}")
        yield Field(tag >> 3, tag & 7, position, start, stop)
        if stop > end:
            raise WireError("a field is longer than its message")
        position = stop
