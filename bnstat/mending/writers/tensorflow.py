"""Write tensors of TensorFlow's checkpoints: bundles, version 1, and SavedModels.

In a bundle, the bytes of a tensor change in a data file, and the tensor's checksum changes in the
index. The checksum is the 4-byte field `crc32c` in the entry of the tensor or slice, so the index
keeps its size. The block that contains the entry also has a checksum.

`bnstat.formats.tensorflow.sstable` explains the layout of an SSTable.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.contents import Contents
from bnstat.formats.protobuf.wire import encoded, spans, varint
from bnstat.formats.tensorflow.bundle import DATA, INDEX, Bundle, box_of, slice_key
from bnstat.formats.tensorflow.checkpoint import saved_slices
from bnstat.formats.tensorflow.sstable import FOOTER, MAGIC, TRAILER, Handle, Table, masked_crc32c
from bnstat.mending.writers import graph, patch, raw
from bnstat.mending.writers.graph import Change, at, with_values
from bnstat.model import Array
from bnstat.storage.local import LocalFile, LocalFolder


def change(path: str, changes: Mapping[bytes, Change]) -> None:
    """Change values in an SSTable; `changes` maps a key to a function of the old value.

    Blocks without these keys are copied. Changed blocks are written uncompressed.
    """
    file = LocalFile(path)
    table = Table(file)
    touched = {table.handle_of(key) for key in changes}
    left = dict(changes)
    with open(f"{path}.anew", "xb") as out:

        def write(handle: Handle, change: _ChangeEntry | None) -> bytes:
            """Write a block, changed by `change` if given, and return its new encoded handle."""
            offset, size = handle
            block = file.read(offset, size + TRAILER)
            if change is not None:
                old = table.contents(offset, size)
                new = _rebuilt(old, change)
                if new != old:
                    block = new + b"\0"
                    block += masked_crc32c(block).to_bytes(4, "little")
            out.write(block)
            return encoded(out.tell() - len(block)) + encoded(len(block) - TRAILER)

        def changed(key: bytes, value: bytes) -> bytes:
            return left.pop(key)(value) if key in left else value

        blocks = [(offset, size) for _, offset, size in table.blocks]
        handles = iter([write(each, changed if each in touched else None) for each in blocks])
        if left:
            raise DamagedError(path, "contains no entry for a tensor that must be changed")
        footer = write(table.metaindex, None)
        footer += write(table.index, lambda key, value: next(handles))
        out.write(footer.ljust(FOOTER - len(MAGIC), b"\0") + MAGIC)
    os.replace(f"{path}.anew", path)


_ChangeEntry = Callable[[bytes, bytes], bytes]
"""A function of an entry's key and value that returns the new value."""


def _rebuilt(contents: bytes, change: _ChangeEntry) -> bytes:
    count = int.from_bytes(contents[-4:], "little")
    end = len(contents) - 4 - 4 * count
    data, moved = bytearray(), {}
    key, position = b"", 0
    while position < end:
        moved[position] = len(data)
        shared, position = varint(contents, position)
        unshared, position = varint(contents, position)
        length, position = varint(contents, position)
        middle = position + unshared
        rest, value = contents[position:middle], contents[middle : middle + length]
        position = middle + length
        key = key[:shared] + rest
        value = change(key, value)
        data += encoded(shared) + encoded(unshared) + encoded(len(value)) + rest + value
    for start in range(end, len(contents) - 4, 4):
        restart = int.from_bytes(contents[start : start + 4], "little")
        data += moved.get(restart, restart).to_bytes(4, "little")
    return bytes(data) + contents[-4:]


_CRC32C = 6


def write_bundle(contents: Contents, arrays: Mapping[str, Array]) -> None:
    """Write tensors into a bundle; see `write_arrays`."""
    done, others = patch(contents, arrays)
    if others:
        what = f"bnstat cannot write {others[0]}, which is not stored as plain bytes"
        raise UnsupportedError(contents.source.path, what)
    bundles = {
        (os.path.dirname(extent.file.path), match["prefix"])
        for extent in done
        if (match := DATA.match(extent.file.name))
    }
    for folder, prefix in bundles:
        bundle = Bundle(LocalFolder(folder), prefix, data=False)
        changes: dict[bytes, Change] = {}
        for key, array in arrays.items():
            entry = bundle.entry(key)
            for part in entry.slices:
                piece = array[box_of(part, entry.shape, key)]
                changes[slice_key(key, part)] = partial(_with_checksum, raw(piece))
            if not entry.slices:
                encoded_key = key.encode("utf-8", "surrogateescape")
                changes[encoded_key] = partial(_with_checksum, raw(array))
        change(os.path.join(folder, prefix + INDEX), changes)


def _with_checksum(data: bytes, entry: bytes) -> bytes:
    """Return an encoded `BundleEntryProto` with the checksum replaced by the one of `data`."""
    checksum = masked_crc32c(data).to_bytes(4, "little")
    fields = [span for span in spans(entry) if span.number == _CRC32C]
    if not fields:
        return entry + encoded(_CRC32C << 3 | 5) + checksum
    return entry[: fields[-1].start] + checksum + entry[fields[-1].end :]


def write_checkpoint_v1(contents: Contents, arrays: Mapping[str, Array]) -> None:
    """Write tensors into a version 1 checkpoint; see `write_arrays`."""
    shards = {extent.file.path for key in arrays for extent in contents.variables[key].extents()}
    for path in sorted(shards):
        changes = {}
        for saved, slices in saved_slices(Table(LocalFile(path)), path):
            key = saved.name
            for part in slices if key in arrays else ():
                piece = arrays[key][box_of(part, arrays[key].shape, key)]
                # The fields `SavedTensorSlices.data` and `SavedSlice.data`.
                changes[slice_key(key, part)] = at((2, 3), partial(with_values, piece))
        change(path, changes)


def write_saved_model(contents: Contents, arrays: Mapping[str, Array]) -> None:
    """Write tensors into a SavedModel; see `write_arrays`."""
    extents = [extent for key in arrays for extent in contents.variables[key].extents()]
    if extents and all(extent.file.name.startswith("variables.data-") for extent in extents):
        write_bundle(contents, arrays)
    else:
        graph.write(contents, arrays)
