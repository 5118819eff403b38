"""Numbers placed on the axis of a chart, whatever is drawn there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_WIDE: Final = 1e3
"""From this ratio of the largest to the smallest on, positive numbers go by their logarithms."""


@dataclass(frozen=True, slots=True)
class Scale:
    """An axis from the smallest to the largest of some numbers.

    Attributes:
        low, high: its ends, finite.
        logarithmic: whether equal distances are equal ratios.
    """

    low: float
    high: float
    logarithmic: bool = False

    @classmethod
    def of(cls, values: Floats, adaptive: bool = True) -> Scale:
        """The axis for finite numbers, one at least.

        Args:
            values: the numbers.
            adaptive: whether the axis of positive numbers of very different sizes is logarithmic.
        """
        low, high = float(values.min()), float(values.max())
        return cls(low, high, adaptive and low > 0 and high / _WIDE > low)

    @property
    def is_point(self) -> bool:
        """Whether all of the numbers are the same."""
        return self.low == self.high

    def places(self, values: Floats) -> Floats:
        """Where finite numbers between the ends lie: from 0 at `low` to 1 at `high`.

        If both ends are the same, that is 0.5.
        """
        if self.is_point:
            return np.full_like(values, 0.5)
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, values = math.log10(low), math.log10(high), np.log10(values)
        # Scaled by a power of 2 first, so that the extent neither overflows nor vanishes.
        exponent = math.frexp(max(abs(low), abs(high)))[1]
        low, high = math.ldexp(low, -exponent), math.ldexp(high, -exponent)
        return np.clip((np.ldexp(values, -exponent) - low) / (high - low), 0, 1)

    def counts(self, values: Floats, bins: int) -> NDArray[np.intp]:
        """How many of the numbers lie in each of so many equal parts of the axis."""
        parts = (self.places(values) * bins).astype(np.intp)
        return np.bincount(np.minimum(parts, bins - 1), minlength=bins)


def bins_for(count: int, most: int) -> int:
    """How many parts show the distribution of so many numbers: twice the root, at most `most`."""
    return max(1, min(most, math.ceil(2 * math.sqrt(count))))
