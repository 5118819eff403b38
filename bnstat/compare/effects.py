"""The effect of a layer in inference, `y = scale * x + shift`, and comparisons of effects.

Scales are compared relative to the larger scale, and shifts relative to the terms of their sums,
because `beta` and `mean * scale` may nearly cancel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnstat.model import BatchNorm, as_float64

TOLERANCE: Final = 1e-6
"""The default relative tolerance of scales and shifts: about eight roundings of float32."""

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Values = Mapping[str, Floats]
"""Role -> values; 1 for a missing gamma, 0 for a missing beta."""


class Effect(NamedTuple):
    """Scale and shift of each channel, and `|beta| + |mean * scale|`, which bounds the shift."""

    scale: Floats
    shift: Floats
    terms: Floats


class Effects:
    """Computes the effect of each layer once, in float64.

    `tolerance` is the largest relative difference of effects that count as equal. `epsilon` is the
    epsilon of layers whose file does not store one; if None, `of` returns None for such layers.
    """

    def __init__(self, tolerance: float = TOLERANCE, epsilon: float | None = None) -> None:
        self.tolerance = tolerance
        self._epsilon = epsilon
        self._effects: dict[BatchNorm, Effect | None] = {}

    def epsilon(self, layer: BatchNorm) -> float | None:
        return self._epsilon if layer.epsilon is None else layer.epsilon

    def of(self, layer: BatchNorm) -> Effect | None:
        """Return the effect of a layer; None if epsilon or the statistics are unknown."""
        if layer not in self._effects:
            self._effects[layer] = self._compute(layer)
        return self._effects[layer]

    def _compute(self, layer: BatchNorm) -> Effect | None:
        epsilon, values = self.epsilon(layer), values_of_roles(layer)
        if epsilon is None or values is None or layer.undecided:
            return None
        with np.errstate(all="ignore"):
            scale = values["gamma"] / np.sqrt(values["moving_variance"] + epsilon)
            beta, shifted = values["beta"], values["moving_mean"] * scale
            return Effect(scale, beta - shifted, np.abs(beta) + np.abs(shifted))

    def are_equal(self, old: BatchNorm, new: BatchNorm) -> bool:
        """Return True if the effects of two layers are known, and the same in all channels."""
        a, b = self.of(old), self.of(new)
        if a is None or b is None or a.scale.size != b.scale.size:
            return False
        # The first channel rules most layers out.
        if not close(a.scale[:1], b.scale[:1], self.tolerance).all():
            return False
        distance = self.tolerance * np.maximum(a.terms, b.terms)
        are_close = close(a.scale, b.scale, self.tolerance) & within(a.shift, b.shift, distance)
        return bool(are_close.all())


def values_of_roles(layer: BatchNorm) -> Values | None:
    """Return the values of all roles; None if the layer lacks statistics, or the sizes differ."""
    values = {role: values_of(layer, role) for role in layer.variables}
    sizes = {array.size for array in values.values()}
    if not {"moving_mean", "moving_variance"} <= values.keys() or len(sizes) != 1:
        return None
    size = sizes.pop()
    return {"gamma": np.ones(size), "beta": np.zeros(size), **values}


def values_of(layer: BatchNorm, role: str) -> Floats:
    """Return the values of a role as a flat float64 array; empty if the layer lacks the role."""
    array = layer.array(role)
    return np.empty(0) if array is None else as_float64(array).ravel()


def close(a: Floats, b: Floats, tolerance: float) -> Mask:
    """Return a mask of the elements that agree within a relative tolerance."""
    with np.errstate(invalid="ignore"):
        return within(a, b, tolerance * np.maximum(np.abs(a), np.abs(b)))


def within(a: Floats, b: Floats, distance: Floats) -> Mask:
    """Return a mask of elements that differ by at most `distance`; False for NaN and infinity."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.isfinite(a) & np.isfinite(b) & (np.abs(a - b) <= distance))
