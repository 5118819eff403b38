"""Arrays written into the files of a copy, format by format.

Where a file holds an array as it is, its bytes are replaced; what the format keeps beside them,
a checksum or a length, is brought up to date by the format's own module.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Final, Protocol, cast

from bnstat.formats.contents import Contents
from bnstat.model import Array


class Writer(Protocol):
    """What a format's module offers."""

    def write(self, contents: Contents, arrays: Mapping[str, Array]) -> None:
        """Give variables of the copy that was opened as `contents` new arrays, by key."""
        ...


_WRITERS: Final = {
    "tf2-checkpoint": "bundle",
    "tf1-checkpoint": "bundle",
    "tf1-checkpoint-v1": "checkpoint_v1",
    "saved-model": "saved_model",
    "frozen-graph": "graph",
    "keras-h5": "hdf5",
    "keras-weights": "hdf5",
    "keras-archive": "keras_archive",
}
"""Format -> the module that writes it."""


def write(contents: Contents, arrays: Mapping[str, Array]) -> None:
    """Give variables of a copy new arrays.

    Args:
        contents: the copy as it was opened.
        arrays: key -> array of the variable's own shape and dtype.

    Raises:
        UnsupportedError: a variable is stored in a way that cannot be written.
        OSError: a file cannot be written.
    """
    if arrays:
        module = import_module(f"bnstat.mending.writers.{_WRITERS[contents.source.format]}")
        cast(Writer, module).write(contents, arrays)
