"""The names of a layer's channels.

A channel of a vector is called by its index, also where the vector is stored with dimensions of
size 1 around it (`[1, 1, 1, 32]`). An element of any other shape is called by its index in each
dimension, with colons between them: `0:3:1`.
"""

from __future__ import annotations

import numpy as np


def labels(shape: tuple[int, ...], start: int, stop: int, step: int = 1) -> list[str]:
    """The names of the elements of an array from position `start` to `stop`, in C order."""
    positions = np.arange(start, stop, step)
    if sum(size != 1 for size in shape) <= 1:
        return list(map(str, positions.tolist()))
    indices = [axis.tolist() for axis in np.unravel_index(positions, shape)]
    return [":".join(map(str, index)) for index in zip(*indices, strict=True)]
