"""Checkpoints of TensorFlow before 0.12 ("V1"), which later versions can still write.

Each shard is an SSTable named `PREFIX-00000-of-00002`. Its values are SavedTensorSlices. The value
of key "" has the field `meta`, which lists tensors with their shapes, dtypes and slices. All other
keys are made by `bundle.slice_key`; their values have the field `data` with one slice, as a
TensorProto with packed values but neither dtype nor shape. Several shards may contain slices of one
tensor. Blocks have checksums, tensors do not.

Sources: tensorflow/core/util/{tensor_slice_writer,tensor_slice_reader,saved_tensor_slice_util},
saved_tensor_slice.proto.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from bnstat.errors import DamagedError
from bnstat.formats.contents import Contents, Reading
from bnstat.formats.dtypes import dtype_name, numpy_dtype
from bnstat.formats.protobuf.protos import parse
from bnstat.formats.tensorflow.bundle import (
    FULL,
    TensorSlice,
    assemble,
    box_of,
    shape_of_box,
    slice_key,
)
from bnstat.formats.tensorflow.checkpoint import open_tensors
from bnstat.formats.tensorflow.graph_def import listed_values, meta_graphs
from bnstat.formats.tensorflow.sstable import Table
from bnstat.model import Array, Source, Variable
from bnstat.storage.files import File, Folder, Range


@dataclass
class _Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    where: str
    slices: list[tuple[TensorSlice, Table]] = field(default_factory=list)

    def read(self) -> Array:
        dtype = numpy_dtype(self.dtype, self.where)
        parts = []
        for part, table in self.slices:
            stored = table.get(slice_key(self.name, part))
            if stored is None:
                raise DamagedError(self.where, "a slice of this tensor is missing")
            message = parse("SavedTensorSlices", stored, self.where).data.data
            values = listed_values(message, self.dtype, dtype, self.where)
            box = box_of(part, self.shape, self.where)
            shape = shape_of_box(box)
            if len(values) != prod(shape):
                raise DamagedError(
                    self.where, f"has {len(values)} values in a slice of shape {list(shape)}"
                )
            parts.append((box, values.reshape(shape)))
        return assemble(self.shape, dtype, parts, self.where)

    def extents(self) -> list[Range]:
        """Return the ranges of the blocks that contain slices of the tensor."""
        places = (table.place(slice_key(self.name, part)) for part, table in self.slices)
        return list(dict.fromkeys(place for place in places if place is not None))


def open_checkpoint_v1(
    folder: Folder, prefix: str, shards: Sequence[File], source: Source, reading: Reading
) -> Contents:
    """Open a V1 checkpoint; raise `DamagedError` if two shards are inconsistent."""
    source = replace(source, format="tf1-checkpoint-v1")
    meta = folder.file(prefix + ".meta")
    if reading.tensorflow:
        name = prefix if len(shards) > 1 else shards[0].name
        stored = open_tensors(folder, name, reading).variables()
        return Contents(source, stored, graphs=meta_graphs(meta, stored))
    tensors: dict[str, _Tensor] = {}
    for file in shards:
        table = Table(file)
        for saved in _saved_slices(table, file.path):
            dtype, shape = dtype_name(saved.type), tuple(dim.size for dim in saved.shape.dim)
            if any(size < 0 for size in shape):
                raise DamagedError(file.path, f"{saved.name} has an impossible shape")
            where = f"{shards[0].path}, {saved.name}"
            tensor = tensors.setdefault(saved.name, _Tensor(saved.name, dtype, shape, where))
            if (tensor.dtype, tensor.shape) != (dtype, shape):
                raise DamagedError(
                    file.path, f"{saved.name} has another shape or dtype in another shard"
                )
            tensor.slices += [(_tensor_slice(part), table) for part in saved.slice]
    variables = {
        name: Variable(name, name, tensor.dtype, tensor.shape, tensor.read, tensor.extents)
        for name, tensor in tensors.items()
    }
    return Contents(source, variables, graphs=meta_graphs(meta, tensors))


def slices_in(file: File) -> dict[str, list[TensorSlice]]:
    """Return name of a tensor -> slices of the tensor that a shard contains."""
    return {
        saved.name: [_tensor_slice(part) for part in saved.slice]
        for saved in _saved_slices(Table(file), file.path)
    }


def _saved_slices(table: Table, path: str) -> Sequence[Any]:
    """Return a `SavedSliceMeta` for each tensor that has slices in a shard."""
    header = table.get(b"")
    if header is None:
        raise DamagedError(path, "is an SSTable, but not a checkpoint")
    tensors: Sequence[Any] = parse("SavedTensorSlices", header, path).meta.tensor
    return tensors


def _tensor_slice(part: Any) -> TensorSlice:
    return tuple(
        (extent.start, extent.length) if extent.HasField("length") else FULL
        for extent in part.extent
    )
