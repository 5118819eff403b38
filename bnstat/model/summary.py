"""The numbers of an array that a person looks at first."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnstat.model.variables import Array


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers that a person looks at first, in float64, over the finite elements.

    Attributes:
        count: the number of elements.
        bad: how many of them are NaN or infinite.
        mean, std, min, max: of the finite elements (population deviation); NaN if none is.
    """

    count: int
    bad: int
    mean: float
    std: float
    min: float
    max: float

    @classmethod
    def of(cls, array: Array) -> Summary:
        """Summarize an array of any numeric dtype."""
        values = as_float64(array).ravel()
        count = values.size
        with np.errstate(over="ignore", invalid="ignore"):
            total = values.sum()
            # The sum of finite numbers is finite unless it overflows.
            if not math.isfinite(total):
                values = values[np.isfinite(values)]
                total = values.sum()
            if not values.size:
                return cls(count, count, math.nan, math.nan, math.nan, math.nan)
            mean = float(total / values.size)
            deviations = values - mean
            deviations *= deviations
            std = math.sqrt(deviations.sum() / values.size)
        bad = count - values.size
        return cls(count, bad, mean, std, float(values.min()), float(values.max()))


def as_float64(array: Array) -> NDArray[np.float64]:
    """The array's numbers as float64 (bfloat16 and the 8-bit floats included)."""
    with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN like any other
        return array.astype(np.float64)
