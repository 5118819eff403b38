"""TensorFlow's own checkpoint reader: the fallback for what the native one does not know.

It reads bundles and V1 checkpoints alike (tensorflow/core/util/tensor_slice_reader.cc and
tensor_bundle.cc behind `CheckpointReader`). Importing TensorFlow takes seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bnstat.errors import BnstatError, DamagedError
from bnstat.formats.dtypes import dtype_name
from bnstat.model import Array, Variable
from bnstat.storage.files import Folder


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
        if not Path(folder.path).is_dir():
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
