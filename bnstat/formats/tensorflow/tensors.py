"""The tensors of a TensorFlow checkpoint, whichever reader reads them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from bnstat.formats.contents import Reading
from bnstat.model import Array, Variable
from bnstat.storage.files import Folder


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
        from bnstat.formats.tensorflow.tensorflow_reader import TensorflowTensors

        return TensorflowTensors(folder, prefix)
    from bnstat.formats.tensorflow.bundle import Bundle

    return Bundle(folder, prefix, data=reading.values)
