"""Layers that a converter folded by another scale or shift than theirs, and why.

The scale is told by weights that are the original's times one number for each channel, in one
order of the axes. The shift is what is left of a bias. A layer of that scale and shift is compared
with the original, as one is that a converter rewrote to mean 0 and variance 1. What is found
this way is taken for an answer only where all of it has a cause.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from functools import partial
from itertools import product
from math import prod
from typing import Final, Literal, NamedTuple

import numpy as np

from bnstat.compare.causes import Cause, value_causes
from bnstat.compare.effects import Effects, Floats, close, values_of, within
from bnstat.compare.weights import Tensors, View, numbers_of, turns
from bnstat.model import BatchNorm, Variable

_MOST_TRIED: Final = 100
"""Pairs of a scale and a shift that are looked at closely for a layer."""

_NEAR: Final = 1e-3
_SHARE: Final = 0.5
"""How near the mean must be that these amount to, and in which part of the channels."""


class Misfolded(NamedTuple):
    """What a layer was folded into: see `Folded`."""

    weights: str | None
    into: str
    bias: str | None
    causes: tuple[Cause, ...]


Shift = tuple[str | None, Floats]
"""A shift, and the key of the bias that it is in."""


class Misfoldings:
    """Explains layers of one model by the tensors of another.

    Args:
        mine: the tensors of the layers' model.
        theirs: those of the other.
        side: which of the two has the layers.
        effects: tells what layers amount to.
    """

    def __init__(
        self, mine: Tensors, theirs: Tensors, side: Literal["old", "new"], effects: Effects
    ) -> None:
        self._mine = mine
        self._theirs = theirs
        self._side = side
        self._effects = effects
        self._multiples: dict[int, list[tuple[View, View, Floats]]] = {}

    def explain(self, layer: BatchNorm, taken: Container[str]) -> Misfolded | None:
        """What a layer was folded into, and why it is not what it should be.

        Args:
            layer: the layer.
            taken: keys of tensors of the other model that are explained.
        """
        tried = 0
        if layer.channels == 1:  # a single number is explained by too much
            return None
        for weights, into, scale, shifts in self._candidates(layer.channels):
            for bias, shift in _likely(layer, scale, shifts) if into not in taken else ():
                tried += 1
                if tried > _MOST_TRIED:
                    return None
                implied = _of(scale, shift)
                pair = (layer, implied) if self._side == "old" else (implied, layer)
                causes = value_causes(*pair, self._effects)
                if causes:
                    return Misfolded(weights, into, bias, causes)
        return None

    def _candidates(self, size: int) -> Iterator[tuple[str | None, str, Floats, list[Shift]]]:
        """What a layer of so many channels may have been folded into.

        Yields:
            Keys of weights and of what they became, the scale, and the shifts that there may be.
        """
        news = self._theirs.vectors(size)
        if size not in self._multiples:
            self._multiples[size] = [*self._find_multiples(size)]
        for view, into, scale in self._multiples[size]:
            shifts = [
                (new.key if new else None, numbers_of(new, size) - scale * numbers_of(old, size))
                for old, new in product((None, *self._mine.vectors(size)), (*news, None))
            ]
            yield view.weights.key, into.weights.key, scale, shifts
        for one in news:
            others: list[Shift] = [(each.key, each.values) for each in news if each is not one]
            yield None, one.key, one.values, others

    def _find_multiples(self, size: int) -> Iterator[tuple[View, View, Floats]]:
        for view, into in product(self._mine.views(size), self._theirs.views(size)):
            scale = self._multiple(view, into)
            # What is as it was has nothing folded into it.
            if scale is not None and not close(scale, np.ones(size), _NEAR).all():
                yield view, into, scale

    def _multiple(self, view: View, into: View) -> Floats | None:
        """The number for each channel that makes weights of others; None where there is none."""
        tolerance = self._effects.tolerance
        if prod(view.shape) != prod(into.shape):
            return None
        one, other = self._mine.spread(view), self._theirs.spread(into)
        if not close(one, other, 1e3 * tolerance).all():
            return None
        own = view.channels_first(self._mine.array(view.weights))
        weights = into.channels_first(self._theirs.array(into.weights))
        for turn in turns(weights.shape, own.shape):
            turned = turn(weights).reshape(len(own), -1)
            flat = own.reshape(turned.shape)
            with np.errstate(all="ignore"):
                scale: Floats = (flat * turned).sum(axis=1) / view.norms**2
            distance = 10 * tolerance * np.abs(turned).max(axis=1, keepdims=True)
            expected = scale[:, np.newaxis] * flat
            if within(turned, expected, np.broadcast_to(distance, turned.shape)).all():
                return scale
        return None


def _likely(layer: BatchNorm, scale: Floats, shifts: Sequence[Shift]) -> list[Shift]:
    """The shifts that come, with that scale, of a mean that the layer has, or of its variance."""
    mean, variance = (values_of(layer, role) for role in ("moving_mean", "moving_variance"))
    beta = values_of(layer, "beta") if "beta" in layer.variables else np.zeros_like(mean)
    if not shifts or len({scale.size, mean.size, variance.size, beta.size}) > 1:
        return []
    with np.errstate(all="ignore"):
        implied = (beta - np.stack([shift for _, shift in shifts])) / scale
        distance = _NEAR * (np.abs(mean) + np.sqrt(np.abs(variance)) + np.abs(variance))
        near = [
            (np.abs(implied - target) <= distance).mean(axis=1) >= _SHARE
            for target in (mean, variance)
        ]
    return [shifts[place] for place in np.flatnonzero(near[0] | near[1]).tolist()]


def _of(scale: Floats, shift: Floats) -> BatchNorm:
    """A layer at mean 0 and variance 1 that has this scale and shift."""
    arrays = {
        "gamma": scale,
        "beta": shift,
        "moving_mean": np.zeros_like(scale),
        "moving_variance": np.ones_like(scale),
    }
    variables = {
        role: Variable(role, role, "float64", array.shape, partial(np.asarray, array))
        for role, array in arrays.items()
    }
    return BatchNorm("", variables, epsilon=0.0)
