"""Means and variances, merged batch by batch in float64.

Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
variances" (1979). `E[x^2] - E[x]^2` is never formed of what is merged.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass
class Moments:
    """The moments of all that was added.

    Attributes:
        count: the number of elements of each channel.
        mean: [channels], float64.
        squares: [channels], float64, the sum of the squared deviations from the mean.
    """

    count: int = 0
    mean: Floats = field(default_factory=lambda: np.zeros(0))
    squares: Floats = field(default_factory=lambda: np.zeros(0))

    def add(self, count: int, mean: ArrayLike, squares: ArrayLike) -> None:
        """Add the moments of more elements."""
        if not count:
            return
        new_mean, new_squares = np.asarray(mean, np.float64), np.asarray(squares, np.float64)
        if not self.count:
            self.count, self.mean, self.squares = count, new_mean, new_squares
            return
        total = self.count + count
        difference = new_mean - self.mean
        self.mean = self.mean + difference * (count / total)
        self.squares = self.squares + new_squares + difference**2 * (self.count * count / total)
        self.count = total

    def variance(self, unbiased: bool) -> Floats:
        """The variance: over the number of elements, or over one less where `unbiased`."""
        return self.squares / max(self.count - unbiased, 1)


@dataclass
class Halves:
    """Moments of every other batch, and of those between, to tell how sure an estimate is."""

    first: Moments = field(default_factory=Moments)
    second: Moments = field(default_factory=Moments)

    @property
    def whole(self) -> Moments:
        """The moments of all."""
        whole = Moments(self.first.count, self.first.mean, self.first.squares)
        whole.add(self.second.count, self.second.mean, self.second.squares)
        return whole

    @property
    def error(self) -> float | None:
        """How far off the mean of all may be, in standard deviations, at the worst channel.

        Half of the distance between the halves; None where there is but one batch.
        """
        if not self.first.count or not self.second.count:
            return None
        deviation = np.sqrt(self.whole.variance(unbiased=False))
        distance = np.abs(self.first.mean - self.second.mean) / 2
        return float(np.max(in_deviations(distance, deviation), initial=0.0))


def in_deviations(distance: Floats, deviation: Floats) -> Floats:
    """Distances in standard deviations; of a constant channel, 0 or infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = distance / deviation
    return np.where(distance == 0, 0.0, ratio)
