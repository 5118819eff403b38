"""SSTables and bundle indexes written byte by byte, also such as TensorFlow never writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np

MAGIC = bytes.fromhex("57fb808b247547db")
FOOTER = 48
STRING = 7


def varint(number: int) -> bytes:
    result = bytearray()
    while number >= 0x80:
        result.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*result, number])


def masked(data: bytes) -> int:
    """The masked CRC-32C, computed as LevelDB defines it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def block(entries: Sequence[tuple[bytes, bytes]], interval: int = 16) -> bytes:
    """The plain contents of a block; keys share prefixes between restarts."""
    data, restarts, last = bytearray(), [], b""
    for number, (key, value) in enumerate(entries):
        shared = 0
        if number % interval == 0:
            restarts.append(len(data))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        data += varint(shared) + varint(len(key) - shared) + varint(len(value))
        data += key[shared:] + value
        last = key
    numbers = [*(restarts or [0]), len(restarts or [0])]
    return bytes(data) + b"".join(number.to_bytes(4, "little") for number in numbers)


def on_disk(contents: bytes, kind: int = 0) -> bytes:
    body = contents + bytes([kind])
    return body + masked(body).to_bytes(4, "little")


def assemble(blocks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A table of (last key, block on disk) pairs."""
    data, index = bytearray(), []
    for last_key, stored in blocks:
        index.append((last_key, varint(len(data)) + varint(len(stored) - 5)))
        data += stored
    return bytes(data) + tail(len(data), index)


def tail(start: int, index: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The metaindex block, the index block and the footer of a table that starts before them."""
    metaindex, listing = on_disk(block([])), on_disk(block(index, interval=1))
    handles = varint(start) + varint(len(metaindex) - 5)
    handles += varint(start + len(metaindex)) + varint(len(listing) - 5)
    return metaindex + listing + handles.ljust(40, b"\0") + MAGIC


def table(entries: Mapping[bytes, bytes], per_block: int = 100, interval: int = 16) -> bytes:
    ordered = sorted(entries.items())
    chunks = [ordered[at : at + per_block] for at in range(0, len(ordered), per_block)]
    return assemble((chunk[-1][0], on_disk(block(chunk, interval))) for chunk in chunks)


def header(shards: int = 1, endianness: int = 0, min_consumer: int = 0) -> bytes:
    message = b"\x08" + varint(shards)
    message += b"\x10" + varint(endianness) if endianness else b""
    version = b"\x08\x01" + (b"\x10" + varint(min_consumer) if min_consumer else b"")
    return message + b"\x1a" + varint(len(version)) + version


def entry(
    data: bytes = b"",
    *,
    dtype: int = 1,
    shape: Sequence[int] = (),
    shard: int = 0,
    offset: int = 0,
    size: int | None = None,
    crc: int | None = None,
) -> bytes:
    """A BundleEntryProto for a tensor of those bytes; negative numbers as protobuf writes them."""
    dims = b""
    for dim in shape:
        inner = b"\x08" + varint(dim & (1 << 64) - 1)
        dims += b"\x12" + varint(len(inner)) + inner
    message = b"\x08" + varint(dtype) + b"\x12" + varint(len(dims)) + dims
    size = len(data) if size is None else size
    for number, value in ((3, shard), (4, offset), (5, size)):
        message += varint(number << 3) + varint(value & (1 << 64) - 1)
    return message + b"\x35" + (masked(data) if crc is None else crc).to_bytes(4, "little")


def append(data: BinaryIO, array: np.ndarray, shard: int = 0) -> bytes:
    """Append a float32 tensor to a shard; gives its entry."""
    raw, offset = array.astype("<f4").tobytes(), data.tell()
    data.write(raw)
    return entry(raw, shape=array.shape, shard=shard, offset=offset)


def append_string(data: BinaryIO, text: bytes) -> bytes:
    """Append a string tensor of one element to a shard; gives its entry."""
    stored, crc = string_tensor(text)
    offset = data.tell()
    data.write(stored)
    return entry(dtype=STRING, offset=offset, size=len(stored), crc=crc)


def string_tensor(text: bytes) -> tuple[bytes, int]:
    """A string tensor of one element as bundles store it, and the checksum for its entry."""
    length = len(text).to_bytes(4, "little")
    checksum = masked(length).to_bytes(4, "little")
    return varint(len(text)) + checksum + text, masked(length + checksum + text)


def bundle(folder: Path, entries: Mapping[str, bytes], data: bytes, head: bytes = b"") -> Path:
    """A bundle of one shard; gives its prefix."""
    stored = {b"": head or header()} | {key.encode(): value for key, value in entries.items()}
    (folder / "m.index").write_bytes(table(stored))
    (folder / "m.data-00000-of-00001").write_bytes(data)
    return folder / "m"
