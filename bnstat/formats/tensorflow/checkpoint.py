"""Checkpoints of TensorFlow 1 and 2 that are stored as bundles.

A TensorFlow 2 checkpoint stores its object graph among its tensors. The keys of a TensorFlow 1
checkpoint are the names of variables; its graph is often stored beside it, as `PREFIX.meta`.

`TensorflowTensors` reads bundles and V1 checkpoints with TensorFlow's own `CheckpointReader`
(tensorflow/core/util/tensor_slice_reader.cc and tensor_bundle.cc), if the user selects the reader
`tensorflow`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bnstat.errors import BnstatError, DamagedError, first_line
from bnstat.formats.contents import Contents, Layer, Objects, Reading, Search
from bnstat.formats.dtypes import dtype_name
from bnstat.formats.tensorflow.bundle import NO_NAMES, Bundle
from bnstat.formats.tensorflow.object_graph import KEY, VALUE, BestNames, path_name, read_nodes
from bnstat.model import Array, Source, Variable
from bnstat.storage.files import Folder

if TYPE_CHECKING:
    from bnstat.formats.tensorflow.frozen_graph import DeclaredTensors

_TOO_NEW: Final = (3, 14)
"""The first version of Python for which TensorFlow has no release."""


def open_tensors(folder: Folder, prefix: str, reading: Reading) -> Bundle | TensorflowTensors:
    """Open the tensors of a bundle or, with TensorFlow's reader, of any checkpoint."""
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
        contents = Contents(replace(source, format="tf1-checkpoint"), variables)
        if (meta := folder.file(prefix + ".meta")) is None:
            return contents
        from bnstat.formats.tensorflow.graph_def import meta_graphs

        return replace(contents, graphs=meta_graphs(meta, variables))
    nodes, notes = read_object_graph(tensors, reading)
    names, search = names_of(nodes, tensors)
    contents = Contents(
        source=replace(source, format="tf2-checkpoint"),
        variables=tensors.variables(names),
        names=names,
        search=search,
        objects=nodes,
        notes=notes,
    )

    def configured(described: Sequence[Layer]) -> Contents:
        from bnstat.formats.keras.metadata import layers_of_objects

        return replace(contents, layers=layers_of_objects(described, nodes))

    return replace(contents, configured=configured) if nodes else contents


def read_object_graph(
    tensors: Bundle | TensorflowTensors, reading: Reading
) -> tuple[Objects, list[str]]:
    """Return the object graph of a checkpoint, and notes for the user.

    The graph is empty if it cannot be read from its data file and no values are requested.
    """
    try:
        return read_nodes(tensors.read_string(KEY), tensors.path), []
    except BnstatError:
        if reading.values:
            raise
        return Objects(), ["without the data files, layers are named by their checkpoint keys"]


def names_of(
    nodes: Objects, tensors: Bundle | TensorflowTensors | DeclaredTensors
) -> tuple[Mapping[str, str], Search | None]:
    """Return (key -> best name of the variable, a function that searches the names by ending).

    Without an object graph, the names are made from the checkpoint keys, and the function is None.
    """
    if nodes:
        names = BestNames(nodes)
        return names, names.ending_with
    return {key: path_name(key) for key in tensors.variables() if key.endswith(VALUE)}, None


def _global_step(variables: Mapping[str, Variable]) -> int | None:
    """Return the training step that TensorFlow 1 stores in the variable `global_step`, or None."""
    if "global_step" not in variables:
        return None
    try:
        step = variables["global_step"].read()
    except BnstatError:
        return None
    return int(step) if step.shape == () and step.dtype.kind in "iu" else None


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

    def variables(self, names: Mapping[str, str] = NO_NAMES) -> Mapping[str, Variable]:
        """Return key -> variable; `names` maps keys to the names of variables."""
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
        """Return the element of a scalar string tensor."""
        return bytes(self._attempt(lambda: self._reader.get_tensor(key)))

    def _attempt(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # TensorFlow maps errors of its C++ code to many classes.
            problem = f"TensorFlow cannot read the checkpoint: {first_line(error)}"
            raise DamagedError(self.path, problem) from error


@contextmanager
def importing_tensorflow(purpose: str) -> Iterator[None]:
    """A context for importing TensorFlow: it silences TensorFlow and converts errors.

    The error says what TensorFlow is needed for: `purpose`, such as `to run a model`.
    """
    try:
        with _silenced():
            yield
    except Exception as error:  # An old protobuf, for example, raises an error of its own class.
        raise BnstatError(
            "TensorFlow",
            f"is needed {purpose}, and cannot be imported ({first_line(error)})",
            _remedy(error),
        ) from error


def _remedy(error: Exception) -> str:
    if not isinstance(error, ModuleNotFoundError) or error.name != "tensorflow":
        return "pip install --upgrade tensorflow protobuf"
    if sys.version_info >= _TOO_NEW:
        version = ".".join(map(str, sys.version_info[:2]))
        return f"TensorFlow has no release for Python {version}: use Python 3.10 to 3.13"
    return "pip install tensorflow"


@contextmanager
def _silenced() -> Iterator[None]:
    """Suppress what TensorFlow's C++ code writes to standard error while it is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as devnull:
            os.dup2(devnull.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
