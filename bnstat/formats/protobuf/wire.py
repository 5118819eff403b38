"""The wire format of protocol buffers: little-endian base-128 varints and fields.

A message is a sequence of fields. A field is a varint, `number << 3 | wire type`, then a value: a
varint (wire type 0), eight bytes (1), the length as a varint and the bytes (2), or four bytes (5).

Most messages are parsed by `protos`. This module parses small messages that occur by the hundred
thousand. It also locates the fields of large files without reading the arrays in them. Source:
https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from bnstat.errors import DamagedError
from bnstat.storage.files import File

LARGEST_MESSAGE = 1 << 31
"""A valid message has fewer bytes."""


class WireError(ValueError):
    """The bytes are not a valid encoding. All decoding functions of this module can raise it."""


def varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the value of the varint at index `position`, and the index after the varint."""
    result = shift = 0
    try:
        while True:
            byte = data[position]
            position += 1
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                if result >> 64:
                    raise WireError("a varint has more than 64 bits")
                return result, position
            shift += 7
            if shift > 63:
                raise WireError("a varint has more than 64 bits")
    except IndexError:
        raise WireError("the data ends within a varint") from None


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (number, value) for each field: bytes for wire type 2, an int for all other types."""
    # Most varints have one byte. Reading these here halves the time.
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
            raise WireError(f"a field has the unknown wire type {kind}")


def encoded(number: int) -> bytes:
    """Encode a number as a varint."""
    digits = bytearray()
    while number >= 0x80:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


def field(number: int, value: bytes) -> bytes:
    """Encode a field of wire type 2: a string, a message, or packed numbers."""
    return encoded(number << 3 | 2) + encoded(len(value)) + value


def text(value: int | bytes) -> str:
    """Decode the value of a string field; raise `WireError` if the value is not a string."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            pass
    raise WireError("a string is not UTF-8")


def signed(value: int) -> int:
    """Convert a varint to an int64 (two's complement in 64 bits)."""
    return value - (1 << 64) if value >> 63 else value


class Decoding:
    """A context that converts a `WireError` to a `DamagedError`: "WHERE: WHAT is damaged"."""

    def __init__(self, where: str, what: str) -> None:
        self._where = where
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, WireError):
            problem = f"{self._what} is damaged ({error})"
            raise DamagedError(self._where, problem, "copy or download it again") from error


_FIRST_PIECE = 1 << 12
_LARGEST_PIECE = 1 << 16
_LONGEST_HEAD = 20
"""The maximum size in bytes of the two varints before a field's value."""


class Window:
    """Reads ranges of a file through a buffer, which grows while the reads are sequential."""

    def __init__(self, file: File) -> None:
        self.file = file
        self._start = 0
        self._data = b""
        self._piece = _FIRST_PIECE

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from offset `start` to offset `end`."""
        data_end = self._start + len(self._data)
        if start < self._start or end > data_end:
            is_sequential = self._start <= start <= data_end
            self._piece = min(2 * self._piece, _LARGEST_PIECE) if is_sequential else _FIRST_PIECE
            piece_end = max(end, min(start + self._piece, self.file.size))
            self._data = self.file.read(start, piece_end - start)
            self._start = start
        return self._data[start - self._start : end - self._start]


class Field(NamedTuple):
    """A field from `begin` to `end`, with its value from `start` to `end`, of wire type `kind`."""

    number: int
    kind: int
    begin: int
    start: int
    end: int


def scan(read: Callable[[int, int], bytes], position: int, end: int) -> Iterator[Field]:
    """Yield the fields of the message from offset `position` to offset `end`.

    `read` returns the bytes between two offsets. A field that ends beyond the message is yielded;
    the next iteration then raises a `WireError`.
    """
    while position < end:
        head = read(position, min(position + _LONGEST_HEAD, end))
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
            raise WireError(f"a field has the unknown wire type {tag & 7}")
        yield Field(tag >> 3, tag & 7, position, start, stop)
        if stop > end:
            raise WireError("a field is longer than its message")
        position = stop


def spans(message: bytes) -> Iterator[Field]:
    """Yield the fields of a message in memory; field offsets are indices into `message`."""
    return scan(lambda start, end: message[start:end], 0, len(message))
