"""Arrays written into the files of a copy, format by format.

Where a file holds an array as it is, its bytes are replaced; what the format keeps beside them,
a checksum or a length, is brought up to date by the format's own module.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Final

import numpy as np

from bnstat.formats.contents import Contents
from bnstat.model import Array
from bnstat.storage.files import Range

Write = Callable[[Contents, Mapping[str, Array]], None]
"""Gives variables of the copy that was opened as these contents new arrays, by key."""

_WRITERS: Final = {
    "tf2-checkpoint": "tensorflow.write_bundle",
    "tf1-checkpoint": "tensorflow.write_bundle",
    "tf1-checkpoint-v1": "tensorflow.write_checkpoint_v1",
    "saved-model": "tensorflow.write_saved_model",
    "frozen-graph": "graph.write",
    "keras-h5": "keras.write_hdf5",
    "keras-weights": "keras.write_hdf5",
    "keras-archive": "keras.write_keras_archive",
}
"""Format -> the module and function that write it."""


def write_arrays(contents: Contents, arrays: Mapping[str, Array]) -> None:
    """Give variables of a copy new arrays.

    Args:
        contents: the copy as it was opened.
        arrays: key -> array of the variable's own shape and dtype.

    Raises:
        UnsupportedError: a variable is stored in a way that cannot be written.
        OSError: a file cannot be written.
    """
    if arrays:
        module, _, function = _WRITERS[contents.source.format].partition(".")
        write: Write = getattr(import_module(f"bnstat.mending.writers.{module}"), function)
        write(contents, arrays)


def patch(contents: Contents, arrays: Mapping[str, Array]) -> tuple[list[Range], list[str]]:
    """Replace the bytes of arrays.

    Returns:
        What was replaced, and the keys of the variables that are stored in another form.
    """
    done: list[Range] = []
    others = []
    for key, array in arrays.items():
        places = contents.variables[key].extents()
        if array.size and (not places or any(place.part is None for place in places)):
            others.append(key)
            continue
        for place in places:
            assert place.part is not None
            overwrite(place.file.path, place.offset, raw(array[place.part]))
            done.append(place)
    return done, others


def overwrite(path: str, offset: int, data: bytes) -> None:
    """Replace some bytes of a file."""
    with open(path, "r+b", 0) as file:
        file.seek(offset)
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]


def raw(array: Array) -> bytes:
    """An array's bytes as files have them: row-major and little-endian."""
    if sys.byteorder == "big":
        raw_integers = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
        return raw_integers.byteswap().tobytes()
    return array.tobytes()
