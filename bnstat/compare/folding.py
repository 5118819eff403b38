"""Batch norm that a converter folded into the weights beside it, found and proven by arithmetic.

`scale * (w * x + b) + shift` is `(scale * w) * x + (scale * b + shift)`: the layer is gone, its
convolution's weights are the original's times the scale, its bias is the shift and the scaled
bias that was there. Before a dense layer, `w * (scale * x + shift) + b` is
`(w * scale) * x + (sum(w * shift) + b)`. A file need not say which weights stood beside the
layer, nor in which order its axes are kept (HWIO, OIHW, OHWI, depthwise or transposed): weights
all of whose numbers are the products in one order of the axes prove both, and nothing less is
taken. Of numbers that are rounded as they are stored, all must be such as the products are
rounded to.

Layers that a converter folded by another scale or shift than theirs, and why.

The scale is told by weights that are the original's times one number for each channel, in one
order of the axes. The shift is what is left of a bias. A layer of that scale and shift is compared
with the original, as one is that a converter rewrote to mean 0 and variance 1. What is found
this way is taken for an answer only where all of it has a cause.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from math import prod
from typing import Final, Literal, NamedTuple

import numpy as np

from bnstat.compare.causes import Cause, value_causes
from bnstat.compare.effects import Effect, Effects, Floats, close, values_of, within
from bnstat.compare.weights import (
    Rounding,
    Tensors,
    Turn,
    Vector,
    View,
    numbers_of,
    rounding_of,
    turns,
)
from bnstat.model import BatchNorm, Model, Variable

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


_COMMON: Final = 1 << 12
"""Numbers of so few binary places are met by chance."""


@dataclass(frozen=True, slots=True)
class Folded:
    """A layer that one model has, and the weights of the other that it went into.

    This is proven where there are no `causes`.

    Attributes:
        layer: its name.
        side: which of the two models has it.
        weights: key of the weights beside it in its own model; None where it was not folded
            into weights, but became one multiplication and one addition.
        into: key of the weights, or of the scale, in the other model.
        bias: key of the bias, or of the shift, in the other; None where there is none, which is
            where the shift is 0.
        rounding: how the numbers are stored as far as which this is proven; None where they are
            float32 or more.
        tie: whether other weights would prove the same, or these are those of another layer.
        causes: why the weights are not what they should be: they are the original's times
            another scale, or the bias is another shift, and arithmetic shows which.
    """

    layer: str
    side: Literal["old", "new"]
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
    side: Literal["old", "new"],
    effects: Effects,
    doubtful: Sequence[BatchNorm] = (),
) -> list[Folded]:
    """Those of some layers that the other model has in its weights, or seems to.

    Args:
        layers: layers of `own` that the other model does not have.
        own: the model that has them.
        other: the other one.
        side: which one `own` is.
        effects: tells what the layers amount to.
        doubtful: layers that the other model may have; of these, what is proven alone counts.

    Raises:
        BnstatError: a tensor of one of the models cannot be read.
    """
    asked = (*layers, *doubtful)
    known = [(layer, found) for layer in asked if (found := effects.of(layer)) is not None]
    sizes = {found.scale.size for _, found in known}
    if not sizes or not own.stored or not other.stored:
        return []
    mine, theirs = Tensors(own, sizes), Tensors(other, sizes)
    search = _Search(mine, theirs, effects.tolerance)
    result: list[Folded] = []
    unproven: list[BatchNorm] = []
    taken: set[str] = set()
    for layer, found in known:
        proofs: dict[str, _Proof] = {}
        for proof in search.proofs(found):
            proofs.setdefault(proof.into, proof)
        free = [proof for into, proof in proofs.items() if into not in taken]
        for proof in (free or [*proofs.values()])[:1]:
            taken.add(proof.into)
            result.append(Folded(layer.name, side, *proof, tie=len(proofs) > 1 or not free))
        if not proofs and layer in layers:
            unproven.append(layer)
    misfoldings = Misfoldings(mine, theirs, side, effects)
    for layer in unproven:
        wrong = misfoldings.explain(layer, taken)
        if wrong is not None:
            result.append(Folded(layer.name, side, *wrong[:3], causes=wrong.causes))
    return result


class _Proof(NamedTuple):
    """The first attributes of `Folded` that are found out."""

    weights: str | None
    into: str
    bias: str | None
    rounding: Rounding | None


class _Search:
    """Looks for what a layer became, among the tensors of the other model."""

    def __init__(self, mine: Tensors, theirs: Tensors, tolerance: float) -> None:
        self._mine = mine
        self._theirs = theirs
        self._tolerance = tolerance

    def proofs(self, effect: Effect) -> Iterator[_Proof]:
        """Everything that a layer of that effect can have become."""
        biases = list(self._biases(effect))
        for view in self._mine.views(effect.scale.size):
            for into in self._scaled(effect.scale, view):
                for bias, _ in islice(biases or self._biases_of_next(effect, view), 1):
                    yield _proof(view, into, bias)
        if _is_common(effect.scale):
            return
        for bias, is_sum in biases:
            for vector in self._theirs.vectors(effect.scale.size):
                if bias is None or is_sum or vector.key == bias.key:
                    continue
                distance = self._tolerance * _larger(vector.values, effect.scale) + vector.doubt
                if within(vector.values, effect.scale, distance).all():
                    yield _Proof(None, vector.key, bias.key, vector.rounding or bias.rounding)

    def _biases(self, effect: Effect) -> Iterator[tuple[Vector | None, bool]]:
        """Biases that are the shift, or the shift and a scaled bias; whether they have that."""
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
        """The same of weights that the layer stands before, whose inputs are its channels.

        The bias of what stood before the layer may have gone into theirs as well.
        """
        if len(view.shape) != 2:  # What the shift adds at an edge depends on the padding.
            return
        weights = view.channels_first(self._mine.array(view.weights))
        ends = self._mine.vectors(weights.shape[1])
        for before, old in product((None, *self._mine.vectors(len(weights))), (None, *ends)):
            scaled = effect.scale * numbers_of(before, len(weights))
            held = numbers_of(old, weights.shape[1])
            terms = (effect.terms + np.abs(scaled)) @ np.abs(weights) + np.abs(held)
            expected = (effect.shift + scaled) @ weights + held
            for vector in self._near(expected, self._tolerance * terms):
                yield vector, True

    def _near(self, expected: Floats, distance: Floats) -> Iterator[Vector]:
        for vector in self._theirs.vectors(expected.size):
            if within(vector.values, expected, distance + vector.doubt).all():
                yield vector

    def _scaled(self, scale: Floats, view: View) -> Iterator[View]:
        """The weights that are those of a view times the scale, in any order of the axes."""
        size = np.abs(scale)
        expected, doubts = size * view.norms, size * view.doubts
        candidates = self._theirs.views(scale.size)
        # Most are told apart by their first channel. A sum of products has more roundings.
        firsts = np.array([(each.norms[0], each.doubts[0]) for each in candidates]).reshape(-1, 2)
        near = 10 * self._tolerance * _larger(firsts[:, 0], expected[:1]) + firsts[:, 1] + doubts[0]
        for place in np.flatnonzero(within(firsts[:, 0], expected[:1], near)).tolist():
            into = candidates[place]
            distance = 10 * self._tolerance * _larger(into.norms, expected) + into.doubts + doubts
            is_near = prod(view.shape) == prod(into.shape) and within(
                into.norms, expected, distance
            )
            if np.all(is_near) and self._is_product(scale, view, into):
                yield into

    def _is_product(self, scale: Floats, view: View, into: View) -> bool:
        """Whether weights are those of a view times the scale, in some order of the axes."""
        factor = scale.reshape(-1, *[1] * (len(view.shape) - 1))
        scaled = view.channels_first(self._mine.array(view.weights)) * factor
        doubt = view.channels_first(self._mine.doubt(view.weights)) * np.abs(factor)
        weights = into.channels_first(self._theirs.array(into.weights))
        roundings = into.channels_first(self._theirs.doubt(into.weights))

        def agree(turn: Turn, channels: slice) -> bool:
            other = turn(weights)[channels]
            distance = self._tolerance * _larger(scaled[channels], other)
            distance += doubt[channels] + turn(roundings)[channels]
            return bool(within(other, scaled[channels], distance).all())

        return any(
            agree(turn, slice(1)) and agree(turn, slice(None))
            for turn in turns(weights.shape, scaled.shape)
        )


def _is_common(scale: Floats) -> bool:
    """Whether a scale may be anything: one number for all channels, or a plain one as 0.75."""
    if scale.size > 1:
        return bool(np.ptp(scale) == 0)
    mantissa = np.frexp(scale.item())[0] * _COMMON
    return bool(mantissa == np.rint(mantissa))


def _larger(a: Floats, b: Floats) -> Floats:
    return np.maximum(np.abs(a), np.abs(b))


def _proof(view: View, into: View, bias: Vector | None) -> _Proof:
    rounding = rounding_of(into.weights) or rounding_of(view.weights)
    if rounding is None and bias is not None:
        rounding = bias.rounding
    return _Proof(view.weights.key, into.weights.key, bias.key if bias else None, rounding)
