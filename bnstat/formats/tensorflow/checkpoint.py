"""TensorFlow checkpoints in bundle form: by objects (TensorFlow 2) or by names (TensorFlow 1).

A TensorFlow 2 checkpoint holds its object graph among its tensors. One of TensorFlow 1 is keyed
by the variables' names, and often has the graph it belongs to beside it, as `PREFIX.meta`.

TensorFlow's own checkpoint reader: the fallback for what the native one does not know.

It reads bundles and V1 checkpoints alike (tensorflow/core/util/tensor_slice_reader.cc and
tensor_bundle.cc behind `CheckpointReader`). Importing TensorFlow takes seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bnstat.errors import BnstatError, DamagedError
from bnstat.formats.contents import Contents, Objects, Reading, Search
from bnstat.formats.dtypes import dtype_name
from bnstat.formats.tensorflow.graph_def import meta_graphs
from bnstat.formats.tensorflow.object_graph import KEY, VALUE, BestNames, path_name, read_nodes
from bnstat.model import Array, Source, Variable
from bnstat.storage.files import Folder

if TYPE_CHECKING:
    from bnstat.formats.keras.config import Described


class Tensors(Protocol):
    """A checkpoint's tensors by key."""

    @property
    def path(self) -> str:
        """Folder and prefix, for messages."""
        ...

    @property
    def keys(self) -> Collection[str]:
        """All checkpoint keys."""
        ...

    def variables(self, names: Mapping[str, str]) -> Mapping[str, Variable]:
        """The tensors by key; `names` gives those their best names that have one."""
        ...

    def read(self, key: str) -> Array:
        """A numeric tensor."""
        ...

    def read_string(self, key: str) -> bytes:
        """A tensor of one string."""
        ...


def open_tensors(folder: Folder, prefix: str, reading: Reading) -> Tensors:
    """The tensors of the bundle with that prefix.

    Raises:
        NotFoundError, DamagedError, UnsupportedError: see `Bundle`.
    """
    if reading.tensorflow:
        return TensorflowTensors(folder, prefix)
    from bnstat.formats.tensorflow.bundle import Bundle

    return Bundle(folder, prefix, data=reading.values)


def open_checkpoint(folder: Folder, prefix: str, source: Source, reading: Reading) -> Contents:
    """What the checkpoint of that prefix holds.

    Args:
        folder: where its files lie.
        prefix: what their names start with; may be empty.
        source: where the user pointed.
        reading: how to read.

    Raises:
        NotFoundError, DamagedError, UnsupportedError: see `Bundle`.
    """
    tensors = open_tensors(folder, prefix, reading)
    step = source.step if source.step is not None else _global_step(tensors, reading)
    if KEY in tensors.keys:
        nodes, notes = read_object_graph(tensors, reading)
        names, search = names_of(nodes, tensors)
        contents = Contents(
            source=replace(source, format="tf2-checkpoint", step=step),
            variables=tensors.variables(names),
            names=names,
            search=search,
            objects=nodes,
            notes=notes,
        )
        return replace(contents, configured=partial(_configured, contents)) if nodes else contents
    return Contents(
        source=replace(source, format="tf1-checkpoint", step=step),
        variables=tensors.variables({}),
        graphs=meta_graphs(folder.file(prefix + ".meta"), tensors.keys),
    )


def _configured(contents: Contents, described: Sequence[Described]) -> Contents:
    from bnstat.formats.keras.metadata import layers_of_objects

    return replace(contents, layers=layers_of_objects(described, contents.objects))


def read_object_graph(tensors: Tensors, reading: Reading) -> tuple[Objects, list[str]]:
    """The object graph, and what has to be said of it.

    It lies in a data file: where no values are wanted, its absence is no error.
    """
    try:
        return read_nodes(tensors.read_string(KEY), tensors.path), []
    except BnstatError:
        if reading.values:
            raise
        return Objects(), ["without the data files, layers are named by their checkpoint keys"]


def names_of(nodes: Objects, tensors: Tensors) -> tuple[Mapping[str, str], Search | None]:
    """The variables' best names, and how to look for some of them.

    Without an object graph the names are spelt by the checkpoint keys.
    """
    if nodes:
        names = BestNames(nodes)
        return names, names.ending_with
    return {key: path_name(key) for key in tensors.keys if key.endswith(VALUE)}, None


def _global_step(tensors: Tensors, reading: Reading) -> int | None:
    """The training step that a TensorFlow 1 checkpoint counts in `global_step`."""
    if not reading.values or "global_step" not in tensors.keys:
        return None
    try:
        step = tensors.read("global_step")
    except BnstatError:
        return None
    return int(step) if step.shape == () and step.dtype.kind in "iu" else None


class TensorflowTensors:
    """A checkpoint's tensors, as TensorFlow reads them.

    Args:
        folder: where the files lie; it has to be on disk.
        prefix: what their names start with.

    Raises:
        BnstatError: TensorFlow cannot be imported, or the folder lies in an archive.
        DamagedError: TensorFlow cannot read the checkpoint.
    """

    def __init__(self, folder: Folder, prefix: str) -> None:
        self.path = f"{folder.path}/{prefix}"
        if not os.path.isdir(folder.path):
            raise BnstatError(self.path, "TensorFlow cannot read inside an archive", "unpack it")
        self._reader = self._attempt(lambda: _open_reader(self.path))
        self._shapes: dict[str, list[int]] = self._attempt(self._reader.get_variable_to_shape_map)
        self._dtypes = self._attempt(self._reader.get_variable_to_dtype_map)

    @property
    def keys(self) -> Collection[str]:
        """All checkpoint keys."""
        return self._shapes.keys()

    def variables(self, names: Mapping[str, str]) -> Mapping[str, Variable]:
        """The tensors by key; `names` gives those their best names that have one."""
        return {key: self._variable(key, names.get(key, key)) for key in sorted(self._shapes)}

    def read(self, key: str) -> Array:
        """A numeric tensor. Raises `DamagedError` where TensorFlow cannot read it."""
        return np.asarray(self._attempt(lambda: self._reader.get_tensor(key)))

    def read_string(self, key: str) -> bytes:
        """A tensor of one string. Raises `DamagedError` where TensorFlow cannot read it."""
        return bytes(self._attempt(lambda: self._reader.get_tensor(key)))

    def _variable(self, key: str, name: str) -> Variable:
        dtype = dtype_name(self._dtypes[key].as_datatype_enum % 100)
        return Variable(key, name, dtype, tuple(self._shapes[key]), lambda: self.read(key))

    def _attempt(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except BnstatError:
            raise
        except Exception as error:  # TensorFlow's reader raises whatever its C++ code maps to.
            first_line = str(error).strip().partition("\n")[0]
            raise DamagedError(self.path, f"TensorFlow cannot read it: {first_line}") from error


def _open_reader(path: str) -> Any:
    try:
        with without_chatter():
            from tensorflow.python.training import py_checkpoint_reader
    except ImportError as error:
        raise BnstatError(
            path,
            f"TensorFlow's reader is needed, and cannot be imported ({error})",
            "install tensorflow",
        ) from error
    return py_checkpoint_reader.NewCheckpointReader(path)


@contextmanager
def without_chatter() -> Iterator[None]:
    """Keep what TensorFlow's C++ code logs while it is loaded off the standard error."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
