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
    """Return a shape without dimensions of 1, which some formats add.

    Sonnet stores averages as [1, 1, 1, channels], but gamma as [channels].
    """
    return tuple(size for size in shape if size != 1)


@dataclass(frozen=True, slots=True)
class Variable:
    """A stored tensor that is read on demand.

    Attributes:
        key: the exact key in the file: a checkpoint key, an HDF5 dataset's path, an op's name.
        name: the best known name (the full name, without `:0`).
        dtype: NumPy's or ml_dtypes' name of the element type: `float32`, `bfloat16`.
        shape: the dimensions.
        reader: reads the array; raises `DamagedError` or `NotFoundError`.
        finder: returns the ranges of the array's bytes; raises as `reader` does.
        stepper: returns the quantization step, in a shape that broadcasts to the array; raises as
            `reader` does. None if the array is not quantized.
    """

    key: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    reader: Callable[[], Array] = field(repr=False, compare=False)
    finder: Callable[[], Sequence[Range]] = field(default=tuple, repr=False, compare=False)
    stepper: Callable[[], Array] | None = field(default=None, repr=False, compare=False)

    def read(self) -> Array:
        """Return the stored array, bit for bit."""
        return self.reader()

    def extents(self) -> Sequence[Range]:
        """Return the ranges of the array's bytes; empty if they are interleaved with other data.

        The ranges together contain the whole array. A range whose `part` is None stores it in
        another form: compressed, packed, or in the other byte order.
        """
        return self.finder()

    def step(self) -> Array | None:
        """Return the quantization step; None if not quantized."""
        return None if self.stepper is None else self.stepper()


class Slots(NamedTuple):
    """An optimizer's running averages of the gradients of a bias and a beta.

    Attributes:
        of_bias, of_beta: the averages, which start at 0.
        are_squared: True for averages of squared gradients.
    """

    of_bias: Variable
    of_beta: Variable
    are_squared: bool


class PrecedingBias(NamedTuple):
    """The bias that a network adds right before a layer.

    Attributes:
        variable: the bias; it may have a number for each position and channel (channels last), for
            example in a dense layer whose output is reshaped.
        is_proven: True if the file proves that the bias is added right before the layer, and has no
            separate regularizer; False if the bias was found by names or order.
        slots: the optimizer's averages for the bias and for beta, if stored.
    """

    variable: Variable
    is_proven: bool
    slots: Slots | None = None


StatisticsMode = Literal["batch", "stored", "fed", "either"]


class StatisticsUse(NamedTuple):
    """The use of one layer's moving statistics in the graphs of a file.

    Attributes:
        updates: the number of ops that update the statistics.
        updates_run: the number of update ops that run in a training step; None if no graph trains.
        mode: the statistics that normalize in training: `batch`, `stored`, `fed` if each run
            selects them, or `either` if the choice is unknown. None if no graph trains the layer.
        is_read: True if ops other than the updates read the statistics.
    """

    updates: int
    updates_run: int | None
    mode: StatisticsMode | None
    is_read: bool


class Explanation(NamedTuple):
    """The reason why a variable belongs, or does not belong, to a batch-norm layer."""

    key: str
    layer: str | None
    role: str | None
    reason: str


def fetch(variables: Iterable[Variable]) -> None:
    """Fetch the bytes of many variables together, before they are read.

    Raises:
        BnstatError: the bytes cannot be fetched. If a variable cannot be located, reading it raises
            the error.
    """
    prefetch(_extents(variables))


def _extents(variables: Iterable[Variable]) -> Iterator[Range]:
    for variable in variables:
        try:
            yield from variable.extents()
        except BnstatError:
            continue


@dataclass(frozen=True, slots=True)
class Summary:
    """Summary statistics of an array's finite elements, in float64.

    Attributes:
        count: the number of elements.
        bad: the number of elements that are NaN or infinite.
        mean, std, min, max: statistics of the finite elements (population deviation); NaN without
            finite elements.
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
    """Return the array's numbers as float64 (bfloat16 and the 8-bit floats included)."""
    with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN like any other
        return array.astype(np.float64)
