"""HDF5's own library, for the arrays that `arrays` does not know how to read.

Keras keeps every array in one piece. Tools that save its files again may use the chunk trees of
HDF5 1.10 or filters such as lzf. Those are left to h5py, array by array, after the tree of the
file has been walked and found sound.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bnstat.errors import DamagedError
from bnstat.model import Array
from bnstat.storage.files import File


def read_array(source: File, path: str, dtype: np.dtype[np.generic]) -> Array:
    """Return the array of the dataset at `path`, its elements taken as `dtype`.

    Raises:
        DamagedError: HDF5 cannot read it.
    """
    import h5py

    try:
        # By a stream, for another file may have taken the path since the tree was walked.
        with source.open() as stream, h5py.File(stream, "r") as file:
            array: Any = np.asarray(file[path][()])
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        first_line = str(error).partition("\n")[0]
        raise DamagedError(source.path, f"{path} cannot be read ({first_line})") from error
    return np.ascontiguousarray(array).view(dtype)
