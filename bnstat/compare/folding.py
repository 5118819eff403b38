"""Batch norm that a converter folded into the weights beside it, found and proven by arithmetic.

`scale * (w * x + b) + shift` is `(scale * w) * x + (scale * b + shift)`: the layer is gone, its
convolution's weights are the original's times the scale, its bias is the shift and the scaled
bias that was there. A file need not say which convolution stood before the layer, nor in which
order its axes are kept (HWIO, OIHW, OHWI, depthwise or transposed): weights all of whose numbers
are the products in one order of the axes prove both, and nothing less is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import prod
from typing import Final, Literal, NamedTuple

import numpy as np

from bnstat.compare.effects import Effect, Effects, Floats, close, within
from bnstat.model import BatchNorm, Model, Variable, as_float64, fetch, squeezed

_FLOATS: Final = ("float16", "bfloat16", "float32", "float64")
_MOST_AXES: Final = 5
_LARGEST: Final = 1 << 28
"""Elements of weights that are compared; the largest dense layers have fewer."""

_MOST_KEPT: Final = 1 << 24
"""Elements of weights that are kept in memory while others are compared with them."""


@dataclass(frozen=True, slots=True)
class Folded:
    """A layer that one model has, and the weights of the other that it went into.

    Attributes:
        layer: its name.
        side: which of the two models has it.
        weights: key of the weights beside it in its own model; None where it was not folded
            into weights, but became one multiplication and one addition.
        into: key of the weights, or of the scale, in the other model.
        bias: key of the bias, or of the shift, in the other; None where there is none, which is
            where the shift is 0.
    """

    layer: str
    side: Literal["old", "new"]
    weights: str | None
    into: str
    bias: str | None


def find_folded(
    layers: Sequence[BatchNorm],
    own: Model,
    other: Model,
    side: Literal["old", "new"],
    effects: Effects,
) -> list[Folded]:
    """Those of some layers that the other model has in its weights.

    Args:
        layers: layers of `own` that the other model does not have.
        own: the model that has them.
        other: the other one.
        side: which one `own` is.
        effects: tells what the layers amount to.

    Raises:
        BnstatError: a tensor of one of the models cannot be read.
    """
    known = [(layer, found) for layer in layers if (found := effects.of(layer)) is not None]
    sizes = {found.scale.size for _, found in known}
    if not sizes or not own.stored or not other.stored:
        return []
    mine, theirs = _Tensors(own, sizes), _Tensors(other, sizes)
    result = []
    for layer, found in known:
        proof = _prove(found, mine, theirs, effects.tolerance)
        if proof is not None:
            result.append(Folded(layer.name, side, *proof))
    return result


class _View(NamedTuple):
    """Weights as those of some channels.

    Attributes:
        weights: the weights.
        shape: without axes of size 1; a depthwise kernel has one more, in which its last two
            axes are one.
        axis: the channels' in it.
        norms: the Euclidean norm of each channel, which no order of the other axes changes.
    """

    weights: Variable
    shape: tuple[int, ...]
    axis: int
    norms: Floats


class _Tensors:
    """The tensors of a model, but those of its batch norm, that have some numbers of channels."""

    def __init__(self, model: Model, sizes: Iterable[int]) -> None:
        wanted = set(sizes)
        held = [
            variable
            for key, variable in model.stored.items()
            if key not in model.claimed and variable.dtype in _FLOATS
        ]
        vectors = [
            each for each in held if len(squeezed(each.shape)) == 1 and _count(each) in wanted
        ]
        self.weights = [
            each
            for each in held
            if 2 <= len(squeezed(each.shape)) <= _MOST_AXES
            and _count(each) <= _LARGEST
            and wanted & {shape[axis] for shape in _shapes(each) for axis in range(len(shape))}
        ]
        fetch((*vectors, *self.weights))
        self.vectors: Mapping[int, list[tuple[str, Floats]]] = {
            size: [
                (each.key, as_float64(each.read()).ravel())
                for each in vectors
                if _count(each) == size
            ]
            for size in wanted
        }
        self._kept: dict[str, Floats] = {}
        self._room = _MOST_KEPT
        self._views: dict[int, list[_View]] = {}
        for each in self.weights:
            for view in self._views_of(each):
                if view.norms.size in wanted:
                    self._views.setdefault(view.norms.size, []).append(view)

    def array(self, weights: Variable) -> Floats:
        """The numbers of weights, without axes of size 1."""
        if weights.key in self._kept:
            return self._kept[weights.key]
        array = as_float64(weights.read()).reshape(squeezed(weights.shape))
        if array.size <= self._room:
            self._room -= array.size
            self._kept[weights.key] = array
        return array

    def views(self, size: int) -> Sequence[_View]:
        """All weights by each of their axes that has so many channels."""
        return self._views.get(size, ())

    def first_norms(self, size: int) -> Floats:
        """The norm of the first channel of each of the `views`."""
        return np.array([view.norms[0] for view in self.views(size)])

    def _views_of(self, weights: Variable) -> Iterator[_View]:
        array = self.array(weights)
        for shape in _shapes(weights):
            squares = array.reshape(shape) ** 2
            for axis in range(len(shape)):
                others = tuple(each for each in range(len(shape)) if each != axis)
                yield _View(weights, shape, axis, np.sqrt(squares.sum(axis=others)))


def _prove(
    effect: Effect, mine: _Tensors, theirs: _Tensors, tolerance: float
) -> tuple[str | None, str, str | None] | None:
    """The weights of the layer's own model, those that it went into, and their bias."""
    biases = list(_biases(effect, mine, theirs, tolerance))
    if not biases:
        return None
    for view in mine.views(effect.scale.size):
        into = _scaled(effect.scale, mine, view, theirs, tolerance)
        if into is not None:
            return view.weights.key, into.key, biases[0][0]
    for bias, added in biases:
        for key, vector in theirs.vectors[effect.scale.size]:
            # One number for all channels may be anything.
            if bias is None or added or key == bias or np.ptp(effect.scale) == 0:
                continue
            if close(vector, effect.scale, tolerance).all():
                return None, key, bias
    return None


def _biases(
    effect: Effect, mine: _Tensors, theirs: _Tensors, tolerance: float
) -> Iterator[tuple[str | None, bool]]:
    """Biases that are the shift, or the shift and a scaled bias; whether they have that one."""
    size = effect.scale.size
    olds = [(False, np.zeros(size)), *((True, vector) for _, vector in mine.vectors[size])]
    for added, old in olds:
        scaled = effect.scale * old
        distance = tolerance * (effect.terms + np.abs(scaled))
        for key, vector in theirs.vectors[size]:
            if within(vector, effect.shift + scaled, distance).all():
                yield key, added
    if (np.abs(effect.shift) <= tolerance * effect.terms).all():
        yield None, False


def _scaled(
    scale: Floats, mine: _Tensors, view: _View, theirs: _Tensors, tolerance: float
) -> Variable | None:
    """The weights that are those of a view times the scale, in any order of the axes."""
    expected = np.abs(scale) * view.norms
    # A sum of products has more roundings.
    loose = 10 * tolerance
    candidates = theirs.views(scale.size)
    for place in np.flatnonzero(
        close(theirs.first_norms(scale.size), expected[:1], loose)
    ).tolist():
        into = candidates[place]
        if prod(view.shape) != prod(into.shape):
            continue
        if not close(into.norms, expected, loose).all():
            continue
        own = np.moveaxis(mine.array(view.weights).reshape(view.shape), view.axis, 0)
        product = own * scale.reshape(-1, *[1] * (own.ndim - 1))
        other = np.moveaxis(theirs.array(into.weights).reshape(into.shape), into.axis, 0)
        if _same_in_an_order(product, other, tolerance):
            return into.weights
    return None


def _same_in_an_order(a: Floats, b: Floats, tolerance: float) -> bool:
    """Whether two arrays are the same, but for the order of all axes after the first."""
    for order in permutations(range(1, a.ndim)):
        turned = a.transpose(0, *order)
        if turned.shape == b.shape and close(turned, b, tolerance).all():
            return True
    return False


def _shapes(variable: Variable) -> list[tuple[int, ...]]:
    shape = squeezed(variable.shape)
    if len(shape) == 4:
        return [shape, (*shape[:2], shape[2] * shape[3])]
    return [shape]


def _count(variable: Variable) -> int:
    return prod(variable.shape)
