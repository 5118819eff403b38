"""Build arrays from the bytes at the extents of a variable, like a program that patches them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bnstat.model import Variable


def from_extents(variable: Variable) -> NDArray[np.generic]:
    """Return the array of a variable from its extents. Each element lies in exactly one extent."""
    kind = variable.read().dtype
    array = np.zeros(variable.shape, kind)
    covered = np.zeros(variable.shape, int)
    for extent in variable.extents():
        shape = array[extent.part].shape
        array[extent.part] = np.frombuffer(extent.read(), kind).reshape(shape)
        covered[extent.part] += 1
    assert (covered == 1).all()
    return array
