"""The tensors of a model beside its batch norm, as those that it may have been folded into."""

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
"""Elements of weights that are kept in memory while others are compared with them."""

Rounding = Literal["quantized", "float16", "bfloat16"]
"""How tensors are stored whose numbers are those of others, rounded."""

_ROUNDINGS: Final[Mapping[str, tuple[Rounding, float, float]]] = {
    "float16": ("float16", 2.0**-11, 2.0**-25),
    "bfloat16": ("bfloat16", 2.0**-8, 0.0),
}
"""What rounding to a type changes at most: as a part of a number, and of the smallest ones."""

_COARSEST: Final = 1 / 8
"""Tensors that are rounded by more than this part of their largest number prove nothing."""


Turn = Callable[[Floats], Floats]
"""Brings the axes of an array into another order."""


class Vector(NamedTuple):
    """A number for each channel.

    Attributes:
        key: the file's for it.
        values: the numbers.
        doubt: how far each may be from the one that it was rounded from.
        rounding: how it is stored, where that is why.
    """

    key: str
    values: Floats
    doubt: Floats
    rounding: Rounding | None


class View(NamedTuple):
    """Weights as those of some channels.

    Attributes:
        weights: the weights.
        shape: without axes of size 1; a depthwise kernel has one more, in which its last two
            axes are one.
        axis: the channels' in it.
        norms: the Euclidean norm of each channel, which no order of the other axes changes.
        doubts: how far each of these may be from the one before rounding.
    """

    weights: Variable
    shape: tuple[int, ...]
    axis: int
    norms: Floats
    doubts: Floats

    def channels_first(self, array: Floats) -> Floats:
        """An array of the weights with the channels' axis before the others."""
        return np.moveaxis(array.reshape(self.shape), self.axis, 0)


class Tensors:
    """The tensors of a model, but those of its batch norm, that have some numbers of channels."""

    def __init__(self, model: Model, sizes: Iterable[int]) -> None:
        wanted = set(sizes)
        held = [
            variable
            for key, variable in model.stored.items()
            if key not in model.claimed and variable.dtype in _FLOATS
        ]
        self._lines = [each for each in held if len(squeezed(each.shape)) <= 1]
        self.weights = [
            each
            for each in held
            if 2 <= len(squeezed(each.shape)) <= _MOST_AXES
            and prod(each.shape) <= _LARGEST
            and wanted & {shape[axis] for shape in _shapes(each) for axis in range(len(shape))}
        ]
        fetch((*(each for each in self._lines if prod(each.shape) in wanted), *self.weights))
        self._vectors: dict[int, list[Vector]] = {}
        self._kept: dict[str, Floats] = {}
        self._room = _MOST_KEPT
        self._spreads: dict[tuple[str, tuple[int, ...], int], Floats] = {}
        self._views: dict[int, list[View]] = {}
        for each in self.weights:
            for view in self._views_of(each, wanted):
                self._views.setdefault(view.norms.size, []).append(view)

    def vectors(self, size: int) -> Sequence[Vector]:
        """All vectors of so many numbers."""
        if size not in self._vectors:
            found = [each for each in self._lines if prod(each.shape) == size]
            fetch(found)
            arrays = ((each, as_float64(each.read())) for each in found)
            read = ((each, array, _doubt(each, array)) for each, array in arrays)
            self._vectors[size] = [
                Vector(each.key, array.ravel(), doubt.ravel(), rounding_of(each))
                for each, array, doubt in read
                if not _is_coarse(array, doubt)
            ]
        return self._vectors[size]

    def array(self, weights: Variable) -> Floats:
        """The numbers of weights, without axes of size 1."""
        if weights.key in self._kept:
            return self._kept[weights.key]
        array = as_float64(weights.read()).reshape(squeezed(weights.shape))
        if array.size <= self._room:
            self._room -= array.size
            self._kept[weights.key] = array
        return array

    def doubt(self, weights: Variable) -> Floats:
        """How far each of the numbers may be from the one that it was rounded from."""
        if rounding_of(weights) is None:
            return np.broadcast_to(0.0, squeezed(weights.shape))
        array = self.array(weights)
        return _doubt(weights, array.reshape(weights.shape)).reshape(array.shape)

    def views(self, size: int) -> Sequence[View]:
        """All weights by each of their axes that has so many channels."""
        return self._views.get(size, ())

    def spread(self, view: View) -> Floats:
        """The sum of each channel's sizes as a part of its norm: 1 where it has one number."""
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
            norms, doubts = (each.reshape(shape) ** 2 for each in (array, doubt))
            for axis in (axis for axis, size in enumerate(shape) if size in sizes):
                others = tuple(each for each in range(len(shape)) if each != axis)
                sums = (np.sqrt(each.sum(axis=others)) for each in (norms, doubts))
                yield View(weights, shape, axis, *sums)


def turns(shape: tuple[int, ...], wanted: tuple[int, ...]) -> Iterator[Turn]:
    """The ways in which the axes after the first can be ordered to give a shape.

    An axis of what a Flatten gives can be two, the channels and the positions, in either order.
    """
    for order in permutations(range(1, len(shape))):
        if wanted == (shape[0], *(shape[axis] for axis in order)):
            yield partial(np.transpose, axes=(0, *order))
    if len(shape) == 2 and shape == wanted:
        for size in range(2, isqrt(shape[1]) + 1):
            if shape[1] % size == 0:
                yield partial(_split_turned, size)
                yield partial(_split_turned, shape[1] // size)


def _split_turned(size: int, array: Floats) -> Floats:
    """The second of two axes split in two, the first of so many, and these swapped."""
    return array.reshape(len(array), size, -1).swapaxes(1, 2).reshape(array.shape)


def numbers_of(vector: Vector | None, size: int) -> Floats:
    """The numbers of a vector; so many zeros where there is none."""
    return np.zeros(size) if vector is None else vector.values


def rounding_of(variable: Variable) -> Rounding | None:
    """How a tensor is stored whose numbers are rounded from others; None of all the rest."""
    if variable.stepper is not None:
        return "quantized"
    return _ROUNDINGS[variable.dtype][0] if variable.dtype in _ROUNDINGS else None


def _doubt(variable: Variable, array: Floats) -> Floats:
    """How far each number of an array may be from the one that it was rounded from."""
    step = variable.step()
    if step is not None:
        return np.broadcast_to(as_float64(step) / 2, array.shape)
    _, part, least = _ROUNDINGS.get(variable.dtype, (None, 0.0, 0.0))
    return np.abs(array) * part + least


def _is_coarse(array: Floats, doubt: Floats) -> bool:
    return bool(doubt.max(initial=0) > _COARSEST * np.abs(array).max(initial=0))


def _shapes(variable: Variable) -> list[tuple[int, ...]]:
    shape = squeezed(variable.shape)
    if len(shape) == 4:
        return [shape, (*shape[:2], shape[2] * shape[3])]
    return [shape]
