"""Datasets of HDF5 files: bytes where they are in one piece, else by HDF5's own library.

The library is only given files that bnstat's own reader has found sound. What it writes it
compresses and checksums as the dataset says, and no other dataset is touched.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from bnstat.errors import BnstatError, UnsupportedError
from bnstat.formats.contents import Contents
from bnstat.formats.hdf5.file import Hdf5, is_hdf5
from bnstat.formats.keras.groups import shard_names
from bnstat.mending.writers.patches import patch
from bnstat.model import Array
from bnstat.storage.local import LocalFile


def write(contents: Contents, arrays: Mapping[str, Array]) -> None:
    """Write datasets; see `bnstat.mending.writers.write`."""
    _, others = patch(contents, arrays)
    write_by_library(_files(contents.source.path), {key: arrays[key] for key in others})


def write_by_library(paths: Iterable[str], arrays: Mapping[str, Array]) -> None:
    """Write datasets through HDF5's library, each into the file that has it.

    Raises:
        UnsupportedError: none of the files has one of them.
        BnstatError: the library refuses.
    """
    left = dict(arrays)
    for path in paths:
        file = LocalFile(path)
        if not left or not is_hdf5(file):
            continue
        held = Hdf5(file).variables.keys() & left.keys()
        if held:
            _write(path, {key: left.pop(key) for key in held})
    if left:
        raise UnsupportedError(next(iter(left)), "cannot be written")


def _write(path: str, arrays: Mapping[str, Array]) -> None:
    import h5py

    try:
        with h5py.File(path, "r+") as file:
            for key, array in arrays.items():
                dataset: Any = file[key]
                # bfloat16 is stored as pairs of bytes that HDF5 knows nothing of.
                raw = array.view(dataset.dtype) if dataset.dtype.kind == "V" else array
                dataset[...] = raw
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        first_line = str(error).partition("\n")[0]
        raise BnstatError(path, f"HDF5 cannot write it ({first_line})") from error


def _files(path: str) -> list[str]:
    """The files that a copy's datasets may be in."""
    if os.path.isdir(path):
        return [entry.path for entry in os.scandir(path) if entry.is_file()]
    folder = os.path.dirname(path)
    return [os.path.join(folder, name) for name in shard_names(LocalFile(path))[1]] or [path]
