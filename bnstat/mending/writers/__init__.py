"""Write arrays into the files of a copy.

If a file contains the plain bytes of an array, these bytes are replaced. The module of the format
updates checksums and lengths, and writes arrays that are stored in another form.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Final

import numpy as np

from bnstat.formats.contents import Contents
from bnstat.model import Array
from bnstat.storage.files import Range

WRITERS: Final = {
    "tf2-checkpoint": "tensorflow.write_bundle",
    "tf1-checkpoint": "tensorflow.write_bundle",
    "tf1-checkpoint-v1": "tensorflow.write_checkpoint_v1",
    "saved-model": "tensorflow.write_saved_model",
    "frozen-graph": "graph.write",
    "keras-h5": "hdf5.write_hdf5",
    "keras-weights": "hdf5.write_hdf5",
    "keras-archive": "hdf5.write_keras_archive",
}
"""Format -> module and function that write the format."""


def write_arrays(contents: Contents, arrays: Mapping[str, Array]) -> None:
    """Write arrays (key -> array of the variable's shape and dtype) into an opened copy."""
    if arrays:
        module, _, function = WRITERS[contents.source.format].partition(".")
        getattr(import_module(f"bnstat.mending.writers.{module}"), function)(contents, arrays)


def patch(contents: Contents, arrays: Mapping[str, Array]) -> tuple[list[Range], list[str]]:
    """Replace the bytes of arrays that are stored as plain bytes.

    Return the ranges that were replaced, and the keys of the arrays that are not plain bytes.
    """
    done: list[Range] = []
    others = []
    for key, array in arrays.items():
        extents = contents.variables[key].extents()
        if array.size and (not extents or any(extent.part is None for extent in extents)):
            others.append(key)
            continue
        for extent in extents:
            assert extent.part is not None
            with open(extent.file.path, "r+b") as file:
                file.seek(extent.offset)
                file.write(raw(array[extent.part]))
            done.append(extent)
    return done, others


def raw(array: Array) -> bytes:
    """Return the bytes of an array, row-major and little-endian."""
    if sys.byteorder == "big":
        integers = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
        return integers.byteswap().tobytes()
    return array.tobytes()
