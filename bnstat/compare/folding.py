"""Batch norm that a converter folded into the weights beside it, proven by arithmetic.

`scale * (w * x + b) + shift` is `(scale * w) * x + (scale * b + shift)`: the layer is gone, the
weights of its convolution are the original's times the scale, and its bias is the shift plus the
scaled original bias. Before a dense layer, `w * (scale * x + shift) + b` is
`(w * scale) * x + (sum(w * shift) + b)`. A file need not record which weights were beside the
layer, nor the order of their axes (HWIO, OIHW, OHWI, depthwise or transposed). Both are proven
only if all numbers of some weights are the products in one order of the axes. If the numbers are
stored rounded, all must be what the products are rounded to.

A converter may also fold a layer with a wrong scale or shift. The scale is then known from weights
that are the original's times one number for each channel, in one order of the axes, and the shift
from a bias. A layer with this scale and shift is compared with the original, like one that a
converter rewrote to mean 0 and variance 1. It is reported only if all of the difference has a
cause.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, product
from math import prod
from typing import Final, Literal

import numpy as np

from bnstat.compare.causes import Cause, value_causes
from bnstat.compare.effects import Effect, Effects, Floats, close, values_of, within
from bnstat.compare.weights import (
    Reordering,
    Rounding,
    Tensors,
    Vector,
    View,
    numbers_of,
    reorderings,
    rounding_of,
)
from bnstat.model import BatchNorm, Model, Variable

_MOST_TRIED: Final = 100
"""Pairs of a scale and a shift that are compared with one layer."""

_NEAR: Final = 1e-3
_SHARE: Final = 0.5
"""The largest distance of an implied mean, and the smallest share of channels with such a mean."""

_COMMON: Final = 1 << 12
"""Numbers of so few binary digits may be equal by chance."""

Side = Literal["old", "new"]


@dataclass(frozen=True, slots=True)
class Folded:
    """A layer of one model, and the weights of the other that it was folded into.

    Without `causes`, it is proven.

    Attributes:
        layer: the layer's name.
        side: the model that has the layer.
        weights: key of the weights beside it in its own model; None if it was not folded into
            weights, but became one multiplication and one addition.
        into: key of the weights, or of the scale, in the other model.
        bias: key of the bias, or of the shift, in the other model; None if the shift is 0.
        rounding: the rounding of the stored numbers that limits the proof; None for float32 and
            wider.
        tie: True if other weights would prove the same, or these prove another layer as well.
        causes: why the weights differ from what they should be: they are the original's times
            another scale, or the bias is another shift.
    """

    layer: str
    side: Side
    weights: str | None
    into: str
    bias: str | None
    rounding: Rounding | None = None
    tie: bool = False
    causes: tuple[Cause, ...] = ()


def find_folded(
    layers: Sequence[BatchNorm],
    own: Model,
    other: Model,
    side: Side,
    effects: Effects,
    doubtful: Sequence[BatchNorm] = (),
) -> list[Folded]:
    """Return the layers that the other model has in its weights, or seems to have.

    Args:
        layers: layers of `own` that the other model does not have.
        own: the model that has the layers.
        other: the other model.
        side: which one `own` is.
        effects: the effects of layers.
        doubtful: layers that the other model may have. They count only if they are proven.

    Raises:
        BnstatError: a tensor of one of the models cannot be read.
    """
    pairs = [
        (layer, effect)
        for layer in (*layers, *doubtful)
        if (effect := effects.of(layer)) is not None
    ]
    sizes = {effect.scale.size for _, effect in pairs}
    if not sizes or not own.stored or not other.stored:
        return []
    search = _Search(Tensors(own, sizes), Tensors(other, sizes), side, effects)
    result: list[Folded] = []
    unproven: list[BatchNorm] = []
    taken: set[str] = set()
    for layer, effect in pairs:
        proofs: dict[str, Folded] = {}
        for proof in search.proofs(layer.name, effect):
            proofs.setdefault(proof.into, proof)
        free = [proof for into, proof in proofs.items() if into not in taken]
        for proof in (free or [*proofs.values()])[:1]:
            taken.add(proof.into)
            result.append(replace(proof, tie=len(proofs) > 1 or not free))
        if not proofs and layer in layers:
            unproven.append(layer)
    for layer in unproven:
        misfolded = search.misfolded(layer, taken)
        if misfolded is not None:
            result.append(misfolded)
    return result


Shift = tuple[str | None, Floats]
"""The key of a bias, and the shift in it."""


class _Search:
    """Searches the tensors that layers were folded into in the other model.

    Args:
        mine: the tensors of the layers' model.
        theirs: the tensors of the other model.
        side: the model that has the layers.
        effects: the effects of layers.
    """

    def __init__(self, mine: Tensors, theirs: Tensors, side: Side, effects: Effects) -> None:
        self._mine = mine
        self._theirs = theirs
        self._side: Side = side
        self._effects = effects
        self._tolerance = effects.tolerance
        self._multiples: dict[int, list[tuple[View, View, Floats]]] = {}

    def proofs(self, name: str, effect: Effect) -> Iterator[Folded]:
        """Yield everything that a layer of this effect can have been folded into."""
        biases = list(self._biases(effect))
        for view in self._mine.views(effect.scale.size):
            for into in self._scaled(effect.scale, view):
                for bias, _ in islice(biases or self._biases_of_next(effect, view), 1):
                    rounding = rounding_of(into.weights) or rounding_of(view.weights)
                    if rounding is None and bias is not None:
                        rounding = bias.rounding
                    bias_key = bias.key if bias else None
                    weights, scaled = view.weights.key, into.weights.key
                    yield Folded(name, self._side, weights, scaled, bias_key, rounding)
        if _is_common(effect.scale):
            return
        for bias, is_sum in biases:
            for vector in self._theirs.vectors(effect.scale.size):
                if bias is None or is_sum or vector.key == bias.key:
                    continue
                distance = self._tolerance * _larger(vector.values, effect.scale) + vector.doubt
                if within(vector.values, effect.scale, distance).all():
                    rounding = vector.rounding or bias.rounding
                    yield Folded(name, self._side, None, vector.key, bias.key, rounding)

    def _biases(self, effect: Effect) -> Iterator[tuple[Vector | None, bool]]:
        """Yield the biases that are the shift, with True if they contain a scaled bias as well."""
        size = effect.scale.size
        for old in (None, *self._mine.vectors(size)):
            scaled = effect.scale * numbers_of(old, size)
            doubt = np.abs(effect.scale) * (old.doubt if old else 0)
            distance = self._tolerance * (effect.terms + np.abs(scaled)) + doubt
            for vector in self._near(effect.shift + scaled, distance):
                yield vector, old is not None
        if (np.abs(effect.shift) <= self._tolerance * effect.terms).all():
            yield None, False

    def _biases_of_next(self, effect: Effect, view: View) -> Iterator[tuple[Vector | None, bool]]:
        """Yield the same for weights right after the layer, whose inputs are its channels.

        They may contain the bias before the layer as well.
        """
        if len(view.shape) != 2:  # At an edge, the effect of the shift depends on the padding.
            return
        weights = view.channels_first(self._mine.array(view.weights))
        ends = self._mine.vectors(weights.shape[1])
        for before, old in product((None, *self._mine.vectors(len(weights))), (None, *ends)):
            scaled = effect.scale * numbers_of(before, len(weights))
            bias = numbers_of(old, weights.shape[1])
            terms = (effect.terms + np.abs(scaled)) @ np.abs(weights) + np.abs(bias)
            expected = (effect.shift + scaled) @ weights + bias
            for vector in self._near(expected, self._tolerance * terms):
                yield vector, True

    def _near(self, expected: Floats, distance: Floats) -> Iterator[Vector]:
        for vector in self._theirs.vectors(expected.size):
            if within(vector.values, expected, distance + vector.doubt).all():
                yield vector

    def _scaled(self, scale: Floats, view: View) -> Iterator[View]:
        """Yield the weights that equal a view times the scale, in any order of the axes."""
        size = np.abs(scale)
        expected, doubts = size * view.norms, size * view.doubts
        candidates = self._theirs.views(scale.size)
        # The first channel rules most out. A sum of products has more roundings.
        firsts = np.array([(each.norms[0], each.doubts[0]) for each in candidates]).reshape(-1, 2)
        near = 10 * self._tolerance * _larger(firsts[:, 0], expected[:1]) + firsts[:, 1] + doubts[0]
        for index in np.flatnonzero(within(firsts[:, 0], expected[:1], near)).tolist():
            into = candidates[index]
            distance = 10 * self._tolerance * _larger(into.norms, expected) + into.doubts + doubts
            is_near = prod(view.shape) == prod(into.shape) and within(
                into.norms, expected, distance
            )
            if np.all(is_near) and self._is_product(scale, view, into):
                yield into

    def _is_product(self, scale: Floats, view: View, into: View) -> bool:
        """Return True if weights equal a view times the scale, in some order of the axes."""
        factor = scale.reshape(-1, *[1] * (len(view.shape) - 1))
        scaled = view.channels_first(self._mine.array(view.weights)) * factor
        doubt = view.channels_first(self._mine.doubt(view.weights)) * np.abs(factor)
        weights = into.channels_first(self._theirs.array(into.weights))
        roundings = into.channels_first(self._theirs.doubt(into.weights))

        def agree(reorder: Reordering, channels: slice) -> bool:
            other = reorder(weights)[channels]
            distance = self._tolerance * _larger(scaled[channels], other)
            distance += doubt[channels] + reorder(roundings)[channels]
            return bool(within(other, scaled[channels], distance).all())

        return any(
            agree(reorder, slice(1)) and agree(reorder, slice(None))
            for reorder in reorderings(weights.shape, scaled.shape)
        )

    def misfolded(self, layer: BatchNorm, taken: Collection[str]) -> Folded | None:
        """Return what a layer was folded into wrongly, with the causes.

        Args:
            layer: the layer.
            taken: keys of tensors of the other model that are explained.
        """
        tried = 0
        if layer.channels == 1:  # Too much explains a single number.
            return None
        for weights, into, scale, shifts in self._candidates(layer.channels):
            for bias, shift in _likely(layer, scale, shifts) if into not in taken else ():
                tried += 1
                if tried > _MOST_TRIED:
                    return None
                implied = _layer_with(scale, shift)
                pair = (layer, implied) if self._side == "old" else (implied, layer)
                causes = value_causes(*pair, self._effects)
                if causes:
                    return Folded(layer.name, self._side, weights, into, bias, causes=causes)
        return None

    def _candidates(self, size: int) -> Iterator[tuple[str | None, str, Floats, list[Shift]]]:
        """Yield what a layer with this number of channels may have been folded into.

        Yields:
            Keys of weights and of what they became, the scale, and the possible shifts.
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
        for vector in news:
            others: list[Shift] = [(each.key, each.values) for each in news if each is not vector]
            yield None, vector.key, vector.values, others

    def _find_multiples(self, size: int) -> Iterator[tuple[View, View, Floats]]:
        for view, into in product(self._mine.views(size), self._theirs.views(size)):
            scale = self._multiple(view, into)
            # Unchanged weights have nothing folded into them.
            if scale is not None and not close(scale, np.ones(size), _NEAR).all():
                yield view, into, scale

    def _multiple(self, view: View, into: View) -> Floats | None:
        """Return the factor of each channel between two weights; or None."""
        if prod(view.shape) != prod(into.shape):
            return None
        spreads = self._mine.spread(view), self._theirs.spread(into)
        if not close(*spreads, 1e3 * self._tolerance).all():
            return None
        own = view.channels_first(self._mine.array(view.weights))
        weights = into.channels_first(self._theirs.array(into.weights))
        for reorder in reorderings(weights.shape, own.shape):
            other = reorder(weights).reshape(len(own), -1)
            flat = own.reshape(other.shape)
            with np.errstate(all="ignore"):
                scale: Floats = (flat * other).sum(axis=1) / view.norms**2
            distance = 10 * self._tolerance * np.abs(other).max(axis=1, keepdims=True)
            expected = scale[:, np.newaxis] * flat
            if within(other, expected, np.broadcast_to(distance, other.shape)).all():
                return scale
        return None


def _likely(layer: BatchNorm, scale: Floats, shifts: Sequence[Shift]) -> list[Shift]:
    """Return the shifts that, with this scale, imply the layer's mean, or its variance as mean."""
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
    return [shifts[index] for index in np.flatnonzero(near[0] | near[1]).tolist()]


def _layer_with(scale: Floats, shift: Floats) -> BatchNorm:
    """Return a layer of mean 0 and variance 1 with this scale and shift."""
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


def _is_common(scale: Floats) -> bool:
    """Return True if a scale proves nothing: one number for all channels, or one such as 0.75."""
    if scale.size > 1:
        return bool(np.ptp(scale) == 0)
    mantissa = np.frexp(scale.item())[0] * _COMMON
    return bool(mantissa == np.rint(mantissa))


def _larger(a: Floats, b: Floats) -> Floats:
    return np.maximum(np.abs(a), np.abs(b))
