"""SSTables: sorted tables of keys and values in LevelDB's format.

TensorFlow uses them for the indexes of bundles and for V1 checkpoints.

    file   := data block ... metaindex block, index block, footer
    block  := contents, type (1 byte: 0 plain, 1 snappy), masked crc32c of both (4 bytes)
    footer := handle of the metaindex block, handle of the index block, zeros up to 40 bytes,
              magic (8 bytes)
    handle := varint offset, varint size of the contents, without type and checksum

    contents := entry ... restart (4 bytes) ... number of restarts (4 bytes)
    entry    := varint shared, varint unshared, varint length, rest of the key, value

An entry's key is the first `shared` bytes of the previous key, then `unshared` bytes of its own; at
a restart point, `shared` is 0. The index block has one entry per data block: a key (at least the
block's last key, less than the next block's first key), and the block's handle. The metaindex block
is empty. Fixed-width numbers are little-endian. A masked checksum is rotated right by 15 bits, plus
a constant.

A snappy block is the varint length of the output, then elements. The low two bits of an element's
first byte are its type:

    00  literal: length - 1 in the high six bits, then the bytes; if the high six bits are 60..63,
        length - 1 is in the next 1..4 bytes
    01  copy: length - 4 in bits 2..4, offset in bits 5..7 and one more byte
    10  copy: length - 1 in the high six bits, offset in two bytes
    11  copy: length - 1 in the high six bits, offset in four bytes

A copy appends `length` bytes, starting `offset` bytes before the end of the output. If the length
exceeds the offset, the copy also repeats bytes that it has just appended.

Sources: tsl/lib/io/{format,table,table_builder,block}.cc of XLA, util/crc32c.h of google/leveldb,
format_description.txt of google/snappy.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from operator import itemgetter

import google_crc32c

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.protobuf.wire import Decoding, WireError, varint
from bnstat.storage.files import File, Range

FOOTER = 48
TRAILER = 5
"""Bytes of a block's type and checksum."""
MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")

_CRC_DELTA = 0xA282EAD8
_MAX_SNAPPY_RATIO = 64
"""The maximum ratio of decompressed to compressed size, because a copy has at most 64 bytes."""

Handle = tuple[int, int]
"""The offset of a block in the file, and the size of the block's contents."""

_KEYS_PER_BYTE = 32
_KEYS_AT_LEAST = 1 << 20
"""Limits on the bytes of all keys in a block. Each key can repeat the previous one, so that a few
megabytes could mean terabytes of keys; real indexes need a tenth of the limit."""


def masked_crc32c(*parts: bytes) -> int:
    """Return the masked CRC-32C of the concatenated `parts`."""
    crc = 0
    for part in parts:
        crc = google_crc32c.extend(crc, part)
    return (((crc >> 15) | (crc << 17)) + _CRC_DELTA) & 0xFFFFFFFF


def decompress(block: bytes) -> bytes:
    """Decompress a snappy block; raise `WireError` if the block is damaged."""
    size, position = varint(block, 0)
    if size > _MAX_SNAPPY_RATIO * len(block):
        raise WireError(f"{len(block)} compressed bytes cannot expand to {size} bytes")
    text = bytearray()
    while position < len(block):
        tag = block[position]
        position += 1
        kind, high = tag & 3, tag >> 2
        if kind == 0:
            length = high + 1
            if high >= 60:
                length, position = _little_endian(block, position, high - 59)
                length += 1
            if position + length > len(block):
                raise WireError("a literal is longer than its block")
            text += block[position : position + length]
            position += length
        else:
            if kind == 1:
                low, position = _little_endian(block, position, 1)
                length, offset = (high & 7) + 4, (high >> 3) << 8 | low
            else:
                offset, position = _little_endian(block, position, 2 if kind == 2 else 4)
                length = high + 1
            if not 0 < offset <= len(text):
                raise WireError("the compressed data refers to bytes before its start")
            start = len(text) - offset
            if offset >= length:
                text += text[start : start + length]
            else:
                text += (text[start:] * (length // offset + 1))[:length]
        if len(text) > size:
            break
    if len(text) != size:
        raise WireError(f"decompresses to {len(text)} bytes instead of {size}")
    return bytes(text)


def _little_endian(block: bytes, position: int, width: int) -> tuple[int, int]:
    if position + width > len(block):
        raise WireError("the block ends within an element")
    return int.from_bytes(block[position : position + width], "little"), position + width


def is_table(file: File) -> bool:
    """Return True if the file ends like an SSTable."""
    return file.size >= FOOTER and file.read(file.size - 8, 8) == MAGIC


class Table:
    """A table in a file. Blocks are read when they are needed."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._loaded: dict[Handle, bytes] = {}
        self._parsed: dict[Handle, dict[bytes, bytes]] = {}
        if not is_table(file):
            file.refuse_lfs_pointer()
            problem = "does not end like a checkpoint index"
            raise DamagedError(file.path, problem, "is it truncated?")
        footer = file.read(file.size - FOOTER, FOOTER)
        with Decoding(file.path, "the index block"):
            self.metaindex, position = _handle(footer, 0)
            self.index, _ = _handle(footer, position)
            listed = entries(self.contents(*self.index))
            # For each data block: the key in the index block, the offset, the size of the contents.
            self.blocks = [(key, *_handle(value, 0)[0]) for key, value in listed]
        # A hostile index could list a large block many times.
        end = 0
        for _, offset, size in self.blocks:
            if offset < end:
                raise DamagedError(file.path, "its index lists overlapping blocks")
            end = offset + size + TRAILER

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries in ascending order of their keys."""
        if not self._loaded:
            self._prefetch()
        last: bytes | None = None
        for _, *handle in self.blocks:
            for key, value in self._entries(*handle):
                if last is not None and key <= last:
                    raise DamagedError(self._file.path, "its keys are out of order")
                last = key
                yield key, value

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key, or None. Only the block that can contain the key is parsed."""
        handle = self.handle_of(key)
        if handle is None:
            return None
        if handle not in self._loaded:
            found = (value for candidate, value in self._entries(*handle) if candidate == key)
            return next(found, None)
        if handle not in self._parsed:
            self._parsed[handle] = dict(self._entries(*handle))
        return self._parsed[handle].get(key)

    def _entries(self, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
        with self._decoding(offset):
            yield from entries(self.contents(offset, size))

    def load(self) -> None:
        """Read and keep all blocks, for a table that is searched often."""
        self._prefetch()
        for _, offset, size in self.blocks:
            self._loaded[offset, size] = self.contents(offset, size)

    def _prefetch(self) -> None:
        self._file.prefetch([(offset, size + TRAILER) for _, offset, size in self.blocks])

    def place(self, key: bytes) -> Range | None:
        """Return the range of the block, with trailer, that can contain a key; None if none can."""
        handle = self.handle_of(key)
        return None if handle is None else self._file.place(handle[0], handle[1] + TRAILER)

    def contents(self, offset: int, size: int) -> bytes:
        """Return the decompressed contents of a block."""
        if (loaded := self._loaded.get((offset, size))) is not None:
            return loaded
        block = self._file.read(offset, size + TRAILER)
        contents, kind = block[:size], block[size]
        if masked_crc32c(block[: size + 1]) != int.from_bytes(block[size + 1 :], "little"):
            self._file.refuse_changed()
            problem = f"the block at byte {offset} fails its checksum"
            raise DamagedError(self._file.path, problem, "copy or download it again")
        if kind == 0:
            return contents
        if kind != 1:
            problem = f"the block at byte {offset} has unknown compression {kind}"
            raise UnsupportedError(self._file.path, problem)
        with self._decoding(offset):
            return decompress(contents)

    def handle_of(self, key: bytes) -> Handle | None:
        """Return the handle of the block that can contain a key; None if no block can."""
        number = bisect_left(self.blocks, key, key=itemgetter(0))
        return self.blocks[number][1:] if number < len(self.blocks) else None

    def _decoding(self, offset: int) -> Decoding:
        return Decoding(self._file.path, f"the block at byte {offset}")


def entries(contents: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) for each entry in the contents of a block."""
    if len(contents) < 4:
        raise WireError("too short")
    restarts = int.from_bytes(contents[-4:], "little")
    position, end = 0, len(contents) - 4 - 4 * restarts
    if end < 0:
        raise WireError(f"too short for {restarts} restart points")
    key = b""
    left = _KEYS_PER_BYTE * len(contents) + _KEYS_AT_LEAST
    while position < end:
        head = contents[position : position + 3]
        if max(head) < 0x80:
            shared, unshared, length = head
            position += 3
        else:
            shared, position = varint(contents, position)
            unshared, position = varint(contents, position)
            length, position = varint(contents, position)
        key_end = position + unshared
        value_end = key_end + length
        if shared > len(key) or value_end > end:
            raise WireError("an entry is longer than its block")
        key = key[:shared] + contents[position:key_end]
        left -= len(key)
        if left < 0:
            raise WireError("the keys exceed the length limit")
        yield key, contents[key_end:value_end]
        position = value_end


def _handle(data: bytes, position: int) -> tuple[Handle, int]:
    """Return the handle at index `position` as (offset, size), and the index after the handle."""
    offset, position = varint(data, position)
    size, position = varint(data, position)
    return (offset, size), position
