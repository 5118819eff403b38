"""The wire format of protocol buffers and SSTables: little-endian base-128 varints and fields.

A message is a run of fields, each a varint `number << 3 | type`, then by type: 0 a varint,
1 eight bytes, 2 a varint length and as many bytes, 5 four bytes
(https://protobuf.dev/programming-guides/encoding). The few small messages that are read by the
hundred thousand are read with this; `protos` reads all others.

Protocol buffers read in place: where a message's fields lie in a file, without their bytes.

A file of a gigabyte is mostly the numbers in it. Walked through by its lengths it costs what its
structure costs; the numbers are read when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from bnstat.errors import DamagedError
from bnstat.storage.files import File

LARGEST_MESSAGE = 1 << 31
"""Protocol buffers have less than 2 GiB: no larger file is one."""


class WireError(ValueError):
    """The bytes are no such encoding."""


def varint(data: bytes, position: int) -> tuple[int, int]:
    """The varint at `position`, and the position after it.

    Raises:
        WireError: the data ends within it, or it is longer than 64 bits.
    """
    result = shift = 0
    try:
        while True:
            byte = data[position]
            position += 1
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                if result >> 64:
                    raise WireError("a varint of more than 64 bits")
                return result, position
            shift += 7
            if shift > 63:
                raise WireError("a varint of more than 64 bits")
    except IndexError:
        raise WireError("the data ends within a varint") from None


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message as (number, value): an int, or the bytes of a nested message.

    Raises:
        WireError: the bytes are no message.
    """
    # Most varints are of one byte: those are read here, which halves the time.
    position, end = 0, len(message)
    while position < end:
        tag = message[position]
        position += 1
        if tag >= 0x80:
            tag, position = varint(message, position - 1)
        kind = tag & 7
        if kind == 2:
            length = message[position] if position < end else 0x80
            start = position + 1
            if length >= 0x80:
                length, start = varint(message, position)
            position = start + length
            if position > end:
                raise WireError("a field is longer than its message")
            yield tag >> 3, message[start:position]
        elif kind == 0:
            value, position = varint(message, position)
            yield tag >> 3, value
        elif kind in (1, 5):
            start = position
            position += 8 if kind == 1 else 4
            if position > end:
                raise WireError("a field is longer than its message")
            yield tag >> 3, int.from_bytes(message[start:position], "little")
        else:
            raise WireError(f"a field of unknown wire type {kind}")


class Span(NamedTuple):
    """A field of a message: its number, where it begins, and where its value lies."""

    number: int
    begin: int
    start: int
    end: int


def spans(message: bytes) -> Iterator[Span]:
    """Where the fields of a message are in it.

    Raises:
        WireError: the bytes are no message.
    """
    position = 0
    while position < len(message):
        tag, start = varint(message, position)
        kind = tag & 7
        if kind == 2:
            length, start = varint(message, start)
            end = start + length
        elif kind == 0:
            end = varint(message, start)[1]
        elif kind in (1, 5):
            end = start + (8 if kind == 1 else 4)
        else:
            raise WireError(f"a field of unknown wire type {kind}")
        if end > len(message):
            raise WireError("a field is longer than its message")
        yield Span(tag >> 3, position, start, end)
        position = end


def encoded(number: int) -> bytes:
    """A number as a varint."""
    digits = bytearray()
    while number >= 0x80:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


def field(number: int, value: bytes) -> bytes:
    """A field of bytes: a string, a message, or packed numbers."""
    return encoded(number << 3 | 2) + encoded(len(value)) + value


def text(value: int | bytes) -> str:
    """The string that a field holds.

    Raises:
        WireError: it is none.
    """
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            pass
    raise WireError("a string that is not UTF-8")


def signed(value: int) -> int:
    """The int64 that a varint stands for: two's complement in 64 bits."""
    return value - (1 << 64) if value >> 63 else value


def damaged(where: str, what: str, error: WireError) -> DamagedError:
    """The error for a file whose part `what` is not well-formed."""
    return DamagedError(where, f"{what} is damaged ({error})", "copy or download it again")


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
