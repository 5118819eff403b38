"""Write tensors of TensorFlow's checkpoints: bundles, version 1, and SavedModels.

In a bundle, the bytes of a tensor change in a data file, and the tensor's checksum changes in the
index. The checksum is the 4-byte field `crc32c` in the entry of the tensor or slice, so the index
keeps its size. The block that contains the entry also has a checksum.

`bnstat.formats.tensorflow.sstable` explains the layout of an SSTable. An uncompressed block whose
values keep their lengths is replaced in place. Otherwise the table is written again: other blocks
keep their bytes, changed blocks are not compressed, and the index has the new offsets.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import BinaryIO, NamedTuple

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.contents import Contents
from bnstat.formats.protobuf.wire import encoded, spans, varint
from bnstat.formats.tensorflow.bundle import DATA, INDEX, Bundle, box_of, slice_key
from bnstat.formats.tensorflow.checkpoint_v1 import slices_in
from bnstat.formats.tensorflow.sstable import FOOTER, MAGIC, TRAILER, Table, masked_crc32c
from bnstat.mending.writers import graph, overwrite, patch, raw
from bnstat.mending.writers.graph import at, tensor_with
from bnstat.model import Array
from bnstat.storage.local import LocalFile, LocalFolder

Change = Callable[[bytes], bytes]
_PIECE = 1 << 24


class _Block(NamedTuple):
    last_key: bytes
    offset: int
    size: int


def change(path: str, changes: Mapping[bytes, Change]) -> None:
    """Change the values of some keys of an SSTable.

    Args:
        path: the file of the table.
        changes: key -> function from the old to the new value.

    Raises:
        DamagedError: the table is damaged, or lacks a key.
    """
    file = LocalFile(path)
    table = Table(file)
    blocks = [_Block(*block) for block in table.blocks()]
    last_keys = [block.last_key for block in blocks]
    by_block: dict[int, dict[bytes, Change]] = {}
    for key, make in changes.items():
        number = bisect_left(last_keys, key)
        if number == len(blocks):
            raise DamagedError(path, "lacks an entry that its index lists")
        by_block.setdefault(number, {})[key] = make
    altered: dict[int, bytes] = {}
    in_place = True
    for number, wanted in by_block.items():
        _, offset, size = blocks[number]
        altered[number] = _altered(table.contents(offset, size), wanted, path)
        is_plain = file.read(offset + size, 1) == b"\0"
        in_place = in_place and is_plain and len(altered[number]) == size
    if in_place:
        for number, contents in altered.items():
            overwrite(path, blocks[number].offset, _stored(contents))
    else:
        _write_anew(file, table, blocks, altered)


class _Entry(NamedTuple):
    """An entry of a block.

    Attributes:
        position: the offset in the block.
        shared: the number of leading bytes that the key shares with the previous key.
        rest: the other bytes of the key.
        value: the value.
    """

    position: int
    shared: int
    rest: bytes
    value: bytes


def _entries(contents: bytes) -> tuple[list[_Entry], list[int]]:
    """Return the entries of a block, and the positions of the restart points."""
    count = int.from_bytes(contents[-4:], "little")
    end = len(contents) - 4 - 4 * count
    restarts = [
        int.from_bytes(contents[at : at + 4], "little") for at in range(end, len(contents) - 4, 4)
    ]
    entries, position = [], 0
    while position < end:
        begin = position
        shared, position = varint(contents, position)
        unshared, position = varint(contents, position)
        length, position = varint(contents, position)
        middle = position + unshared
        entries.append(
            _Entry(begin, shared, contents[position:middle], contents[middle : middle + length])
        )
        position = middle + length
    return entries, restarts


def _rebuilt(entries: Iterable[_Entry], restarts: list[int]) -> bytes:
    """Return the contents of a block, with restart points at unchanged entries."""
    data, moved = bytearray(), {}
    for position, shared, rest, value in entries:
        moved[position] = len(data)
        data += encoded(shared) + encoded(len(rest)) + encoded(len(value)) + rest + value
    for restart in restarts:
        data += moved.get(restart, restart).to_bytes(4, "little")
    return bytes(data) + len(restarts).to_bytes(4, "little")


def _altered(contents: bytes, wanted: Mapping[bytes, Change], path: str) -> bytes:
    entries, restarts = _entries(contents)
    key, left = b"", set(wanted)
    for number, entry in enumerate(entries):
        key = key[: entry.shared] + entry.rest
        if key in left:
            left.discard(key)
            entries[number] = entry._replace(value=wanted[key](entry.value))
    if left:
        raise DamagedError(path, "lacks an entry that its index lists")
    return _rebuilt(entries, restarts)


def _stored(contents: bytes) -> bytes:
    """Return an uncompressed block with its trailer (type and checksum)."""
    typed = contents + b"\0"
    return typed + masked_crc32c(typed).to_bytes(4, "little")


def _write_anew(
    file: LocalFile, table: Table, blocks: list[_Block], altered: Mapping[int, bytes]
) -> None:
    footer = file.read(file.size - FOOTER, FOOTER)
    meta_offset, at = varint(footer, 0)
    meta_size, at = varint(footer, at)
    index_offset, at = varint(footer, at)
    index_size, _ = varint(footer, at)
    temporary = file.path + ".anew"
    with open(temporary, "xb") as out:
        handles = []
        for number, block in enumerate(blocks):
            begin = out.tell()
            if number in altered:
                out.write(_stored(altered[number]))
            else:
                _copy(file, block.offset, block.size + TRAILER, out)
            handles.append(encoded(begin) + encoded(out.tell() - begin - TRAILER))
        entries, restarts = _entries(table.contents(index_offset, index_size))
        index = _rebuilt(
            (entry._replace(value=handle) for entry, handle in zip(entries, handles, strict=True)),
            restarts,
        )
        ends = b""
        for stored in (file.read(meta_offset, meta_size + TRAILER), _stored(index)):
            ends += encoded(out.tell()) + encoded(len(stored) - TRAILER)
            out.write(stored)
        out.write(ends.ljust(FOOTER - len(MAGIC), b"\0") + MAGIC)
    os.replace(temporary, file.path)


def _copy(file: LocalFile, offset: int, length: int, out: BinaryIO) -> None:
    for start in range(offset, offset + length, _PIECE):
        out.write(file.read(start, min(_PIECE, offset + length - start)))


_CRC32C = 6
_TAG = (_CRC32C << 3 | 5).to_bytes(1, "little")


def write_bundle(contents: Contents, arrays: Mapping[str, Array]) -> None:
    """Write tensors of a bundle; see `write_arrays`."""
    done, others = patch(contents, arrays)
    if others:
        raise UnsupportedError(contents.source.path, f"{others[0]} cannot be written")
    data = {extent.file.path for extent in done}
    for folder, prefix in {(os.path.dirname(path), _prefix(path)) for path in data}:
        bundle = Bundle(LocalFolder(folder), prefix, data=False)
        changes: dict[bytes, Change] = {}
        for key, array in arrays.items():
            entry = bundle.entry(key)
            for part in entry.slices:
                piece = array[box_of(part, entry.shape, key)]
                changes[slice_key(key, part)] = partial(_with_checksum, raw(piece))
            if not entry.slices:
                encoded = key.encode("utf-8", "surrogateescape")
                changes[encoded] = partial(_with_checksum, raw(array))
        change(os.path.join(folder, prefix + INDEX), changes)


def _prefix(path: str) -> str:
    match = DATA.match(os.path.basename(path))
    assert match is not None
    return match["prefix"]


def _with_checksum(data: bytes, entry: bytes) -> bytes:
    """Return a `BundleEntryProto` with the checksum of data."""
    checksum = masked_crc32c(data).to_bytes(4, "little")
    fields = [span for span in spans(entry) if span.number == _CRC32C]
    if not fields:
        return entry + _TAG + checksum
    return entry[: fields[-1].start] + checksum + entry[fields[-1].end :]


_TENSOR = (2, 3)
"""The fields `SavedTensorSlices.data` and `SavedSlice.data`."""


def write_checkpoint_v1(contents: Contents, arrays: Mapping[str, Array]) -> None:
    """Write tensors of a version 1 checkpoint; see `write_arrays`."""
    shards = {extent.file.path for key in arrays for extent in contents.variables[key].extents()}
    for path in sorted(shards):
        changes = {}
        for key, slices in slices_in(LocalFile(path)).items():
            if key not in arrays:
                continue
            for part in slices:
                piece = arrays[key][box_of(part, arrays[key].shape, key)]
                changes[slice_key(key, part)] = at(_TENSOR, tensor_with(piece))
        change(path, changes)


def write_saved_model(contents: Contents, arrays: Mapping[str, Array]) -> None:
    """Write values of a SavedModel; see `write_arrays`."""
    extents = [extent for key in arrays for extent in contents.variables[key].extents()]
    if extents and all(extent.file.name.startswith("variables.data-") for extent in extents):
        write_bundle(contents, arrays)
    else:
        graph.write(contents, arrays)
