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

    Sonnet stores its averages as [1, 1, 1, channels] beside a gamma of [channels].
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
        finder: returns where the array's bytes are stored; raises as `reader` does.
        stepper: returns the distance between neighboring quantized numbers, in a shape that
            broadcasts to the array's; raises as `reader` does. None if they are not quantized.
    """

    key: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    reader: Callable[[], Array] = field(repr=False, compare=False)
    finder: Callable[[], Sequence[Range]] = field(default=tuple, repr=False, compare=False)
    stepper: Callable[[], Array] | None = field(default=None, repr=False, compare=False)

    def read(self) -> Array:
        """Return the stored array, of this shape and dtype, bit for bit."""
        return self.reader()

    def extents(self) -> Sequence[Range]:
        """Return where the array's bytes are stored; empty if they are mixed with others.

        Together they are all of the array. A range whose `part` is None contains it in another
        form: compressed, packed, in the other byte order.
        """
        return self.finder()

    def step(self) -> Array | None:
        """Return the distance between neighboring quantized numbers; None if not quantized."""
        return None if self.stepper is None else self.stepper()


class Slots(NamedTuple):
    """An optimizer's running averages of the gradients of a bias and of a beta.

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
            last, for example in a dense layer whose output is reshaped.
        is_proven: True if the file records that nothing lies between, and no regularizer of the
            bias alone; False if the bias is found by names or by an order.
        slots: the optimizer's averages for it and for the layer's beta, if the file stores them.
    """

    variable: Variable
    is_proven: bool
    slots: Slots | None = None


StatisticsMode = Literal["batch", "stored", "fed", "either"]


class StatisticsUse(NamedTuple):
    """The use of the moving statistics of one layer, as the graphs of a file show it.

    Attributes:
        updates: how many ops update them.
        updates_run: how many of these run in a training step; None if no graph trains.
        mode: the statistics that training normalizes by: `batch`, `stored`, `fed` if each run
            has to specify which, or `either` if the choice is unknown.
            None if no graph trains the layer.
        is_read: True if anything but the updates reads them.
    """

    updates: int
    updates_run: int | None
    mode: StatisticsMode | None
    is_read: bool


class Explanation(NamedTuple):
    """Why a variable was, or was not, taken as part of a batch-norm layer."""

    key: str
    layer: str | None
    role: str | None
    reason: str


def fetch(variables: Iterable[Variable]) -> None:
    """Fetch the bytes of many variables together, before they are read.

    Raises:
        BnstatError: they cannot be fetched. A variable that cannot be located raises its error
            when it is read.
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
    """The numbers that a person looks at first, in float64, over the finite elements.

    Attributes:
        count: the number of elements.
        bad: how many of them are NaN or infinite.
        mean, std, min, max: of the finite elements (population deviation); NaN without any.
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
