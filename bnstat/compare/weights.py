"""The tensors of a model beside its batch norm, which layers may have been folded into."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import permutations
from math import isqrt, prod
from typing import Final, Literal, NamedTuple

import numpy as np

from bnstat.compare.effects import Floats
from bnstat.model import Model, Variable, as_float64, fetch, squeezed

_FLOATS: Final = ("float16", "bfloat16", "float32", "float64")
_MOST_AXES: Final = 5
_LARGEST: Final = 1 << 28
"""Elements of weights that are compared; the largest dense layers have fewer."""

_MOST_KEPT: Final = 1 << 24
"""Elements of weights that are kept in memory for further comparisons."""

Rounding = Literal["quantized", "float16", "bfloat16"]
"""How the numbers of a tensor were rounded when it was stored."""

_ROUNDINGS: Final[Mapping[str, tuple[Rounding, float, float]]] = {
    "float16": ("float16", 2.0**-11, 2.0**-25),
    "bfloat16": ("bfloat16", 2.0**-8, 0.0),
}
"""The largest change by rounding to a dtype: relative, and absolute for the smallest numbers."""

_COARSEST: Final = 1 / 8
"""Tensors whose rounding exceeds this part of their largest number prove nothing."""

Reordering = Callable[[Floats], Floats]
"""Changes the order of the axes of an array."""


class Vector(NamedTuple):
    """A number for each channel.

    Attributes:
        key: its key in the file.
        values: the numbers.
        doubt: the largest change of each number by rounding.
        rounding: how it was rounded, if it was.
    """

    key: str
    values: Floats
    doubt: Floats
    rounding: Rounding | None


class View(NamedTuple):
    """Weights, and one of their axes that may be the channels.

    Attributes:
        weights: the weights.
        shape: without axes of size 1. The last two axes of a depthwise kernel may be merged.
        axis: the channels' axis in `shape`.
        norms: the Euclidean norm of each channel, which does not depend on the order of axes.
        doubts: the largest change of each norm by rounding.
    """

    weights: Variable
    shape: tuple[int, ...]
    axis: int
    norms: Floats
    doubts: Floats

    def channels_first(self, array: Floats) -> Floats:
        """Return an array of the weights with the channels' axis before the others."""
        return np.moveaxis(array.reshape(self.shape), self.axis, 0)


class Tensors:
    """The tensors of a model, except its batch norm, that have certain numbers of channels."""

    def __init__(self, model: Model, sizes: Iterable[int]) -> None:
        wanted = set(sizes)
        tensors = [
            variable
            for key, variable in model.stored.items()
            if key not in model.claimed and variable.dtype in _FLOATS
        ]
        self._lines = [tensor for tensor in tensors if len(squeezed(tensor.shape)) <= 1]
        self.weights = [
            tensor
            for tensor in tensors
            if 2 <= len(squeezed(tensor.shape)) <= _MOST_AXES
            and prod(tensor.shape) <= _LARGEST
            and any(wanted.intersection(shape) for shape in _shapes(tensor))
        ]
        lines = [line for line in self._lines if prod(line.shape) in wanted]
        fetch([*lines, *self.weights])
        self._vectors: dict[int, list[Vector]] = {}
        self._kept: dict[str, Floats] = {}
        self._room = _MOST_KEPT
        self._spreads: dict[tuple[str, tuple[int, ...], int], Floats] = {}
        self._views: dict[int, list[View]] = {}
        for weights in self.weights:
            for view in self._views_of(weights, wanted):
                self._views.setdefault(view.norms.size, []).append(view)

    def vectors(self, size: int) -> Sequence[Vector]:
        """Return all vectors with this number of elements."""
        if size not in self._vectors:
            lines = [line for line in self._lines if prod(line.shape) == size]
            fetch(lines)
            self._vectors[size] = []
            for line in lines:
                array = as_float64(line.read())
                doubt = _doubt(line, array)
                if not _is_coarse(array, doubt):
                    vector = Vector(line.key, array.ravel(), doubt.ravel(), rounding_of(line))
                    self._vectors[size].append(vector)
        return self._vectors[size]

    def array(self, weights: Variable) -> Floats:
        """Return the numbers of weights, without axes of size 1."""
        if weights.key in self._kept:
            return self._kept[weights.key]
        array = as_float64(weights.read()).reshape(squeezed(weights.shape))
        if array.size <= self._room:
            self._room -= array.size
            self._kept[weights.key] = array
        return array

    def doubt(self, weights: Variable) -> Floats:
        """Return the largest change of each number by rounding."""
        if rounding_of(weights) is None:
            return np.broadcast_to(0.0, squeezed(weights.shape))
        array = self.array(weights)
        return _doubt(weights, array.reshape(weights.shape)).reshape(array.shape)

    def views(self, size: int) -> Sequence[View]:
        """Return all weights, by each of their axes with this number of channels."""
        return self._views.get(size, ())

    def spread(self, view: View) -> Floats:
        """Return the sum of each channel's sizes relative to its norm; 1 for a single number."""
        key = (view.weights.key, view.shape, view.axis)
        if key not in self._spreads:
            sizes = np.abs(view.channels_first(self.array(view.weights)))
            with np.errstate(all="ignore"):
                self._spreads[key] = sizes.reshape(len(sizes), -1).sum(axis=1) / view.norms
        return self._spreads[key]

    def _views_of(self, weights: Variable, sizes: Container[int]) -> Iterator[View]:
        array = self.array(weights)
        doubt = self.doubt(weights)
        if _is_coarse(array, doubt):
            return
        for shape in _shapes(weights):
            squares, doubts = array.reshape(shape) ** 2, doubt.reshape(shape) ** 2
            for axis in (axis for axis, size in enumerate(shape) if size in sizes):
                others = tuple(other for other in range(len(shape)) if other != axis)
                sums = np.sqrt(squares.sum(axis=others)), np.sqrt(doubts.sum(axis=others))
                yield View(weights, shape, axis, *sums)


def reorderings(shape: tuple[int, ...], wanted: tuple[int, ...]) -> Iterator[Reordering]:
    """Yield the ways to reorder the axes after the first so that the result has a shape.

    An axis that a Flatten layer made may be the channels and the positions, in either order.
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
    """Split the second of two axes in two, the first of this size, and swap these."""
    return array.reshape(len(array), size, -1).swapaxes(1, 2).reshape(array.shape)


def numbers_of(vector: Vector | None, size: int) -> Floats:
    """Return the numbers of a vector, or zeros without a vector."""
    return np.zeros(size) if vector is None else vector.values


def rounding_of(variable: Variable) -> Rounding | None:
    """Return how a tensor was rounded; None for float32 and wider."""
    if variable.stepper is not None:
        return "quantized"
    return _ROUNDINGS[variable.dtype][0] if variable.dtype in _ROUNDINGS else None


def _doubt(variable: Variable, array: Floats) -> Floats:
    step = variable.step()
    if step is not None:
        return np.broadcast_to(as_float64(step) / 2, array.shape)
    _, relative, absolute = _ROUNDINGS.get(variable.dtype, (None, 0.0, 0.0))
    return np.abs(array) * relative + absolute


def _is_coarse(array: Floats, doubt: Floats) -> bool:
    return bool(doubt.max(initial=0) > _COARSEST * np.abs(array).max(initial=0))


def _shapes(variable: Variable) -> list[tuple[int, ...]]:
    shape = squeezed(variable.shape)
    if len(shape) == 4:
        return [shape, (*shape[:2], shape[2] * shape[3])]
    return [shape]
