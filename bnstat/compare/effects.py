"""What layers amount to in inference, `y = scale * x + shift`, and whether two amount to the same.

All of it is computed in float64 from the stored values. What agrees within the tolerance is said to
be the same: scales relative to the larger one, shifts relative to the terms that they are sums
of, since `beta` and `mean * scale` may nearly cancel, in whatever program computed them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import BnstatError
from bnstat.model import BatchNorm, as_float64

TOLERANCE: Final = 1e-6
"""About eight roundings of float32."""

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Effect(NamedTuple):
    """Scale and shift of each channel, and the size of the terms of the shift."""

    scale: Floats
    shift: Floats
    terms: Floats


class Effects:
    """The effects of layers, each computed once.

    Args:
        tolerance: how far scales and shifts may be apart, as a part of their size.
        epsilon: of layers whose file does not tell it; without, these have no known effect.

    Raises:
        BnstatError: one of the two is negative or no number.
    """

    def __init__(self, tolerance: float = TOLERANCE, epsilon: float | None = None) -> None:
        for name, value in (("tolerance", tolerance), ("epsilon", epsilon)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise BnstatError(name, f"is a number from 0 on, not {value:g}")
        self.tolerance = tolerance
        self._epsilon = epsilon
        self._known: dict[int, tuple[BatchNorm, Effect | None]] = {}

    def epsilon(self, layer: BatchNorm) -> float | None:
        """The layer's epsilon, or the one that stands in for it."""
        return self._epsilon if layer.epsilon is None else layer.epsilon

    def of(self, layer: BatchNorm) -> Effect | None:
        """A layer's effect; None where epsilon or the statistics are not known."""
        if id(layer) not in self._known:
            self._known[id(layer)] = layer, effect(layer, self.epsilon(layer))
        return self._known[id(layer)][1]

    def agree(self, old: BatchNorm, new: BatchNorm) -> Mask | None:
        """For each channel, whether two layers do the same; None where that cannot be told."""
        a, b = self.of(old), self.of(new)
        if a is None or b is None or a.scale.size != b.scale.size:
            return None
        terms = np.maximum(a.terms, b.terms)
        return close(a.scale, b.scale, self.tolerance) & within(
            a.shift, b.shift, self.tolerance * terms
        )

    def agreeing(self, old: BatchNorm, news: Iterable[BatchNorm]) -> Iterator[BatchNorm]:
        """Those of some layers that do the same as `old`."""
        a = self.of(old)
        for new in news if a is not None else ():
            b = self.of(new)
            if a is None or b is None or a.scale.size != b.scale.size:
                continue
            # Most are told apart by their first channel.
            if not close(a.scale[:1], b.scale[:1], self.tolerance).all():
                continue
            mask = self.agree(old, new)
            if mask is not None and mask.all():
                yield new


def effect(layer: BatchNorm, epsilon: float | None) -> Effect | None:
    """The effect of a layer with that epsilon; None where it cannot be told."""
    values = {role: values_of(layer, role) for role in layer.variables}
    mean, variance = values.get("moving_mean"), values.get("moving_variance")
    if epsilon is None or mean is None or variance is None or layer.undecided:
        return None
    if len({array.size for array in values.values()}) != 1:
        return None
    gamma = values.get("gamma", np.ones_like(mean))
    beta = values.get("beta", np.zeros_like(mean))
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance + epsilon)
        return Effect(scale, beta - mean * scale, np.abs(beta) + np.abs(mean * scale))


def values_of(layer: BatchNorm, role: str) -> Floats:
    """The values of a role that the layer has, one a channel."""
    array = layer.array(role)
    return np.empty(0) if array is None else as_float64(array).ravel()


def close(a: Floats, b: Floats, tolerance: float) -> Mask:
    """Where two arrays differ by no more than that part of the larger number."""
    with np.errstate(invalid="ignore"):
        return within(a, b, tolerance * np.maximum(np.abs(a), np.abs(b)))


def within(a: Floats, b: Floats, distance: Floats) -> Mask:
    """Where two arrays differ by no more than a distance; NaN and infinity never do."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.isfinite(a) & np.isfinite(b) & (np.abs(a - b) <= distance))
