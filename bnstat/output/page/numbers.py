"""Arrays packed for a page: one run of little-endian numbers, in base64."""

from __future__ import annotations

import base64

import numpy as np

from bnstat.model import Array

Place = tuple[int, int, int]
"""Bytes per number (4: float32, 8: float64), how many numbers, and the byte they start at."""


class Packed:
    """Takes arrays, and gives each its place.

    What float32 holds exactly (it, float16, bfloat16, the 8-bit floats, short integers) is
    packed as float32, bit for bit where it was that; all else as float64.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._end = 0

    def add(self, array: Array) -> Place:
        """Pack an array of any numeric dtype, in C order."""
        small = array.dtype.itemsize <= (2 if array.dtype.kind in "iu" else 4)
        kind = np.dtype("<f4" if small else "<f8")
        with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN like any other
            piece = array.astype(kind, copy=False).tobytes()
        place = (kind.itemsize, array.size, self._end)
        self._pieces.append(piece)
        self._end += len(piece)
        return place

    def text(self) -> str:
        """All of it in base64."""
        return base64.b64encode(b"".join(self._pieces)).decode("ascii")
