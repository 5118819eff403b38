"""SSTables: sorted tables of keys and values, as LevelDB's. Bundle indexes and V1 checkpoints.

    file   := data block ... metaindex block, index block, footer
    block  := contents, type (1 byte: 0 plain, 1 snappy), masked crc32c of both (4 bytes)
    footer := handle of the metaindex block, handle of the index block, zeros up to 40 bytes,
              magic (8 bytes)
    handle := varint offset, varint size of the contents, without type and checksum

    contents := entry ... restart (4 bytes) ... number of restarts (4 bytes)
    entry    := varint shared, varint unshared, varint length, rest of the key, value

An entry's key is the first `shared` bytes of the key before it, then the `unshared` bytes of
its own; at a restart, shared is 0. The index block has one entry a data block: a key that is
not below the block's last key and below the next block's first, and the block's handle. The
metaindex block is empty. All fixed numbers are little-endian.
Source: tsl/lib/io/{format,table,table_builder,block}.cc of XLA, after google/leveldb.

The checksum of SSTable blocks and bundle tensors: CRC-32C, masked.

Masking (LevelDB's `util/crc32c.h`) keeps a checksum that is stored among the data it covers
from disturbing a checksum over both: rotate right by 15 bits, then add a constant.

Snappy blocks, in which some SSTables are compressed.

A block is the varint length of the text, then elements, told apart by the low two bits of
their first byte (https://github.com/google/snappy/blob/main/format_description.txt):

    00  literal: length - 1 in the high six bits, or 60..63 for 1..4 bytes of it; then the text
    01  copy: length - 4 in bits 2..4, offset in bits 5..7 and one more byte
    10  copy: length - 1 in the high six bits, offset in two bytes
    11  copy: length - 1 in the high six bits, offset in four bytes

A copy repeats what stands `offset` bytes before the end of the text, and may overlap it.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterator

import google_crc32c

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.protobuf.wire import WireError, damaged, varint
from bnstat.storage.files import File, Range

_DELTA = 0xA282EAD8


def masked_crc32c(*parts: bytes) -> int:
    """The masked CRC-32C of the parts, one after the other."""
    crc = 0
    for part in parts:
        crc = google_crc32c.extend(crc, part)
    return mask(crc)


def mask(crc: int) -> int:
    """The stored form of a CRC-32C."""
    return (((crc >> 15) | (crc << 17)) + _DELTA) & 0xFFFFFFFF


_MAX_RATIO = 64
"""No element of n bytes makes more than 64 bytes of text, so neither can a block."""


def decompress(block: bytes) -> bytes:
    """The text of a block.

    Raises:
        WireError: the block is damaged, or claims more text than it can hold.
    """
    size, position = varint(block, 0)
    if size > _MAX_RATIO * len(block):
        raise WireError(f"{len(block)} compressed bytes cannot make {size}")
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
                raise WireError("a copy from before the text")
            start = len(text) - offset
            if offset >= length:
                text += text[start : start + length]
            else:
                pattern = text[start:]
                text += (pattern * (length // offset + 1))[:length]
        if len(text) > size:
            break
    if len(text) != size:
        raise WireError(f"the text has {len(text)} bytes instead of {size}")
    return bytes(text)


def _little_endian(block: bytes, position: int, width: int) -> tuple[int, int]:
    if position + width > len(block):
        raise WireError("the block ends within an element")
    return int.from_bytes(block[position : position + width], "little"), position + width


FOOTER = 48
TRAILER = 5
_KEYS_PER_BYTE = 32
_KEYS_AT_LEAST = 1 << 20
"""A block's keys together may have so many bytes. Each can repeat the one before it, so that a
few megabytes could mean terabytes of keys; those of real indexes have a tenth of this."""
_BYTES_PER_SEARCH = 1500
"""A search takes about as long as so many bytes of entries take to be parsed."""
MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")


def is_table(file: File) -> bool:
    """Whether the file ends as an SSTable does."""
    return file.size >= FOOTER and file.read(file.size - 8, 8) == MAGIC


class Table:
    """A table in a file; blocks are read when they are asked for.

    Args:
        file: the file.

    Raises:
        DamagedError: the file is no SSTable, or its index fails its checksum.
        UnsupportedError: a block is compressed in an unknown way.
    """

    def __init__(self, file: File) -> None:
        self._file = file
        self._held: dict[tuple[int, int], bytes] = {}
        self._all: dict[bytes, bytes] | None = None
        self._searches = 0
        if not is_table(file):
            file.refuse_lfs_pointer()
            raise DamagedError(
                file.path, "does not end as a checkpoint index does", "is it truncated?"
            )
        footer = file.read(file.size - FOOTER, FOOTER)
        try:
            _, position = varint(footer, 0)
            _, position = varint(footer, position)
            handle, _ = _handle(footer, position)
            index = [(key, _handle(value, 0)[0]) for key, value in entries(self._contents(*handle))]
        except WireError as error:
            raise damaged(file.path, "the index block", error) from error
        self._last_keys = [key for key, _ in index]
        self._handles = [block for _, block in index]
        # Blocks are written one after another: a file that lists one twice is a trap.
        end = 0
        for offset, size in self._handles:
            if offset < end:
                raise DamagedError(file.path, "its index names overlapping blocks")
            end = offset + size + TRAILER

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries, in ascending order of their keys.

        Raises:
            DamagedError: a block is damaged, or the keys are out of order.
        """
        if not self._held:
            self._fetch()
        last: bytes | None = None
        for handle in self._handles:
            for key, value in self._block_entries(handle):
                if last is not None and key <= last:
                    raise DamagedError(self._file.path, "its keys are out of order")
                last = key
                yield key, value

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, or None; only the block that can hold it is read."""
        if self._all is not None:
            return self._all.get(key)
        self._searches += 1
        if self._held and self._searches * _BYTES_PER_SEARCH > self._file.size:
            self._all = dict(self.items())
        handle = self._handle_of(key)
        if handle is None:
            return None
        try:
            return find(self._contents(*handle), key)
        except WireError as error:
            raise self._damaged(handle, error) from error

    def load(self) -> None:
        """Read all blocks now and hold them: for a table that is searched again and again.

        Raises:
            DamagedError: a block fails its checksum, or cannot be decompressed.
        """
        self._fetch()
        for handle in self._handles:
            try:
                self._held[handle] = self._contents(*handle)
            except WireError as error:
                raise self._damaged(handle, error) from error

    def _fetch(self) -> None:
        self._file.prefetch([(offset, size + TRAILER) for offset, size in self._handles])

    def place(self, key: bytes) -> Range | None:
        """The block that can hold a key, with its type and checksum."""
        handle = self._handle_of(key)
        return None if handle is None else self._file.place(handle[0], handle[1] + TRAILER)

    def blocks(self) -> Iterator[tuple[bytes, int, int]]:
        """The data blocks in their order: a key not below their last, offset, size of contents."""
        for key, (offset, size) in zip(self._last_keys, self._handles, strict=True):
            yield key, offset, size

    def contents(self, offset: int, size: int) -> bytes:
        """The contents of a block, checked and plain.

        Raises:
            DamagedError: they fail their checksum, or cannot be decompressed.
        """
        try:
            return self._contents(offset, size)
        except WireError as error:
            raise self._damaged((offset, size), error) from error

    def _handle_of(self, key: bytes) -> tuple[int, int] | None:
        block = bisect_left(self._last_keys, key)
        return self._handles[block] if block < len(self._handles) else None

    def _block_entries(self, handle: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
        try:
            yield from entries(self._contents(*handle))
        except WireError as error:
            raise self._damaged(handle, error) from error

    def _damaged(self, handle: tuple[int, int], error: WireError) -> DamagedError:
        return damaged(self._file.path, f"the block at byte {handle[0]}", error)

    def _contents(self, offset: int, size: int) -> bytes:
        """The contents of a block, checked and plain."""
        if (held := self._held.get((offset, size))) is not None:
            return held
        block = self._file.read(offset, size + TRAILER)
        contents, kind = block[:size], block[size]
        if masked_crc32c(block[: size + 1]) != int.from_bytes(block[size + 1 :], "little"):
            raise DamagedError(
                self._file.path,
                f"the block at byte {offset} fails its checksum",
                "copy or download it again",
            )
        if kind == 0:
            return contents
        if kind == 1:
            return decompress(contents)
        raise UnsupportedError(self._file.path, f"unknown compression {kind} of a block")


def entries(contents: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a block.

    Raises:
        WireError: the block contradicts itself.
    """
    end = len(contents) - 4 - 4 * len(_restarts(contents))
    return _entries_from(contents, 0, end)


def find(contents: bytes, key: bytes) -> bytes | None:
    """The value of a key in a block, searched by its restarts; None where it is not there.

    Raises:
        WireError: the block contradicts itself.
    """
    restarts = _restarts(contents)
    end = len(contents) - 4 - 4 * len(restarts)
    low, high = 0, len(restarts)
    while high - low > 1:
        middle = (low + high) // 2
        first = next(_entries_from(contents, restarts[middle], end), None)
        if first is None:
            raise WireError("a restart leads nowhere")
        if first[0] <= key:
            low = middle
        else:
            high = middle
    start = restarts[low] if low else 0
    for found, value in _entries_from(contents, start, end):
        if found >= key:
            return value if found == key else None
    return None


def _restarts(contents: bytes) -> tuple[int, ...]:
    """The positions of the entries that are whole."""
    if len(contents) < 4:
        raise WireError("it is too short")
    count = int.from_bytes(contents[-4:], "little")
    end = len(contents) - 4 - 4 * count
    if end < 0:
        raise WireError(f"it claims {count} restarts")
    return struct.unpack_from(f"<{count}I", contents, end)


def _entries_from(contents: bytes, position: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    """The entries from a restart on, up to the end of the entries."""
    key = b""
    room = _KEYS_PER_BYTE * len(contents) + _KEYS_AT_LEAST
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
        room -= len(key)
        if room < 0:
            raise WireError("its keys are longer than they can be")
        yield key, contents[key_end:value_end]
        position = value_end


def _handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    offset, position = varint(data, position)
    size, position = varint(data, position)
    return (offset, size), position
