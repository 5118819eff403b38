"""Numbers as text, and the axes and histograms of charts."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnstat.model import Array, as_float64

_MOST_DIGITS: Final = 4


def compact_pair(mean: float, deviation: float, digits: int) -> tuple[str, str]:
    """Format a mean and a deviation; the mean gets no more decimals than the deviation.

    The deviation gets `digits` significant digits, and the mean at most 4 significant digits.
    """
    spread = compact(deviation, digits)
    sizes = (abs(mean), deviation)
    if not deviation or not all(map(math.isfinite, sizes)) or not 1e-3 <= max(sizes) < 1e5:
        return compact(mean, digits), spread
    decimals = _decimals(deviation, digits)
    if mean:
        decimals = min(decimals, _decimals(mean, _MOST_DIGITS))
    # Adding 0 makes 0 of a -0, which is what a small negative mean may be rounded to.
    return f"{round(mean, decimals) + 0.0:.{decimals}f}", spread


def compact(number: float, digits: int) -> str:
    """Format a number with `digits` significant digits, but at most `digits + 1` decimals."""
    if not math.isfinite(number):
        return str(number)
    size = abs(number)
    if number == int(number) and size < 1e5:
        return str(int(number))
    if not 1e-3 <= size < 1e5:
        mantissa, exponent = f"{number:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{number:.{_decimals(number, digits)}f}"


def factor(ratio: float) -> str:
    """Return a positive ratio as text: a percentage (`2.50%`) if below 10, else `x12`."""
    return f"{ratio:.2%}" if ratio < 10 else f"x{compact(ratio, 3)}"


def counted(number: int, noun: str) -> str:
    """Return a number with a noun, such as `1 layer` and `1,234 layers`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _decimals(number: float, digits: int) -> int:
    return min(max(0, digits - 1 - math.floor(math.log10(abs(number)))), digits + 1)


Floats = NDArray[np.float64]

_LOGARITHMIC_FROM: Final = 1e3
"""An axis is logarithmic if the largest positive number is more than this times the smallest."""


def finite(array: Array) -> Floats:
    """Return the finite numbers of an array as a vector."""
    values = as_float64(array).ravel()
    return values[np.isfinite(values)]


class Scale(NamedTuple):
    """A linear or logarithmic axis from the smallest to the largest of several numbers."""

    low: float
    high: float
    logarithmic: bool = False

    @classmethod
    def of(cls, values: Floats, adaptive: bool = True) -> Scale:
        """Return an axis for finite numbers; `adaptive` allows a logarithmic axis."""
        low, high = float(values.min()), float(values.max())
        return cls(low, high, adaptive and low > 0 and high / _LOGARITHMIC_FROM > low)

    @property
    def is_point(self) -> bool:
        return self.low == self.high

    def places(self, values: Floats) -> Floats:
        """Return the position of each number on the axis, from 0 at `low` to 1 at `high`."""
        if self.is_point:
            return np.full_like(values, 0.5)
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, values = math.log10(low), math.log10(high), np.log10(values)
        # Scaled by a power of 2 first, so that the difference neither overflows nor vanishes.
        exponent = math.frexp(max(abs(low), abs(high)))[1]
        low, high = math.ldexp(low, -exponent), math.ldexp(high, -exponent)
        return np.clip((np.ldexp(values, -exponent) - low) / (high - low), 0, 1)

    def counts(self, values: Floats, bins: int) -> NDArray[np.intp]:
        """Return the number of values in each of `bins` equal intervals of the axis."""
        parts = (self.places(values) * bins).astype(np.intp)
        return np.bincount(np.minimum(parts, bins - 1), minlength=bins)

    def histogram(self, values: Floats, most: int) -> NDArray[np.intp]:
        """Return counts per interval. The number of intervals grows with `values`, up to `most`."""
        bins = 5 if self.is_point else min(most, math.ceil(2 * math.sqrt(values.size)))
        return self.counts(values, max(1, bins))


def bars(counts: NDArray[np.intp], width: int, height: int, blocks: str) -> list[str]:
    """Return the rows, from top to bottom, of a bar chart that is `width` columns wide.

    The highest bar fills the height, and even a count of 1 is visible. `blocks` contains characters
    of growing height; without them, bars consist of `#`.
    """
    blocks = blocks or "#"
    steps = height * len(blocks)
    heights = np.ceil(counts * (steps / max(1, counts.max()))).astype(int).tolist()
    columns = [heights[column * len(heights) // width] for column in range(width)]
    rows = []
    for row in reversed(range(height)):
        levels = [min(bar - row * len(blocks), len(blocks)) for bar in columns]
        rows.append("".join(blocks[level - 1] if level > 0 else " " for level in levels))
    return rows
