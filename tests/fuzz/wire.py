"""Protocol buffers and SSTables, parsed and written again with correct lengths and checksums."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from bnstat.formats.tensorflow.sstable import Table
from tests.builders.memory import MemoryFile
from tests.builders.tables import assemble, block, on_disk, varint

_FIXED_WIDTH = {1: 8, 5: 4}
"""Wire type -> bytes of a number."""


class Field(NamedTuple):
    """A field of a message. The value is an int for wire type 0, otherwise bytes or a message."""

    number: int
    kind: int
    value: int | bytes | list[Field]


def parse(message: bytes) -> list[Field]:
    """Return the fields of a message; raise a `ValueError` for other bytes, and for groups."""
    try:
        # All fields are unknown to an empty message.
        unknown = UnknownFieldSet(Empty.FromString(message))
    except DecodeError as error:
        raise ValueError("not a message") from error
    fields = []
    for field in unknown:
        kind, value = field.wire_type, field.data
        if kind in _FIXED_WIDTH:
            value = value.to_bytes(_FIXED_WIDTH[kind], "little")
        elif not isinstance(value, int | bytes):
            raise ValueError("a group")
        fields.append(Field(field.field_number, kind, value))
    return fields


def encode(fields: Iterable[Field]) -> bytes:
    message = bytearray()
    for number, kind, value in fields:
        message += varint(number << 3 | kind)
        if isinstance(value, int):
            message += varint(value % (1 << 64))
            continue
        content = encode(value) if isinstance(value, list) else value
        message += varint(len(content)) * (kind == 2) + content
    return bytes(message)


def table(blocks: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return a table of blocks, each given as its last key and its contents."""
    return assemble((last, on_disk(contents)) for last, contents in blocks)


def write_table(entries: Sequence[tuple[bytes, bytes]], per_block: int = 1000) -> bytes:
    parts = [entries[at : at + per_block] for at in range(0, len(entries), per_block)]
    return table([(part[-1][0], block(part)) for part in parts])


def read_table(data: bytes) -> list[tuple[bytes, bytes]]:
    return list(Table(MemoryFile(data)).items())
