"""Checkpoints of TensorFlow, stored as bundles or, before TensorFlow 0.12 ("V1"), as SSTables.

A TensorFlow 2 checkpoint stores its object graph among its tensors. The keys of a TensorFlow 1
checkpoint are the names of variables; a second file, `PREFIX.meta`, often stores the graph. If the
user selects the reader `tensorflow`, TensorFlow's own `CheckpointReader` reads the tensors.

A V1 checkpoint is an SSTable, or several shards named `PREFIX-00000-of-00002`. The values are
SavedTensorSlices. The value of key "" has the field `meta`, which lists tensors with their shapes,
dtypes and slices. All other keys are made by `bundle.slice_key`; each of their values stores one
slice in the field `data`, a TensorProto with packed values but without dtype and shape. Several
shards may contain slices of the same tensor. Blocks have checksums, tensors do not.

Sources of V1: tensorflow/core/util/{tensor_slice_writer,tensor_slice_reader,
saved_tensor_slice_util}, saved_tensor_slice.proto.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import numpy as np

from bnstat.errors import BnstatError, DamagedError, first_line
from bnstat.formats.contents import Contents, Graph, Layer, Objects, Reading
from bnstat.formats.dtypes import dtype_name, numpy_dtype
from bnstat.formats.protobuf.wire import LARGEST_MESSAGE
from bnstat.formats.tensorflow.bundle import Bundle, TensorSlice, assemble, box_of, slice_key
from bnstat.formats.tensorflow.object_graph import KEY, VALUE, BestNames, path_name, read_nodes
from bnstat.formats.tensorflow.sstable import Table
from bnstat.model import Array, Source, Variable
from bnstat.storage.files import File, Folder, Range

_TOO_NEW: Final = (3, 14)
"""The first version of Python for which TensorFlow has no release."""


def open_tensors(folder: Folder, prefix: str, reading: Reading) -> Bundle | TensorflowTensors:
    """Open a checkpoint's tensors with TensorFlow's reader if selected, otherwise as a bundle."""
    if reading.tensorflow:
        return TensorflowTensors(folder, prefix)
    return Bundle(folder, prefix, data=reading.values)


def open_checkpoint(folder: Folder, prefix: str, source: Source, reading: Reading) -> Contents:
    """Open a checkpoint that is stored as a bundle."""
    tensors = open_tensors(folder, prefix, reading)
    variables = tensors.variables()
    if source.step is None and reading.values:
        source = replace(source, step=_global_step(variables))
    if KEY not in variables:
        graphs = _meta_graphs(folder, prefix, variables)
        return Contents(replace(source, format="tf1-checkpoint"), variables, graphs=graphs)
    contents = contents_of_objects(tensors, replace(source, format="tf2-checkpoint"), reading)

    def configured(described: Sequence[Layer]) -> Contents:
        from bnstat.formats.keras.metadata import layers_of_objects

        return replace(contents, layers=layers_of_objects(described, contents.objects))

    return replace(contents, configured=configured) if contents.objects else contents


def contents_of_objects(
    tensors: Bundle | TensorflowTensors, source: Source, reading: Reading, notes: Sequence[str] = ()
) -> Contents:
    """Return the tensors of a TensorFlow 2 checkpoint, and its object graph.

    If the object graph is unreadable, raise an error if values are requested; otherwise, name the
    variables by their keys.
    """
    try:
        nodes = read_nodes(tensors.read_string(KEY), tensors.path)
    except BnstatError:
        if reading.values:
            raise
        nodes = Objects()
        notes = [*notes, "without the data files, layers are named by their checkpoint keys"]
    if not nodes:
        names = {key: path_name(key) for key in tensors.variables() if key.endswith(VALUE)}
        return Contents(source, tensors.variables(names), names=names, notes=notes)
    best = BestNames(nodes)
    search, variables = best.ending_with, tensors.variables(best)
    return Contents(source, variables, names=best, search=search, objects=nodes, notes=notes)


def _global_step(variables: Mapping[str, Variable]) -> int | None:
    if "global_step" not in variables:
        return None
    try:
        step = variables["global_step"].read()
    except BnstatError:
        return None
    return int(step) if step.shape == () and step.dtype.kind in "iu" else None


def _meta_graphs(
    folder: Folder, prefix: str, keys: Container[str]
) -> Callable[[], Iterable[Graph]] | None:
    """Return a function that reads the graph in `PREFIX.meta`; None if there is no such file."""
    meta = folder.file(prefix + ".meta")
    if meta is None or meta.size >= LARGEST_MESSAGE:
        return None

    def read() -> Iterator[Graph]:
        from bnstat.formats.protobuf.protos import parse
        from bnstat.formats.tensorflow.graph_def import graph_of

        try:
            graph = parse("MetaGraphDef", meta.read(), meta.path, "the graph").graph_def
        except BnstatError:  # The graph is optional.
            return
        yield graph_of(graph, keys)

    return read


@dataclass
class _TensorV1:
    name: str
    dtype: str
    shape: tuple[int, ...]
    where: str
    slices: list[tuple[TensorSlice, Table]] = field(default_factory=list)

    def read(self) -> Array:
        from bnstat.formats.protobuf.protos import parse
        from bnstat.formats.tensorflow.graph_def import listed_values

        dtype = numpy_dtype(self.dtype, self.where)
        parts = []
        for part, table in self.slices:
            stored = table.get(slice_key(self.name, part))
            if stored is None:
                raise DamagedError(self.where, "a slice of this tensor is missing")
            message = parse("SavedTensorSlices", stored, self.where).data.data
            values = listed_values(message, self.dtype, self.where)
            parts.append((box_of(part, self.shape, self.where), values))
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
    if reading.tensorflow:
        name = prefix if len(shards) > 1 else shards[0].name
        stored = TensorflowTensors(folder, name).variables()
        return Contents(source, stored, graphs=_meta_graphs(folder, prefix, stored))
    tensors: dict[str, _TensorV1] = {}
    for file in shards:
        table = Table(file)
        for saved, slices in saved_slices(table, file.path):
            dtype, shape = dtype_name(saved.type), tuple(dim.size for dim in saved.shape.dim)
            if any(size < 0 for size in shape):
                raise DamagedError(file.path, f"{saved.name} has an impossible shape")
            where = f"{shards[0].path}, {saved.name}"
            tensor = tensors.setdefault(saved.name, _TensorV1(saved.name, dtype, shape, where))
            if (tensor.dtype, tensor.shape) != (dtype, shape):
                problem = f"{saved.name} has another shape or dtype in another shard"
                raise DamagedError(file.path, problem)
            tensor.slices += [(part, table) for part in slices]
    variables = {
        name: Variable(name, name, tensor.dtype, tensor.shape, tensor.read, tensor.extents)
        for name, tensor in tensors.items()
    }
    return Contents(source, variables, graphs=_meta_graphs(folder, prefix, tensors))


def saved_slices(table: Table, path: str) -> Iterator[tuple[Any, list[TensorSlice]]]:
    """Yield (SavedSliceMeta, slices) for each tensor that has slices in a shard."""
    from bnstat.formats.protobuf.protos import parse

    header = table.get(b"")
    if header is None:
        raise DamagedError(path, "is an SSTable, but not a checkpoint")
    for saved in parse("SavedTensorSlices", header, path).meta.tensor:
        slices = [
            tuple((dim.start, dim.length if dim.HasField("length") else -1) for dim in part.extent)
            for part in saved.slice
        ]
        yield saved, slices


class TensorflowTensors:
    """The tensors of a checkpoint, read by TensorFlow, with the interface of `Bundle`."""

    def __init__(self, folder: Folder, prefix: str) -> None:
        self.path = f"{folder.path}/{prefix}"
        if not os.path.isdir(folder.path):
            raise BnstatError(self.path, "TensorFlow cannot read inside an archive", "unpack it")
        with importing_tensorflow("for the reader 'tensorflow'"):
            from tensorflow.python.training import py_checkpoint_reader
        self._reader = self._attempt(lambda: py_checkpoint_reader.NewCheckpointReader(self.path))
        self._shapes: dict[str, list[int]] = self._attempt(self._reader.get_variable_to_shape_map)
        self._dtypes = self._attempt(self._reader.get_variable_to_dtype_map)

    def variables(self, names: Mapping[str, str] | None = None) -> Mapping[str, Variable]:
        names = names or {}
        return {
            key: Variable(
                key,
                names.get(key, key),
                dtype_name(self._dtypes[key].as_datatype_enum % 100),
                tuple(self._shapes[key]),
                partial(self._read, key),
            )
            for key in sorted(self._shapes)
        }

    def _read(self, key: str) -> Array:
        return np.asarray(self._attempt(lambda: self._reader.get_tensor(key)))

    def read_string(self, key: str) -> bytes:
        return bytes(self._attempt(lambda: self._reader.get_tensor(key)))

    def _attempt(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # TensorFlow maps errors of its C++ code to many classes.
            problem = f"TensorFlow cannot read the checkpoint: {first_line(error)}"
            raise DamagedError(self.path, problem) from error


@contextmanager
def importing_tensorflow(purpose: str) -> Iterator[None]:
    """A context for importing TensorFlow. Hide stderr; convert any error to a `BnstatError`.

    `purpose` follows "is needed" in the error message, for example `to run a model`.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        stderr = os.dup(2)
        try:
            with open(os.devnull, "wb") as devnull:
                os.dup2(devnull.fileno(), 2)
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
    except Exception as error:  # An old protobuf, for example, raises an error of its own class.
        remedy = "pip install tensorflow"
        if not isinstance(error, ModuleNotFoundError) or error.name != "tensorflow":
            remedy = "pip install --upgrade tensorflow protobuf"
        elif sys.version_info >= _TOO_NEW:
            version = ".".join(map(str, sys.version_info[:2]))
            remedy = f"TensorFlow has no release for Python {version}: use Python 3.10 to 3.13"
        problem = f"is needed {purpose}, and cannot be imported ({first_line(error)})"
        raise BnstatError("TensorFlow", problem, remedy) from error
