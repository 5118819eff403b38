"""Protocol buffers and SSTables, parsed and written again with correct lengths and checksums.

This follows the descriptions of the formats and shares no code with bnstat.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tests.builders.tables import MAGIC as MAGIC
from tests.builders.tables import assemble, varint
from tests.builders.tables import block as block_contents
from tests.builders.tables import masked as masked_crc32c  # noqa: F401
from tests.builders.tables import on_disk as block

FOOTER = 48


class Field(NamedTuple):
    """A field of a message: its number, wire type and value (an int for type 0, else bytes)."""

    number: int
    kind: int
    value: int | bytes


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the varint at a position, and the position after it."""
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at


def parse(message: bytes) -> list[Field]:
    """Return the fields of a message.

    Raises:
        ValueError: the bytes are not a message.
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
    """Return a message of these fields."""
    message = bytearray()
    for number, kind, value in fields:
        message += varint(number << 3 | kind)
        if isinstance(value, int):
            message += varint(value % (1 << 64))
        else:
            message += varint(len(value)) * (kind == 2) + value
    return bytes(message)


def table(blocks: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return a table of blocks, each given as its last key and its contents."""
    return assemble((last, block(contents)) for last, contents in blocks)


def write_table(entries: Sequence[tuple[bytes, bytes]], per_block: int = 1000) -> bytes:
    """Return a table of entries, in the given order."""
    parts = [entries[at : at + per_block] for at in range(0, len(entries), per_block)]
    return table([(part[-1][0], block_contents(part)) for part in parts])


def read_table(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return the entries of a table without compression."""
    return [entry for contents in read_blocks(data) for entry in _entries(contents)]


def read_blocks(data: bytes) -> list[bytes]:
    """Return the contents of the data blocks of such a table."""
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
