"""Write tensors of TensorFlow's checkpoints: bundles, version 1, and SavedModels.

In a bundle, the bytes of a tensor change in a data file, and the tensor's checksum changes in the
index. The checksum is the 4-byte field `crc32c` in the entry of the tensor or slice, so the index
keeps its size. The block that contains the entry also has a checksum.

`bnstat.formats.tensorflow.sstable` explains the layout of an SSTable.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from typing import NamedTuple

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.contents import Contents
from bnstat.formats.protobuf.wire import encoded, spans, varint
from bnstat.formats.tensorflow.bundle import DATA, INDEX, Bundle, box_of, slice_key
from bnstat.formats.tensorflow.checkpoint import slices_in
from bnstat.formats.tensorflow.sstable import FOOTER, MAGIC, TRAILER, Table, masked_crc32c
from bnstat.mending.writers import graph, patch, raw
from bnstat.mending.writers.graph import Change, at, with_values
from bnstat.model import Array
from bnstat.storage.local import LocalFile, LocalFolder


def change(path: str, changes: Mapping[bytes, Change]) -> None:
    """Change the values of some keys of an SSTable (`changes`: key -> function of the old value).

    Blocks without these keys keep their bytes; changed blocks are not compressed.
    """
    file = LocalFile(path)
    table = Table(file)
    blocks = table.blocks
    last_keys = [last_key for last_key, _, _ in blocks]
    by_block: dict[int, dict[bytes, Change]] = defaultdict(dict)
    for key, make in changes.items():
        by_block[bisect_left(last_keys, key)][key] = make
    if len(blocks) in by_block:
        raise DamagedError(path, "lacks an entry that its index lists")
    meta, index = _handles_in_footer(file)
    with open(f"{path}.anew", "xb") as out:

        def write(block: bytes) -> bytes:
            out.write(block)
            return encoded(out.tell() - len(block)) + encoded(len(block) - TRAILER)

        handles = []
        for number, (_, offset, size) in enumerate(blocks):
            if number in by_block:
                contents = _altered(table.contents(offset, size), by_block[number], path)
                handles.append(write(_stored(contents)))
            else:
                handles.append(write(file.read(offset, size + TRAILER)))
        entries, restarts = _entries(table.contents(*index))
        moved = [
            entry._replace(value=handle) for entry, handle in zip(entries, handles, strict=True)
        ]
        footer = write(file.read(meta[0], meta[1] + TRAILER))
        if moved == entries:
            footer += write(file.read(index[0], index[1] + TRAILER))
        else:
            footer += write(_stored(_rebuilt(moved, restarts)))
        out.write(footer.ljust(FOOTER - len(MAGIC), b"\0") + MAGIC)
    os.replace(f"{path}.anew", path)


def _handles_in_footer(file: LocalFile) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (offset, size) of the metaindex block, and (offset, size) of the index block."""
    footer = file.read(file.size - FOOTER, FOOTER)
    numbers, position = [], 0
    for _ in range(4):
        number, position = varint(footer, position)
        numbers.append(number)
    return (numbers[0], numbers[1]), (numbers[2], numbers[3])


class _Entry(NamedTuple):
    """An entry of a block; its key is `rest` after the first `shared` bytes of the previous key."""

    position: int
    shared: int
    rest: bytes
    value: bytes


def _entries(contents: bytes) -> tuple[list[_Entry], list[int]]:
    """Return the entries of a block, and the offsets of the restart points in the block."""
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
    """Return the bytes of a block of entries; `restarts` (old offsets) become new offsets."""
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


_CRC32C = 6
_TAG = (_CRC32C << 3 | 5).to_bytes(1, "little")


def write_bundle(contents: Contents, arrays: Mapping[str, Array]) -> None:
    """Write tensors of a bundle; see `write_arrays`."""
    done, others = patch(contents, arrays)
    if others:
        raise UnsupportedError(contents.source.path, f"bnstat cannot write the tensor {others[0]}")
    indices = {
        os.path.join(os.path.dirname(extent.file.path), match["prefix"] + INDEX)
        for extent in done
        if (match := DATA.match(extent.file.name))
    }
    for index in indices:
        folder, name = os.path.split(index)
        bundle = Bundle(LocalFolder(folder), name.removesuffix(INDEX), data=False)
        changes: dict[bytes, Change] = {}
        for key, array in arrays.items():
            entry = bundle.entry(key)
            for part in entry.slices:
                piece = array[box_of(part, entry.shape, key)]
                changes[slice_key(key, part)] = partial(_with_checksum, raw(piece))
            if not entry.slices:
                encoded = key.encode("utf-8", "surrogateescape")
                changes[encoded] = partial(_with_checksum, raw(array))
        change(index, changes)


def _with_checksum(data: bytes, entry: bytes) -> bytes:
    """Return the bytes of a `BundleEntryProto` in which the checksum is that of `data`."""
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
                changes[slice_key(key, part)] = at(_TENSOR, partial(with_values, piece))
        change(path, changes)


def write_saved_model(contents: Contents, arrays: Mapping[str, Array]) -> None:
    """Write values of a SavedModel; see `write_arrays`."""
    extents = [extent for key in arrays for extent in contents.variables[key].extents()]
    if extents and all(extent.file.name.startswith("variables.data-") for extent in extents):
        write_bundle(contents, arrays)
    else:
        graph.write(contents, arrays)
