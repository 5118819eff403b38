"""Checkpoints of TensorFlow before 0.12 ("V1"), which later versions could still write.

Each shard is an SSTable. Key "" holds a SavedTensorSlices whose `meta` lists the tensors with
their shapes, dtypes and slices; every other key is `tensor_slice.slice_key` and holds a
SavedTensorSlices whose `data` is one slice: a TensorProto with the packed values and neither
dtype nor shape. Shards are named `PREFIX-00000-of-00002`; a tensor's slices may lie in several.
The blocks have checksums, the tensors none.
Source: tensorflow/core/util/{tensor_slice_writer,tensor_slice_reader,saved_tensor_slice_util},
saved_tensor_slice.proto.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.contents import Contents, Reading
from bnstat.formats.dtypes import dtype_name, numpy_dtype
from bnstat.formats.protobuf.protos import parse
from bnstat.formats.tensorflow.checkpoint import open_tensors
from bnstat.formats.tensorflow.graph_def import meta_graphs
from bnstat.formats.tensorflow.sstable import Table, is_table
from bnstat.formats.tensorflow.tensor_slice import FULL, TensorSlice, assemble, slice_key
from bnstat.model import Array, Source, Variable
from bnstat.storage.files import File, Folder, Range

SHARD = re.compile(r"^(?P<prefix>.*)-(?P<shard>\d{5})-of-(?P<shards>\d{5})$", re.DOTALL)

# The field of TensorProto that holds the values of each dtype.
_FIELDS = {
    "float32": "float_val",
    "float64": "double_val",
    "int32": "int_val",
    "uint8": "int_val",
    "int16": "int_val",
    "int8": "int_val",
    "uint16": "int_val",
    "qint8": "int_val",
    "quint8": "int_val",
    "qint32": "int_val",
    "int64": "int64_val",
    "bool": "bool_val",
    "float16": "half_val",
    "bfloat16": "half_val",
}


def is_v1(file: File) -> bool:
    """Whether the file is a shard of a V1 checkpoint: an SSTable whose header says so."""
    if not is_table(file):
        return False
    header = Table(file).get(b"")
    # `SavedTensorSlices.meta` is field 1, a message; a bundle's header starts with a varint.
    return header is not None and header[:1] == b"\x0a"


@dataclass
class _Tensor:
    dtype: str
    shape: tuple[int, ...]
    slices: list[tuple[TensorSlice, Table]] = field(default_factory=list)


def open_checkpoint_v1(
    folder: Folder, prefix: str, shards: Sequence[File], source: Source, reading: Reading
) -> Contents:
    """What the V1 checkpoint of those shards holds.

    Raises:
        DamagedError: a shard is damaged, or they contradict each other.
    """
    source = replace(source, format="tf1-checkpoint-v1")
    meta = folder.file(prefix + ".meta")
    if reading.tensorflow:
        read = open_tensors(folder, prefix if len(shards) > 1 else shards[0].name, reading)
        return Contents(source, read.variables({}), graphs=meta_graphs(meta, read.keys))
    tensors: dict[str, _Tensor] = {}
    for file in shards:
        table = Table(file)
        for saved in _listed(table, file.path):
            shape = tuple(dim.size for dim in saved.shape.dim)
            if any(size < 0 for size in shape):
                raise DamagedError(file.path, f"{saved.name} has an impossible shape")
            tensor = _Tensor(dtype_name(saved.type), shape)
            known = tensors.setdefault(saved.name, tensor)
            if (known.dtype, known.shape) != (tensor.dtype, tensor.shape):
                raise DamagedError(file.path, f"{saved.name} has another shape in another shard")
            known.slices += [(_slice_of(part), table) for part in saved.slice]
    path = shards[0].path
    return Contents(
        source,
        {name: _variable(name, tensor, path) for name, tensor in tensors.items()},
        graphs=meta_graphs(meta, tensors),
    )


def slices_in(file: File) -> dict[str, list[TensorSlice]]:
    """Name of a tensor -> the slices of it that a shard holds.

    Raises:
        DamagedError: the file is no shard of such a checkpoint.
    """
    return {
        saved.name: [_slice_of(part) for part in saved.slice]
        for saved in _listed(Table(file), file.path)
    }


def _listed(table: Table, path: str) -> Sequence[Any]:
    """What a shard says of its tensors: a `SavedSliceMeta` each."""
    header = table.get(b"")
    if header is None:
        raise DamagedError(path, "is an SSTable, but no checkpoint")
    tensors: Sequence[Any] = parse("SavedTensorSlices", header, path).meta.tensor
    return tensors


def _slice_of(part: Any) -> TensorSlice:
    return TensorSlice(
        tuple(
            (extent.start, extent.length) if extent.HasField("length") else FULL
            for extent in part.extent
        )
    )


def _variable(name: str, tensor: _Tensor, path: str) -> Variable:
    return Variable(
        name,
        name,
        tensor.dtype,
        tensor.shape,
        lambda: _read(name, tensor, path),
        lambda: _extents(name, tensor),
    )


def _extents(name: str, tensor: _Tensor) -> list[Range]:
    """The blocks that hold the tensor's slices, among other things."""
    places = (table.place(slice_key(name, part)) for part, table in tensor.slices)
    return list(dict.fromkeys(place for place in places if place is not None))


def _read(name: str, tensor: _Tensor, path: str) -> Array:
    where = f"{path}, {name}"
    dtype = numpy_dtype(tensor.dtype, where)
    field_name = _FIELDS.get(tensor.dtype)
    if field_name is None:
        raise UnsupportedError(where, f"V1 checkpoints of {tensor.dtype} are not known")
    parts = []
    for part, table in tensor.slices:
        stored = table.get(slice_key(name, part))
        if stored is None:
            raise DamagedError(where, "a slice of it is missing")
        values = getattr(parse("SavedTensorSlices", stored, where).data.data, field_name)
        shape = tuple(range_.stop - range_.start for range_ in part.box(tensor.shape, where))
        if len(values) != int(np.prod(shape, dtype=object)):
            raise DamagedError(where, f"{len(values)} values cannot fill {list(shape)}")
        parts.append((part, _array(values, field_name, dtype).reshape(shape)))
    return assemble(tensor.shape, dtype, parts, where)


def _array(values: Any, field_name: str, dtype: np.dtype[np.generic]) -> Array:
    """A packed field's values; `half_val` holds the bits of a 16-bit float each."""
    if field_name == "half_val":
        return np.array(values, np.int32).astype(np.uint16).view(dtype)
    if field_name == "int_val":
        return np.array(values, np.int32).astype(dtype)
    return np.array(values, dtype)
