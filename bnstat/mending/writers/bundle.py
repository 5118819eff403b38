"""Tensors of a bundle: their bytes in the data files, their checksums in the index.

The checksum is the field `crc32c` of a tensor's, or a slice's, entry, always of 4 bytes, so the
index keeps its size; the block that the entry is in has a checksum of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial

from bnstat.errors import UnsupportedError
from bnstat.formats.contents import Contents
from bnstat.formats.protobuf.wire import spans
from bnstat.formats.tensorflow.bundle import INDEX, Bundle
from bnstat.formats.tensorflow.shards import DATA
from bnstat.formats.tensorflow.tables.checksum import masked_crc32c
from bnstat.formats.tensorflow.tensor_slice import slice_key
from bnstat.mending.writers import table
from bnstat.mending.writers.patches import patch, raw
from bnstat.model import Array
from bnstat.storage.local import LocalFolder

_CRC32C = 6
_TAG = (_CRC32C << 3 | 5).to_bytes(1, "little")


def write(contents: Contents, arrays: Mapping[str, Array]) -> None:
    """Write tensors; see `bnstat.mending.writers.write`."""
    done, others = patch(contents, arrays)
    if others:
        raise UnsupportedError(contents.source.path, f"{others[0]} cannot be written")
    data = {place.file.path for place in done}
    for folder, prefix in {(os.path.dirname(path), _prefix(path)) for path in data}:
        bundle = Bundle(LocalFolder(folder), prefix, data=False)
        changes: dict[bytes, table.Change] = {}
        for key, array in arrays.items():
            entry = bundle.entry(key)
            for part in entry.slices:
                piece = array[part.box(entry.shape, key)]
                changes[slice_key(key, part)] = partial(_with_checksum, raw(piece))
            if not entry.slices:
                encoded = key.encode("utf-8", "surrogateescape")
                changes[encoded] = partial(_with_checksum, raw(array))
        table.change(os.path.join(folder, prefix + INDEX), changes)


def _prefix(path: str) -> str:
    match = DATA.match(os.path.basename(path))
    assert match is not None
    return match["prefix"]


def _with_checksum(data: bytes, entry: bytes) -> bytes:
    """A `BundleEntryProto` with the checksum of other bytes."""
    checksum = masked_crc32c(data).to_bytes(4, "little")
    found = [span for span in spans(entry) if span.number == _CRC32C]
    if not found:
        return entry + _TAG + checksum
    return entry[: found[-1].start] + checksum + entry[found[-1].end :]
