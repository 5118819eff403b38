"""Checkpoints of TensorFlow 1 and 2 that are stored as bundles.

A TensorFlow 2 checkpoint stores its object graph among its tensors. The keys of a TensorFlow 1
checkpoint are the names of variables; its graph is often stored beside it, as `PREFIX.meta`. If the
user selects the reader `tensorflow`, TensorFlow's own `CheckpointReader` reads the tensors.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np

from bnstat.errors import BnstatError, DamagedError, first_line
from bnstat.formats.contents import Contents, Layer, Objects, Reading
from bnstat.formats.dtypes import dtype_name
from bnstat.formats.tensorflow.bundle import NO_NAMES, Bundle
from bnstat.formats.tensorflow.object_graph import KEY, VALUE, BestNames, path_name, read_nodes
from bnstat.model import Array, Source, Variable
from bnstat.storage.files import Folder

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
    contents = contents_of_objects(tensors, replace(source, format="tf2-checkpoint"), reading)

    def configured(described: Sequence[Layer]) -> Contents:
        from bnstat.formats.keras.metadata import layers_of_objects

        return replace(contents, layers=layers_of_objects(described, contents.objects))

    return replace(contents, configured=configured) if contents.objects else contents


def contents_of_objects(
    tensors: Bundle | TensorflowTensors, source: Source, reading: Reading, notes: Sequence[str] = ()
) -> Contents:
    """Return the tensors of a TensorFlow 2 checkpoint, and its object graph.

    The graph is stored in a data file. If it cannot be read and no values are requested, it is
    empty, and the names of variables are made from their keys.
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
    return Contents(
        source,
        tensors.variables(best),
        names=best,
        search=best.ending_with,
        objects=nodes,
        notes=notes,
    )


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
    """A context that imports TensorFlow silently and explains errors.

    `purpose` says what TensorFlow is needed for, as in `to run a model`.
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
