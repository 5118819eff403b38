"""Tensors of a V1 checkpoint: a TensorProto in the table of its shard for each slice."""

from __future__ import annotations

from collections.abc import Mapping

from bnstat.formats.contents import Contents
from bnstat.formats.tensorflow.checkpoint_v1 import slices_in
from bnstat.formats.tensorflow.tensor_slice import slice_key
from bnstat.mending.writers import table
from bnstat.mending.writers.messages import at, tensor_with
from bnstat.model import Array
from bnstat.storage.local import LocalFile

_TENSOR = (2, 3)
"""SavedTensorSlices.data, the SavedSlice's data."""


def write(contents: Contents, arrays: Mapping[str, Array]) -> None:
    """Write tensors; see `bnstat.mending.writers.write`."""
    shards = {place.file.path for key in arrays for place in contents.variables[key].extents()}
    for path in sorted(shards):
        changes = {}
        for key, slices in slices_in(LocalFile(path)).items():
            if key not in arrays:
                continue
            for part in slices:
                piece = arrays[key][part.box(arrays[key].shape, key)]
                changes[slice_key(key, part)] = at(_TENSOR, tensor_with(piece))
        table.change(path, changes)
