"""Models and their batch-normalization layers, the data of every command."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, SupportsIndex, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bnstat.display import Displayed, notebook
from bnstat.errors import AmbiguousError, BnstatError, DamagedError, NotFoundError
from bnstat.errors import printable as printable
from bnstat.storage.files import Range, prefetch
from bnstat.text import count

Array = NDArray[np.generic]


def squeezed(shape: Iterable[int]) -> tuple[int, ...]:
    """Return a shape without its dimensions of size 1, which Sonnet adds to averages."""
    return tuple(size for size in shape if size != 1)


@dataclass(frozen=True, slots=True)
class Variable:
    """A stored tensor that is read on demand.

    Attributes:
        key: the exact key in the file: a checkpoint key, an HDF5 dataset's path, an op's name.
        name: the name in the author's code, as far as the file records it, without `:0`.
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
        """Return the ranges of bytes that contain the array.

        The sequence is empty if the array's bytes are interleaved with other data. A range whose
        `part` is None contains compressed, packed or big-endian elements.
        """
        return self.finder()

    def step(self) -> Array | None:
        """Return the quantization step, broadcastable to the array; None if not quantized."""
        return None if self.stepper is None else self.stepper()


class Slots(NamedTuple):
    """An optimizer's averages of the gradients (squared if `are_squared`) of a bias and a beta."""

    of_bias: Variable
    of_beta: Variable
    are_squared: bool


class PrecedingBias(NamedTuple):
    """The bias that a network adds right before a layer.

    Attributes:
        variable: the bias, with one number per channel; or one per position and channel (channels
            last), for example if the output of a dense layer is reshaped.
        is_proven: True if the file proves that the bias is added right before the layer, and that
            no regularizer acts on the bias. False if names or the order of variables suggest it.
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
        mode: the statistics that normalize in training: `batch`, `stored`, `fed` (an input of the
            graph selects them) or `either` (unknown). None if no graph trains the layer.
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

    A variable whose bytes cannot be located is skipped; reading the variable raises the error.
    """
    ranges: list[Range] = []
    for variable in variables:
        with suppress(BnstatError):
            ranges += variable.extents()
    prefetch(ranges)


@dataclass(frozen=True, slots=True)
class Summary:
    """Summary statistics of an array's finite elements, in float64; NaN if no element is finite.

    Attributes:
        count: the number of elements.
        bad: the number of elements that are NaN or infinite.
        std: the population standard deviation.
    """

    count: int
    bad: int
    mean: float
    std: float
    min: float
    max: float

    @classmethod
    def of(cls, array: Array) -> Summary:
        values = as_float64(array).ravel()
        size = values.size
        with np.errstate(over="ignore", invalid="ignore"):
            total = values.sum()
            # The sum of finite numbers is finite unless it overflows.
            if not math.isfinite(total):
                values = values[np.isfinite(values)]
                total = values.sum()
            if not values.size:
                return cls(size, size, math.nan, math.nan, math.nan, math.nan)
            mean = float(total / values.size)
            deviations = values - mean
            deviations *= deviations
            std = math.sqrt(deviations.sum() / values.size)
        bad = size - values.size
        return cls(size, bad, mean, std, float(values.min()), float(values.max()))


def as_float64(array: Array) -> NDArray[np.float64]:
    """Return the array's numbers as float64 (bfloat16 and the 8-bit floats included)."""
    with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN like any other
        return array.astype(np.float64)


def different(old: Array, new: Array) -> NDArray[np.bool_]:
    """Return a flat mask: True where two arrays of one shape and dtype differ in any bit."""

    def raw(array: Array) -> Array:
        flat = np.ascontiguousarray(array).reshape(-1)
        return flat.view(np.uint8).reshape(array.size, array.dtype.itemsize)

    return np.asarray((raw(old) != raw(new)).any(axis=1))


def is_same(a: Array, b: Array) -> bool:
    """Return True if two arrays have the same shape, dtype and bits."""
    return (a.shape, a.dtype) == (b.shape, b.dtype) and not different(a, b).any()


Evidence = Literal["config", "object-graph", "graph", "name"]

Axis = SupportsIndex | Sequence[SupportsIndex]

ROLES: Final = ("gamma", "beta", "moving_mean", "moving_variance")
"""The four roles of a batch-norm layer's variables, in the order of Keras."""


@dataclass(eq=False)
class BatchNorm(Displayed):
    """A batch-normalization layer.

    Attributes:
        name: the layer's name as chosen by the author, unique in the model.
        variables: role -> variable, for the `ROLES` that are present.
        evidence: the strongest evidence that this is batch normalization.
        epsilon, momentum, axis, trainable: the layer's settings. A setting that the file does not
            store is None. The axis is an int, or a tuple of ints for several axes.
        extra: label -> further variable of the layer, for example in batch renormalization.
        undecided: variables of the layer whose role the file does not record.
        notes: remarks on the layer's numbers.
        uses_batch_statistics: True if a graph shows that the layer normalizes with batch statistics
            only, and updates no moving statistics.
        inputs: (graph name, tensor name) of each tensor that the layer normalizes; may be empty.
    """

    name: str
    variables: Mapping[str, Variable]
    evidence: Evidence = "name"
    epsilon: float | None = None
    momentum: float | None = None
    axis: int | tuple[int, ...] | None = None
    trainable: bool | None = None
    extra: Mapping[str, Variable] = field(default_factory=dict)
    undecided: Sequence[Variable] = ()
    notes: Sequence[str] = ()
    uses_batch_statistics: bool = False
    inputs: frozenset[tuple[str, str]] = frozenset()
    _arrays: dict[str, Array] = field(default_factory=dict, init=False, repr=False)

    @property
    def gamma(self) -> Array | None:
        """The scale gamma; None if the layer has none (`scale=False`)."""
        return self.array("gamma")

    @property
    def beta(self) -> Array | None:
        """The offset beta; None if the layer has none (`center=False`)."""
        return self.array("beta")

    @property
    def moving_mean(self) -> Array | None:
        """The mean that inference subtracts; None if the file does not contain it."""
        return self.array("moving_mean")

    @property
    def moving_variance(self) -> Array | None:
        """The variance; inference divides by sqrt(variance + epsilon).

        None if the file does not contain it.
        """
        return self.array("moving_variance")

    def array(self, role: str) -> Array | None:
        """Return the array of a role, bit for bit as stored; None if the layer lacks it."""
        if role not in self.variables:
            return None
        if role not in self._arrays:
            self._arrays[role] = self.variables[role].read()
        return self._arrays[role]

    def read(self) -> None:
        """Read all arrays of the layer now. Raises as `Variable.read` does."""
        for role in self.variables:
            self.array(role)

    def all_variables(self) -> list[Variable]:
        """Return the variables of the layer, including those without a role."""
        return [*self.variables.values(), *self.extra.values(), *self.undecided]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the layer's variables: `(channels,)` for nearly all layers."""
        for variable in (*self.variables.values(), *self.undecided):
            return variable.shape
        return ()

    @property
    def channels(self) -> int:
        """The number of elements of each of the layer's variables."""
        return int(np.prod(self.shape, dtype=np.int64))

    def scale_and_shift(self, epsilon: float | None = None) -> tuple[Array, Array]:
        """Return the effect on each channel in inference: `y = scale * x + shift`.

        `scale = gamma / sqrt(moving_variance + epsilon)` and
        `shift = beta - moving_mean * scale`, with 1 for a missing gamma, 0 for a missing beta.

        Args:
            epsilon: replaces the stored epsilon; required if the file does not store one, because
                bnstat never guesses it.

        Returns:
            Two arrays of the layer's `shape`, in float64 for float64 layers, else in float32.

        Raises:
            AmbiguousError: epsilon is unknown, or the role of a variable is undecided.
            NotFoundError: the file does not contain the moving statistics.
            DamagedError: the shapes of the layer's variables are inconsistent.
        """
        mean, variance, epsilon = self._statistics(epsilon)
        dtype = np.result_type(_working_dtype(variance), np.float32)

        def fit(array: Array) -> Array:
            return array.astype(dtype).reshape(self.shape)

        scale = 1 / np.sqrt(fit(variance) + dtype.type(epsilon))
        if (gamma := self.gamma) is not None:
            scale = scale * fit(gamma)
        shift = np.negative(fit(mean)) * scale
        if (beta := self.beta) is not None:
            shift = shift + fit(beta)
        return scale, shift

    def normalize(
        self, x: ArrayLike, epsilon: float | None = None, axis: Axis | None = None
    ) -> Array:
        """Normalize `x` as in inference.

        Computes `gamma * (x - moving_mean) / sqrt(moving_variance + epsilon) + beta`.

        Args:
            x: an array whose size along the layer's axis is the layer's number of channels.
            epsilon: replaces the stored epsilon; required if the file does not store one, because
                bnstat never guesses it.
            axis: the channel axis of `x`, or several axes. Default: the stored axis. If the file
                stores none, the variables broadcast to `x` if they have as many dimensions as `x`;
                else the last axis is the channel axis.

        Returns:
            An array of the shape of `x`, in the wider dtype of `x` and the layer, at least float32.

        Raises:
            AmbiguousError: epsilon is unknown, or the role of a variable is undecided.
            NotFoundError: the file does not contain the moving statistics.
            DamagedError: the shapes of the layer's variables are inconsistent.
            ValueError: `x` does not fit the layer.
        """
        mean, variance, epsilon = self._statistics(epsilon)
        values = np.asarray(x)
        shape = self._broadcast_shape(values.shape, axis)
        dtype = np.result_type(_working_dtype(variance), _working_dtype(values), np.float32)

        def fit(array: Array) -> Array:
            return array.astype(dtype).reshape(shape)

        result = (values.astype(dtype) - fit(mean)) / np.sqrt(fit(variance) + dtype.type(epsilon))
        if (gamma := self.gamma) is not None:
            result = fit(gamma) * result
        if (beta := self.beta) is not None:
            result = result + fit(beta)
        return np.asarray(result)

    def plot(self) -> Any:
        """Draw the distribution and the sorted channels of each statistic with Matplotlib.

        Returns:
            A `matplotlib.figure.Figure`, which notebooks show; `savefig` writes it to a file.

        Raises:
            UnsupportedError: Matplotlib is not installed.
            DamagedError, NotFoundError: as `Variable.read`.
        """
        return notebook().figure(self)

    def _statistics(self, epsilon: float | None) -> tuple[Array, Array, float]:
        if self.undecided:
            keys = ", ".join(variable.key for variable in self.undecided)
            hint = "load the full model, or pass its architecture as config="
            raise AmbiguousError(self.name, f"the file does not record the role of {keys}", hint)
        mean, variance = self.moving_mean, self.moving_variance
        if mean is None or variance is None:
            hint = "use a checkpoint that contains more than the trainable variables"
            raise NotFoundError(self.name, "its moving mean and variance are not in the file", hint)
        shapes = {variable.shape for variable in self.variables.values()}
        if len(set(map(squeezed, shapes))) > 1:
            listed = ", ".join(str(list(shape)) for shape in sorted(shapes))
            raise DamagedError(self.name, f"its variables have different shapes: {listed}")
        epsilon = self.epsilon if epsilon is None else epsilon
        if epsilon is None:
            hint = "pass epsilon= (Keras, tf.layers and slim default to 0.001; PyTorch to 1e-5)"
            raise AmbiguousError(self.name, "the file does not store this layer's epsilon", hint)
        return mean, variance, epsilon

    def _broadcast_shape(self, input_shape: tuple[int, ...], axis: Axis | None) -> tuple[int, ...]:
        axes = self.axis
        if isinstance(axis, Sequence):
            axes = tuple(map(operator.index, axis))
        elif axis is not None:
            axes = operator.index(axis)
        if not isinstance(axes, int) and len(self.shape) == len(input_shape):
            shape = list(self.shape)
        else:
            positions = []
            for position in axes if isinstance(axes, tuple) else (-1 if axes is None else axes,):
                if not -len(input_shape) <= position < len(input_shape):
                    raise ValueError(
                        f"axis {position} does not exist in an input of shape {input_shape}"
                    )
                positions.append(position % len(input_shape))
            sizes = [self.channels] if len(positions) == 1 else squeezed(self.shape)
            shape = [1] * len(input_shape)
            for position, size in zip(positions, sizes, strict=False):
                shape[position] = size
        fits = all(size in (1, full) for size, full in zip(shape, input_shape, strict=True))
        if not fits or int(np.prod(shape)) != self.channels:
            raise ValueError(
                f"an input of shape {input_shape} does not have the {self.channels} channels "
                f"of {self.name} on axis {-1 if axes is None else axes}"
            )
        return tuple(shape)


def _working_dtype(array: Array) -> np.dtype[np.generic]:
    """Return the dtype to compute in: float64 for float64 and large integers, else float32."""
    wide = array.dtype == np.float64 or (array.dtype.kind in "iu" and array.dtype.itemsize > 2)
    return np.dtype(np.float64 if wide else np.float32)


@dataclass(frozen=True, slots=True)
class Source:
    """The source of a model.

    Attributes:
        path: the path that the user passed.
        format: a name in `bnstat/formats/registry.py`, such as `saved-model` or `keras-h5`;
            `live` for a model in memory.
        checkpoint: name of the checkpoint in its folder (`model-1200`), if there are several.
        step: the training step, from the checkpoint's name or its `global_step` variable; None if
            unknown.
        writer: the library and version that wrote the file; None if the file does not record it.
    """

    path: str
    format: str
    checkpoint: str | None = None
    step: int | None = None
    writer: str | None = None

    @property
    def is_converted(self) -> bool:
        """True if files of this format are written by converters, not by training."""
        from bnstat.formats.registry import CONVERTED

        return self.format in CONVERTED


class Model(Displayed, Sequence[BatchNorm]):
    """The batch-norm layers of one file: a sequence, and a mapping by name.

    Attributes:
        source: the file or object that was read.
        layers: the layers, in network order if the file records the order, else by name.
        incomplete: batch-norm layers whose moving mean or variance is not in the file, and layers
            that may be batch norm.
        notes: remarks on the file, one line each.
        stored: key -> variable, for all tensors of the file.
        claimed: keys of the variables of all batch-norm layers of the file, including the layers
            that `select` left out.
    """

    def __init__(
        self,
        source: Source,
        layers: Sequence[BatchNorm],
        *,
        incomplete: Sequence[BatchNorm] = (),
        notes: Sequence[str] = (),
        explain: Callable[[], Sequence[Explanation]] = tuple,
        stored: Mapping[str, Variable] | None = None,
        find_biases: Callable[[], Mapping[str, PrecedingBias]] = dict,
        find_uses: Callable[[], Mapping[str, StatisticsUse]] = dict,
    ) -> None:
        self.source = source
        self.layers = tuple(layers)
        self.incomplete = tuple(incomplete)
        self.notes = tuple(notes)
        self.stored: Mapping[str, Variable] = {} if stored is None else stored
        self.claimed = frozenset(
            variable.key for layer in (*layers, *incomplete) for variable in layer.all_variables()
        )
        self._explain = explain
        self._find_biases = find_biases
        self._find_uses = find_uses
        self._by_name = {layer.name: layer for layer in self.layers}

    @property
    def undecided(self) -> tuple[BatchNorm, ...]:
        """The layers in `incomplete` for which the file records no role; they may be batch norm."""
        return tuple(layer for layer in self.incomplete if layer.undecided and not layer.variables)

    def explain(self) -> Sequence[Explanation]:
        """Return the reason why each variable of the file belongs to a batch norm, or does not."""
        return self._explain()

    def preceding_biases(self) -> Mapping[str, PrecedingBias]:
        """Return layer name -> bias that the network adds right before the layer.

        Layers without a bias, or with insufficient information in the file, are left out.

        Raises:
            DamagedError: a required part of the file is damaged.
        """
        names = self.keys()
        return {name: bias for name, bias in self._find_biases().items() if name in names}

    def statistics_uses(self) -> Mapping[str, StatisticsUse]:
        """Return layer name -> use of the moving statistics in the file's graphs.

        Layers that are in no graph are left out.

        Raises:
            DamagedError: a required part of the file is damaged.
        """
        names = self.keys()
        return {name: use for name, use in self._find_uses().items() if name in names}

    def read(
        self,
        layers: Sequence[BatchNorm] | None = None,
        track: Callable[[Sequence[BatchNorm]], Iterable[BatchNorm]] = iter,
    ) -> None:
        """Read the arrays of many layers now, fetching their bytes together.

        Args:
            layers: the layers. Default: all layers, including incomplete layers.
            track: wraps the iteration over layers, for example to show progress.

        Raises:
            DamagedError, NotFoundError: as `Variable.read`.
        """
        wanted = (*self.layers, *self.incomplete) if layers is None else layers
        fetch(variable for layer in wanted for variable in layer.all_variables())
        for layer in track(wanted):
            layer.read()

    def select(self, layers: Sequence[BatchNorm]) -> Model:
        """Return a copy of the model that contains only these layers."""
        model = copy(self)
        model.layers = tuple(layers)
        model._by_name = {layer.name: layer for layer in layers}
        return model

    @property
    def channels(self) -> int:
        """The total number of channels."""
        return sum(layer.channels for layer in self.layers)

    def keys(self) -> list[str]:
        """Return the layers' names."""
        return list(self._by_name)

    def values(self) -> list[BatchNorm]:
        """Return the layers."""
        return list(self.layers)

    def items(self) -> list[tuple[str, BatchNorm]]:
        """Return pairs of name and layer."""
        return list(self._by_name.items())

    def get(self, name: str, default: BatchNorm | None = None) -> BatchNorm | None:
        """Return the layer with this name, or `default`."""
        return self._by_name.get(name, default)

    @overload
    def __getitem__(self, index: int | str) -> BatchNorm: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[BatchNorm, ...]: ...

    def __getitem__(self, index: int | str | slice) -> BatchNorm | tuple[BatchNorm, ...]:
        if isinstance(index, str):
            return self._by_name[index]
        return self.layers[index]

    def __iter__(self) -> Iterator[BatchNorm]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __contains__(self, item: object) -> bool:
        return item in self._by_name if isinstance(item, str) else item in self.layers

    def __repr__(self) -> str:
        layers = count(len(self.layers), "batch-norm layer")
        return f"<Model {self.source.path!r} ({self.source.format}): {layers}>"

    def to_frame(self, library: Literal["pandas", "polars"] | None = None) -> Any:
        """Return all numbers as a data frame with one row for each channel.

        Args:
            library: the library of the data frame. Default: the library that the program has
                imported, else an installed one, pandas first.

        Returns:
            A frame with the columns `layer`, `channel` (the index in the layer's flattened
            variables), `gamma`, `beta`, `moving_mean` and `moving_variance`. The numbers have the
            widest dtype of all layers (bfloat16 and smaller floats become float32). A missing role
            is null in Polars, NaN in pandas.

        Raises:
            UnsupportedError: the library is not installed.
            DamagedError, NotFoundError: as `Variable.read`.
        """
        return notebook().frame(self, library)


def matches(name: str, globs: Sequence[str]) -> bool:
    """Return True if a name matches a glob, such as `block1/*`, or if `globs` is empty."""
    if not globs:
        return True
    from fnmatch import fnmatchcase

    return any(fnmatchcase(name, glob) for glob in globs)


def near_names(typed: str, names: Sequence[str]) -> str:
    """Return a hint with the names most similar to `typed`; empty if `names` is empty."""
    from difflib import get_close_matches

    near = get_close_matches(typed, names, n=3, cutoff=0.4) or names[:3]
    return f"near names: {', '.join(near)}" if near else ""
