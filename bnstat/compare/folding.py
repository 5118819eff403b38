"""Batch norm that a converter folded into the weights beside it, proven by arithmetic.

`scale * (w * x + b) + shift` is `(scale * w) * x + (scale * b + shift)`: the layer is gone, the
weights of the convolution are the original weights times the scale, and the bias is the shift plus
the scaled original bias. Before a dense layer, `w * (scale * x + shift) + b` is `(w * scale) * x +
(sum(w * shift) + b)`. Some files record neither which weights belong to the layer nor the order of
their axes (HWIO, OIHW, OHWI, depthwise or transposed). Folding is proven only if, for some order of
the axes, all numbers of a tensor equal the products, within the rounding of stored numbers.

A converter may also fold a layer with a wrong scale or shift. The wrong values follow from the
weights and biases of both models. The layer is reported if known causes explain the whole error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import compress, islice, permutations, product
from math import isqrt, prod
from typing import Final, Literal, NamedTuple

import numpy as np

from bnstat.compare.causes import Cause, value_causes
from bnstat.compare.effects import Effect, Effects, Floats, close, values_of_roles, within
from bnstat.model import ROLES, BatchNorm, Model, Variable, as_float64, fetch, squeezed

_MOST_TRIED: Final = 100  # the limit on pairs of scale and shift that are compared with a layer
_NEAR: Final = 1e-3  # the largest relative distance between an implied mean and the layer's mean
_SHARE: Final = 0.5  # the smallest fraction of channels whose implied mean is within `_NEAR`
_COMMON: Final = 1 << 12  # numbers with at most 12 binary digits may be equal by chance
_FLOATS: Final = ("float16", "bfloat16", "float32", "float64")
_MOST_AXES: Final = 5
_LARGEST: Final = 1 << 28  # elements of weights that are compared; larger weights are skipped
_MOST_KEPT: Final = 1 << 24  # elements of weights that are kept in memory
_COARSEST: Final = 1 / 8  # coarser roundings, relative to the largest number, prove nothing

Rounding = Literal["quantized", "float16", "bfloat16"]

_ROUNDINGS: Final[Mapping[str, tuple[Rounding, float, float]]] = {
    "float16": ("float16", 2.0**-11, 2.0**-25),
    "bfloat16": ("bfloat16", 2.0**-8, 0.0),
}
"""dtype -> its rounding, the largest relative error, and the absolute error of tiny numbers."""

_Reordering = Callable[[Floats], Floats]
"""A function that changes the order of the axes of an array."""

Side = Literal["old", "new"]


@dataclass(frozen=True, slots=True)
class Folded:
    """A layer of one model, and the weights of the other model that contain the folded layer.

    Attributes:
        side: the model that has the layer.
        weights: key of the adjacent weights in the layer's model; None if the layer became a
            multiplication and an addition.
        into: key of the weights, or of the scale, in the other model.
        bias: key of the bias, or of the shift, in the other model; None if the shift is 0.
        rounding: the coarsest rounding of the compared tensors; None for float32 and wider.
        tie: True if several weights match the layer, or the weights match several layers.
        causes: why the scale or the shift differs from the layer's; empty if folding is proven.
    """

    layer: str
    side: Side
    weights: str | None
    into: str
    bias: str | None
    rounding: Rounding | None = None
    tie: bool = False
    causes: tuple[Cause, ...] = ()


@dataclass(frozen=True, slots=True)
class Unfolded:
    """A layer that may be folded: no weights match the layer, or its epsilon is unknown."""

    layer: str
    side: Side
    reason: Literal["no-epsilon", "no-match"]


def find_folded(
    layers: Sequence[BatchNorm],
    doubtful: Sequence[BatchNorm],
    own: Model,
    other: Model,
    side: Side,
    effects: Effects,
) -> tuple[list[Folded], list[Unfolded]]:
    """Return the layers that are folded into the other model's weights, and the uncertain layers.

    `layers` are missing in the other model. `doubtful` layers may have a counterpart there, so they
    are returned only with a proof. If the other model has batch norm and was not written by a
    converter, folding is improbable, and no layer is reported as uncertain.
    """
    if not own.stored or not other.stored:
        return [], []
    either = (*layers, *doubtful)
    pairs = [(layer, effect) for layer in either if (effect := effects.of(layer)) is not None]
    sizes = {effect.scale.size for _, effect in pairs}
    search = _Search(_Tensors(own, sizes), _Tensors(other, sizes), side, effects)
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
    result += filter(None, [search.misfolded(layer, taken) for layer in unproven])
    if other.layers and not other.source.is_converted:
        return result, []
    names = {folded.layer for folded in result}
    unfolded = []
    for layer in layers:
        if layer.name not in names and effects.of(layer) is not None:
            unfolded.append(Unfolded(layer.name, side, "no-match"))
        elif layer.name not in names and effects.epsilon(layer) is None and not layer.undecided:
            unfolded.append(Unfolded(layer.name, side, "no-epsilon"))
    return result, unfolded


class _Vector(NamedTuple):
    """A tensor of one number per channel; `doubt` is the largest rounding error of each number."""

    key: str
    values: Floats
    doubt: Floats
    rounding: Rounding | None


_MISSING: Final = _Vector("", np.zeros(1), np.zeros(1), None)  # stands for a missing bias


@dataclass(frozen=True)
class _View:
    """Weights, and an axis of `shape` that may be the channel axis.

    `shape` is the weights' shape without axes of size 1. The last two axes of a depthwise kernel
    may be merged. `norms` has the Euclidean norm of each channel, and `doubts` the norm's largest
    rounding error.
    """

    tensors: _Tensors
    weights: Variable
    shape: tuple[int, ...]
    axis: int
    norms: Floats
    doubts: Floats

    def numbers(self) -> tuple[Floats, Floats]:
        """Return the weights and a bound of each rounding error, with the channel axis first."""
        values = self.tensors.array(self.weights)
        both = values, _doubt(self.weights, values)
        values, doubt = (np.moveaxis(array.reshape(self.shape), self.axis, 0) for array in both)
        return values, doubt

    @cached_property
    def spread(self) -> Floats:
        """L1 norm / L2 norm of each channel, which does not change if the channel is scaled."""
        sizes = np.abs(self.numbers()[0])
        with np.errstate(all="ignore"):
            return np.asarray(sizes.reshape(len(sizes), -1).sum(axis=1) / self.norms)


Shift = tuple[str | None, Floats]
"""The key of a bias (or None), and the shift that follows from the bias."""


class _Search:
    """Searches the other model (`theirs`) for tensors that contain folded layers of `mine`."""

    def __init__(self, mine: _Tensors, theirs: _Tensors, side: Side, effects: Effects) -> None:
        self._mine, self._theirs = mine, theirs
        self._side: Side = side
        self._effects, self._tolerance = effects, effects.tolerance
        self._multiples: dict[int, list[tuple[_View, _View, Floats]]] = {}

    def proofs(self, name: str, effect: Effect) -> Iterator[Folded]:
        biases = list(self._biases(effect))
        for view in self._mine.views[effect.scale.size]:
            for into in self._scaled(effect.scale, view):
                for bias in islice(biases or self._biases_of_next(effect, view), 1):
                    old, new = view.weights, into.weights
                    rounding = _rounding_of(new) or _rounding_of(old) or bias.rounding
                    yield Folded(name, self._side, old.key, new.key, bias.key or None, rounding)
        if _is_common(effect.scale):
            return
        shifts = self._near(effect.shift, self._tolerance * effect.terms)
        scales = self._near(effect.scale, self._tolerance * np.abs(effect.scale))
        for shift, scale in product(shifts, scales):
            if scale.key != shift.key:
                rounding = scale.rounding or shift.rounding
                yield Folded(name, self._side, None, scale.key, shift.key, rounding)

    def _biases(self, effect: Effect) -> Iterator[_Vector]:
        """Yield biases that equal the shift, or the shift plus the scale times an old bias."""
        for old in (_MISSING, *self._mine.vectors(effect.scale.size)):
            scaled, doubt = effect.scale * old.values, np.abs(effect.scale) * old.doubt
            distance = self._tolerance * (effect.terms + np.abs(scaled)) + doubt
            yield from self._near(effect.shift + scaled, distance)
        if (np.abs(effect.shift) <= self._tolerance * effect.terms).all():
            yield _MISSING

    def _biases_of_next(self, effect: Effect, view: _View) -> Iterator[_Vector]:
        """Yield biases that result from folding a layer into the next weights, `view`."""
        if len(view.shape) != 2:  # At an edge, the effect of the shift depends on the padding.
            return
        weights, _ = view.numbers()
        befores, olds = ((_MISSING, *self._mine.vectors(size)) for size in weights.shape)
        for before, old in product(befores, olds):
            scaled = effect.scale * before.values
            terms = (effect.terms + np.abs(scaled)) @ np.abs(weights) + np.abs(old.values)
            expected = (effect.shift + scaled) @ weights + old.values
            yield from self._near(expected, self._tolerance * terms)

    def _near(self, expected: Floats, distance: Floats) -> Iterator[_Vector]:
        for vector in self._theirs.vectors(expected.size):
            if within(vector.values, expected, distance + vector.doubt).all():
                yield vector

    def _scaled(self, scale: Floats, view: _View) -> Iterator[_View]:
        """Yield the other model's weights that equal `view` times `scale`, in any order of axes."""
        size = np.abs(scale)
        expected, doubts = size * view.norms, size * view.doubts
        candidates = self._theirs.views[scale.size]
        # The first channel rules most out. A sum of products has more roundings.
        firsts = np.array([(each.norms[0], each.doubts[0]) for each in candidates]).reshape(-1, 2)
        near = 10 * self._tolerance * _larger(firsts[:, 0], expected[:1]) + firsts[:, 1] + doubts[0]
        for index in np.flatnonzero(within(firsts[:, 0], expected[:1], near)).tolist():
            into = candidates[index]
            distance = 10 * self._tolerance * _larger(into.norms, expected) + into.doubts + doubts
            are_near = within(into.norms, expected, distance).all()
            if are_near and self._is_product(scale, view, into):
                yield into

    def _is_product(self, scale: Floats, view: _View, into: _View) -> bool:
        factor = scale.reshape(-1, *[1] * (len(view.shape) - 1))
        values, doubt = view.numbers()
        scaled, doubt = values * factor, doubt * np.abs(factor)
        weights, roundings = into.numbers()

        def agree(reorder: _Reordering, channels: slice) -> bool:
            other = reorder(weights)[channels]
            distance = self._tolerance * _larger(scaled[channels], other)
            distance += doubt[channels] + reorder(roundings)[channels]
            return bool(within(other, scaled[channels], distance).all())

        return any(
            agree(reorder, slice(1)) and agree(reorder, slice(None))
            for reorder in reorderings(weights.shape, scaled.shape)
        )

    def misfolded(self, layer: BatchNorm, taken: Collection[str]) -> Folded | None:
        """Return a `Folded` with the causes of a wrong scale or shift; None if no cause is known.

        `taken` contains the keys of the other model's tensors into which other layers are folded.
        """
        if layer.channels == 1:  # Too much explains a single number.
            return None
        likely = (
            (Folded(layer.name, self._side, weights, into, bias), _layer_with(scale, shift))
            for weights, into, scale, shifts in self._candidates(layer.channels)
            if into not in taken
            for bias, shift in _likely(layer, scale, shifts)
        )
        for folded, implied in islice(likely, _MOST_TRIED):
            pair = (layer, implied) if self._side == "old" else (implied, layer)
            if causes := value_causes(*pair, self._effects):
                return replace(folded, causes=causes)
        return None

    def _candidates(self, size: int) -> Iterator[tuple[str | None, str, Floats, list[Shift]]]:
        """Yield (weights key, key of the scaled weights, scale, shifts) for each possible folding.

        The first key is None if the layer is a multiplication and an addition in the other model.
        """
        news = self._theirs.vectors(size)
        if size not in self._multiples:
            # Unchanged weights have nothing folded into them.
            self._multiples[size] = [
                (view, into, scale)
                for view, into in product(self._mine.views[size], self._theirs.views[size])
                if (scale := self._multiple(view, into)) is not None
                and not close(scale, np.ones(size), _NEAR).all()
            ]
        for view, into, scale in self._multiples[size]:
            olds = (_MISSING, *self._mine.vectors(size))
            shifts = [
                (new.key or None, new.values - scale * old.values)
                for old, new in product(olds, (*news, _MISSING))
            ]
            yield view.weights.key, into.weights.key, scale, shifts
        for vector in news:
            others: list[Shift] = [(each.key, each.values) for each in news if each is not vector]
            yield None, vector.key, vector.values, others

    def _multiple(self, view: _View, into: _View) -> Floats | None:
        """Return the factor per channel if `into` is a multiple of `view`, else None."""
        if prod(view.shape) != prod(into.shape):
            return None
        if not close(view.spread, into.spread, 1e3 * self._tolerance).all():
            return None
        (own, _), (weights, _) = view.numbers(), into.numbers()
        for reorder in reorderings(weights.shape, own.shape):
            other = reorder(weights).reshape(len(own), -1)
            flat = own.reshape(other.shape)
            with np.errstate(all="ignore"):
                scale: Floats = (flat * other).sum(axis=1) / view.norms**2
            distance = 10 * self._tolerance * np.abs(other).max(axis=1, keepdims=True)
            expected = scale[:, np.newaxis] * flat
            if within(other, expected, distance).all():
                return scale
        return None


def _likely(layer: BatchNorm, scale: Floats, shifts: Sequence[Shift]) -> list[Shift]:
    """Return the shifts whose `(beta - shift) / scale` is near the layer's mean or variance."""
    values = values_of_roles(layer)
    if not shifts or values is None or values["beta"].size != scale.size:
        return []
    mean, variance = values["moving_mean"], values["moving_variance"]
    with np.errstate(all="ignore"):
        implied = (values["beta"] - np.stack([shift for _, shift in shifts])) / scale
        distance = _NEAR * (np.abs(mean) + np.sqrt(np.abs(variance)) + np.abs(variance))
        gaps = [np.abs(implied - target) for target in (mean, variance)]
        is_near = [(gap <= distance).mean(axis=1) >= _SHARE for gap in gaps]
    return list(compress(shifts, is_near[0] | is_near[1]))


def _layer_with(scale: Floats, shift: Floats) -> BatchNorm:
    arrays = (scale, shift, np.zeros_like(scale), np.ones_like(scale))
    variables = {
        role: Variable(role, role, "float64", array.shape, partial(np.asarray, array))
        for role, array in zip(ROLES, arrays, strict=True)
    }
    return BatchNorm("", variables, epsilon=0.0)


def _is_common(scale: Floats) -> bool:
    """Return True if a tensor may equal this scale by chance, so that equality proves nothing.

    A common scale is equal in all channels, or a single number with few digits, like 0.75.
    """
    if scale.size > 1:
        return bool(np.ptp(scale) == 0)
    mantissa = np.frexp(scale.item())[0] * _COMMON
    return bool(mantissa == np.rint(mantissa))


def _larger(a: Floats, b: Floats) -> Floats:
    return np.maximum(np.abs(a), np.abs(b))


class _Tensors:
    """The tensors outside batch norm whose number of channels is in `sizes`.

    `views` maps a number of channels to views of the weights, one for each axis of this size.
    """

    def __init__(self, model: Model, sizes: Iterable[int]) -> None:
        wanted = set(sizes)
        others = (each for key, each in model.stored.items() if key not in model.claimed)
        tensors = [each for each in others if each.dtype in _FLOATS]
        self._lines = [tensor for tensor in tensors if len(squeezed(tensor.shape)) <= 1]
        weights = [
            tensor
            for tensor in tensors
            if 2 <= len(squeezed(tensor.shape)) <= _MOST_AXES
            and prod(tensor.shape) <= _LARGEST
            and any(wanted.intersection(shape) for shape in _shapes(tensor))
        ]
        lines = [line for line in self._lines if prod(line.shape) in wanted]
        fetch([*lines, *weights])
        self._vectors: dict[int, list[_Vector]] = {}
        self._kept: dict[str, Floats] = {}
        self._room = _MOST_KEPT
        self.views: dict[int, list[_View]] = defaultdict(list)
        for tensor in weights:
            for view in self._views_of(tensor, wanted):
                self.views[view.norms.size].append(view)

    def vectors(self, size: int) -> Sequence[_Vector]:
        if size not in self._vectors:
            lines = [line for line in self._lines if prod(line.shape) == size]
            fetch(lines)
            read = ((line, as_float64(line.read()).ravel()) for line in lines)
            self._vectors[size] = [
                _Vector(line.key, array, doubt, _rounding_of(line))
                for line, array in read
                if not _is_coarse(array, doubt := _doubt(line, array))
            ]
        return self._vectors[size]

    def array(self, weights: Variable) -> Floats:
        """Return the values of a weight variable, without axes of size 1."""
        if weights.key in self._kept:
            return self._kept[weights.key]
        array = as_float64(weights.read()).reshape(squeezed(weights.shape))
        if array.size <= self._room:
            self._room -= array.size
            self._kept[weights.key] = array
        return array

    def _views_of(self, weights: Variable, sizes: Container[int]) -> Iterator[_View]:
        array = self.array(weights)
        doubt = _doubt(weights, array)
        if _is_coarse(array, doubt):
            return
        for shape in _shapes(weights):
            squares, doubts = array.reshape(shape) ** 2, doubt.reshape(shape) ** 2
            for axis in (axis for axis, size in enumerate(shape) if size in sizes):
                others = tuple(other for other in range(len(shape)) if other != axis)
                sums = np.sqrt(squares.sum(axis=others)), np.sqrt(doubts.sum(axis=others))
                yield _View(self, weights, shape, axis, *sums)


def reorderings(shape: tuple[int, ...], wanted: tuple[int, ...]) -> Iterator[_Reordering]:
    """Yield functions that reorder all axes but the first, from `shape` to `wanted`.

    A flattened axis may combine channels and spatial positions in either order.
    """
    for order in permutations(range(1, len(shape))):
        if wanted == (shape[0], *(shape[axis] for axis in order)):
            yield partial(np.transpose, axes=(0, *order))
    if len(shape) == 2 and shape == wanted:
        for size in range(2, isqrt(shape[1]) + 1):
            if shape[1] % size == 0:
                yield partial(_split_and_swap, size)
                yield partial(_split_and_swap, shape[1] // size)


def _split_and_swap(size: int, array: Floats) -> Floats:
    """Reshape (a, size * b) to (a, size, b), swap the last two axes, and flatten them again."""
    return array.reshape(len(array), size, -1).swapaxes(1, 2).reshape(array.shape)


def _rounding_of(variable: Variable) -> Rounding | None:
    """Return how a tensor was rounded when it was stored; None for float32 and wider."""
    if variable.stepper is not None:
        return "quantized"
    return _ROUNDINGS[variable.dtype][0] if variable.dtype in _ROUNDINGS else None


def _doubt(variable: Variable, array: Floats) -> Floats:
    """Return the largest rounding error of each number; `array` contains the variable's values."""
    step = variable.step()
    if step is not None:
        return np.broadcast_to(as_float64(step) / 2, variable.shape).reshape(array.shape)
    if variable.dtype not in _ROUNDINGS:
        return np.broadcast_to(0.0, array.shape)
    _, relative, absolute = _ROUNDINGS[variable.dtype]
    return np.abs(array) * relative + absolute


def _is_coarse(array: Floats, doubt: Floats) -> bool:
    return bool(doubt.max(initial=0) > _COARSEST * np.abs(array).max(initial=0))


def _shapes(variable: Variable) -> list[tuple[int, ...]]:
    shape = squeezed(variable.shape)
    if len(shape) == 4:
        return [shape, (*shape[:2], shape[2] * shape[3])]
    return [shape]
