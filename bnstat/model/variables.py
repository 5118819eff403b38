"""Variables: the tensors that a file stores, each read on demand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import BnstatError
from bnstat.storage.files import Range, prefetch

Array = NDArray[np.generic]


def squeezed(shape: Iterable[int]) -> tuple[int, ...]:
    """A shape without dimensions of 1, of which some formats have more than others.

    Sonnet keeps its averages as [1, 1, 1, channels] beside a gamma of [channels].
    """
    return tuple(size for size in shape if size != 1)


@dataclass(frozen=True, slots=True)
class Variable:
    """A stored tensor that is read on demand.

    Attributes:
        key: the exact key in the file: a checkpoint key, an HDF5 dataset's path, an op's name.
        name: the best name known for it (its full name, without `:0`).
        dtype: NumPy's or ml_dtypes' name of the element type: `float32`, `bfloat16`.
        shape: the dimensions.
        reader: reads the array; raises `DamagedError` or `NotFoundError`.
        finder: tells where the array's bytes are stored; raises as `reader` does.
        stepper: where the numbers were quantized, gives how far apart neighbours are, in a
            shape that is broadcast to the array's; raises as `reader` does.
    """

    key: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    reader: Callable[[], Array] = field(repr=False, compare=False)
    finder: Callable[[], Sequence[Range]] = field(default=tuple, repr=False, compare=False)
    stepper: Callable[[], Array] | None = field(default=None, repr=False, compare=False)

    def read(self) -> Array:
        """The stored array, of this shape and dtype, bit for bit."""
        return self.reader()

    def extents(self) -> Sequence[Range]:
        """Where the array's bytes are stored; empty where no file has them to itself.

        Together they are all of the array. One whose `Range.part` is None holds its part of it
        in another form: compressed, packed, in the other byte order.
        """
        return self.finder()

    def step(self) -> Array | None:
        """How far apart the neighbours of quantized numbers are; None where they are not such."""
        return None if self.stepper is None else self.stepper()


class Slots(NamedTuple):
    """What an optimizer keeps of the gradients of a bias and of a beta: a running average each.

    Attributes:
        of_bias, of_beta: the averages, which start at 0.
        are_squared: True if these are averages of the squared gradients.
    """

    of_bias: Variable
    of_beta: Variable
    are_squared: bool


class PrecedingBias(NamedTuple):
    """The bias that a network adds right before a layer.

    Attributes:
        variable: the bias; it may have a number for each channel at each position, the channels
            last, as that of a dense layer whose output is reshaped.
        is_proven: True if the file records that nothing lies between, and no regularizer that
            holds the bias alone; False if the bias is found by names or by an order.
        slots: what the optimizer keeps for it and for the layer's beta, if the file stores that.
    """

    variable: Variable
    is_proven: bool
    slots: Slots | None = None


StatisticsMode = Literal["batch", "stored", "fed", "either"]


class StatisticsUse(NamedTuple):
    """What the graphs of a file show of the moving statistics of one layer.

    Attributes:
        updates: how many ops update them.
        updates_run: how many of these run in a training step; None if no graph trains.
        mode: the statistics that training normalizes with: those of the `batch`, the `stored`
            ones, those that each run has to specify (`fed`), or `either`, if it is not known when
            which. None if no graph trains the layer.
        is_read: True if anything but the updates reads them.
    """

    updates: int
    updates_run: int | None
    mode: StatisticsMode | None
    is_read: bool


def fetch(variables: Iterable[Variable]) -> None:
    """Let the bytes of many variables, which will be read next, be fetched together.

    Raises:
        BnstatError: they cannot be fetched. What cannot be found tells so when it is read.
    """
    prefetch(_extents(variables))


def _extents(variables: Iterable[Variable]) -> Iterator[Range]:
    for variable in variables:
        try:
            yield from variable.extents()
        except BnstatError:
            continue


class Explanation(NamedTuple):
    """Why a variable was, or was not, taken as part of a batch-norm layer."""

    key: str
    layer: str | None
    role: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers that a person looks at first, in float64, over the finite elements.

    Attributes:
        count: the number of elements.
        bad: how many of them are NaN or infinite.
        mean, std, min, max: of the finite elements (population deviation); NaN if none is.
    """

    count: int
    bad: int
    mean: float
    std: float
    min: float
    max: float

    @classmethod
    def of(cls, array: Array) -> Summary:
        """Summarize an array of any numeric dtype."""
        values = as_float64(array).ravel()
        count = values.size
        with np.errstate(over="ignore", invalid="ignore"):
            total = values.sum()
            # The sum of finite numbers is finite unless it overflows.
            if not math.isfinite(total):
                values = values[np.isfinite(values)]
                total = values.sum()
            if not values.size:
                return cls(count, count, math.nan, math.nan, math.nan, math.nan)
            mean = float(total / values.size)
            deviations = values - mean
            deviations *= deviations
            std = math.sqrt(deviations.sum() / values.size)
        bad = count - values.size
        return cls(count, bad, mean, std, float(values.min()), float(values.max()))


def as_float64(array: Array) -> NDArray[np.float64]:
    """The array's numbers as float64 (bfloat16 and the 8-bit floats included)."""
    with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN like any other
        return array.astype(np.float64)
