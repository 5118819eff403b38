"""HDF5 files of named arrays that Keras did not write, such as `bn1/moving_mean`.

An array's role follows from its name alone; attributes are not read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from bnstat.formats.contents import Contents
from bnstat.formats.hdf5.file import Hdf5, is_hdf5
from bnstat.model import Source
from bnstat.storage.files import File

_NUMBERS: Final = ("float", "bfloat", "int", "uint", "bool")


def matches(file: File) -> bool:
    """Return True for an HDF5 file that contains arrays of numbers.

    Raises:
        DamagedError: it is a damaged HDF5 file.
    """
    return is_hdf5(file) and any(
        variable.dtype.startswith(_NUMBERS) for variable in Hdf5(file).variables.values()
    )


def open_contents(file: File, source: Source) -> Contents:
    """Return the arrays by their paths.

    Raises:
        DamagedError: the file is truncated or inconsistent.
    """
    variables = Hdf5(file).variables
    names = {key: variable.name for key, variable in variables.items()}
    return Contents(replace(source, format="hdf5"), variables, names=names)
