"""Arrays put together from the bytes at a variable's ranges, as who patches them sees them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bnstat.model import Variable


def from_extents(variable: Variable) -> NDArray[np.generic]:
    """The variable's array from its ranges alone; each element lies in exactly one of them."""
    kind = variable.read().dtype
    array = np.zeros(variable.shape, kind)
    covered = np.zeros(variable.shape, int)
    for place in variable.extents():
        assert place.part is not None
        shape = array[place.part].shape
        array[place.part] = np.frombuffer(place.read(), kind).reshape(shape)
        covered[place.part] += 1
    assert (covered == 1).all()
    return array
