"""Protocol buffers and SSTables, taken apart and written again with all lengths and checksums.

This is written after the formats' own description and shares no code with bnstat.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import google_crc32c

MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
FOOTER = 48


class Field(NamedTuple):
    """A field of a message: its number, wire type and value (an int for type 0, else bytes)."""

    number: int
    kind: int
    value: int | bytes


def varint(number: int) -> bytes:
    """A varint of an unsigned number."""
    digits = bytearray()
    while number >= 0x80:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The varint at a position, and the position after it."""
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at


def parse(message: bytes) -> list[Field]:
    """The fields of a message.

    Raises:
        ValueError: the bytes are no message.
    """
    fields = []
    at = 0
    try:
        while at < len(message):
            tag, at = read_varint(message, at)
            number, kind = tag >> 3, tag & 7
            if kind == 0:
                value, at = read_varint(message, at)
                fields.append(Field(number, kind, value))
                continue
            if kind == 2:
                length, at = read_varint(message, at)
            else:
                length = {1: 8, 5: 4}[kind]
            if number == 0 or at + length > len(message):
                raise ValueError
            fields.append(Field(number, kind, message[at : at + length]))
            at += length
    except (IndexError, KeyError):
        raise ValueError from None
    return fields


def encode(fields: Iterable[Field]) -> bytes:
    """A message of these fields."""
    message = bytearray()
    for number, kind, value in fields:
        message += varint(number << 3 | kind)
        if isinstance(value, int):
            message += varint(value % (1 << 64))
        else:
            message += varint(len(value)) * (kind == 2) + value
    return bytes(message)


def masked_crc32c(data: bytes, crc: int = 0) -> int:
    """The checksum of blocks and tensors, as it is stored."""
    crc = google_crc32c.extend(crc, data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def block(contents: bytes, kind: int = 0) -> bytes:
    """A block as it lies in a table, with its type and checksum."""
    typed = contents + bytes([kind])
    return typed + masked_crc32c(typed).to_bytes(4, "little")


def block_contents(entries: Sequence[tuple[bytes, bytes]], interval: int = 16) -> bytes:
    """The contents of a block of these entries."""
    contents = bytearray()
    restarts = []
    before = b""
    for index, (key, value) in enumerate(entries):
        shared = 0
        if index % interval == 0:
            restarts.append(len(contents))
        else:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        contents += varint(shared) + varint(len(key) - shared) + varint(len(value))
        contents += key[shared:] + value
        before = key
    for restart in restarts or [0]:
        contents += restart.to_bytes(4, "little")
    return bytes(contents + max(1, len(restarts)).to_bytes(4, "little"))


def table(blocks: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A table of blocks, each given as its last key and its contents."""
    data = bytearray()
    index = []
    for last, contents in blocks:
        index.append((last, varint(len(data)) + varint(len(contents))))
        data += block(contents)
    handles = b""
    for contents in (block_contents([]), block_contents(index, 1)):
        handles += varint(len(data)) + varint(len(contents))
        data += block(contents)
    return bytes(data + handles.ljust(FOOTER - 8, b"\0") + MAGIC)


def write_table(entries: Sequence[tuple[bytes, bytes]], per_block: int = 1000) -> bytes:
    """A table of entries, in the order given."""
    parts = [entries[at : at + per_block] for at in range(0, len(entries), per_block)]
    return table([(part[-1][0], block_contents(part)) for part in parts])


def read_table(data: bytes) -> list[tuple[bytes, bytes]]:
    """The entries of a sound table without compression."""
    return [entry for contents in read_blocks(data) for entry in _entries(contents)]


def read_blocks(data: bytes) -> list[bytes]:
    """The contents of the data blocks of such a table."""
    footer = data[-FOOTER:]
    at = 0
    for _ in range(2):
        _, at = read_varint(footer, at)
    index, _ = _slice(data, footer, at)
    return [_slice(data, handle, 0)[0] for _, handle in _entries(index)]


def _slice(data: bytes, handle: bytes, at: int) -> tuple[bytes, int]:
    start, at = read_varint(handle, at)
    size, at = read_varint(handle, at)
    if data[start + size]:
        raise ValueError("a compressed block")
    return data[start : start + size], at


def _entries(contents: bytes) -> list[tuple[bytes, bytes]]:
    end = len(contents) - 4 - 4 * int.from_bytes(contents[-4:], "little")
    entries = []
    at, key = 0, b""
    while at < end:
        shared, at = read_varint(contents, at)
        rest, at = read_varint(contents, at)
        length, at = read_varint(contents, at)
        key = key[:shared] + contents[at : at + rest]
        at += rest + length
        entries.append((key, contents[at - length : at]))
    return entries
