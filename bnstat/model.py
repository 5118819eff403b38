"""Models and their batch-normalization layers: what every command works on.

A `Model` is both a sequence of its layers, in the order of the network where the file tells
it, and a mapping from their names. Arrays are read when they are first asked for, then kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bnstat.errors import AmbiguousError, BnstatError, DamagedError, NotFoundError
from bnstat.storage.ranges import Range, prefetch

Array = NDArray[np.generic]
Evidence = Literal["config", "object-graph", "graph", "name"]

ROLES: Final = ("gamma", "beta", "moving_mean", "moving_variance")
"""The four roles of a batch-norm layer's variables, in the order of Keras."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model was read from.

    Attributes:
        path: the path as the user gave it.
        format: `tf2-checkpoint`, `tf1-checkpoint`, `tf1-checkpoint-v1`, `saved-model`,
            `keras-h5`, `keras-archive`, `keras-weights` or `frozen-graph`.
        checkpoint: name of the checkpoint in its folder (`model-1200`), where there are several.
        step: the training step that the checkpoint's name or its `global_step` tells.
        writer: the library and version that wrote the file, where it says so.
    """

    path: str
    format: str
    checkpoint: str | None = None
    step: int | None = None
    writer: str | None = None


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
    """

    key: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    reader: Callable[[], Array] = field(repr=False, compare=False)
    finder: Callable[[], Sequence[Range]] = field(default=tuple, repr=False, compare=False)

    def read(self) -> Array:
        """The stored array, of this shape and dtype, bit for bit."""
        return self.reader()

    def extents(self) -> Sequence[Range]:
        """Where the array's bytes are stored; empty where no file has them to itself.

        Together they are all of the array. One whose `Range.part` is None holds its part of it
        in another form: compressed, packed, in the other byte order.
        """
        return self.finder()


class Verdict(NamedTuple):
    """Why a variable was, or was not, taken as part of a batch-norm layer."""

    key: str
    layer: str | None
    role: str | None
    reason: str


@dataclass(eq=False)
class BatchNorm:
    """A batch-normalization layer.

    Attributes:
        name: the layer's name as its author gave it, unique in its model.
        variables: role -> variable, for the `ROLES` that the layer has.
        evidence: the strongest evidence that this is batch normalization.
        epsilon, momentum, axis, trainable: where the file tells them, else None. The axis is
            an int, or a tuple of ints where the layer normalizes over several.
        extra: the layer's further variables by label, such as batch renormalization's.
        undecided: variables of the layer whose role the file does not tell.
        notes: what a reader of the layer's numbers has to know.
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
    _arrays: dict[str, Array] = field(default_factory=dict, init=False, repr=False)

    @property
    def gamma(self) -> Array | None:
        """The scale, or None where the layer has none (`scale=False`)."""
        return self.array("gamma")

    @property
    def beta(self) -> Array | None:
        """The offset, or None where the layer has none (`center=False`)."""
        return self.array("beta")

    @property
    def moving_mean(self) -> Array | None:
        """The mean that inference subtracts."""
        return self.array("moving_mean")

    @property
    def moving_variance(self) -> Array | None:
        """The variance that inference divides by the root of."""
        return self.array("moving_variance")

    def array(self, role: str) -> Array | None:
        """The array of a role, bit for bit as stored; None where the layer lacks it."""
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
        """The variables of the layer, those of no role included."""
        return [*self.variables.values(), *self.extra.values(), *self.undecided]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that the layer's variables share: `(channels,)` but for rare layers."""
        for variable in (*self.variables.values(), *self.undecided):
            return variable.shape
        return ()

    @property
    def channels(self) -> int:
        """The number of elements of each of the layer's variables."""
        return int(np.prod(self.shape, dtype=np.int64))

    def scale_and_shift(self, epsilon: float | None = None) -> tuple[Array, Array]:
        """What the layer does to each channel in inference: `y = scale * x + shift`.

        `scale = gamma / sqrt(moving_variance + epsilon)` and
        `shift = beta - moving_mean * scale`, with 1 for a missing gamma, 0 for a missing beta.

        Args:
            epsilon: needed where the file does not tell it; it is never guessed.

        Returns:
            Two arrays of the layer's `shape`, computed in float64 for layers of float64,
            else in float32.

        Raises:
            AmbiguousError: epsilon is not known, or a variable of the layer has no certain role.
            NotFoundError: the file does not hold the moving statistics.
            DamagedError: the layer's variables do not fit together.
        """
        mean, variance = self._statistics()
        epsilon = self._epsilon(epsilon)
        kind = np.result_type(_working_dtype(variance), np.float32)

        def fit(array: Array) -> Array:
            return array.astype(kind).reshape(self.shape)

        scale = 1 / np.sqrt(fit(variance) + kind.type(epsilon))
        if (gamma := self.gamma) is not None:
            scale = scale * fit(gamma)
        shift = np.negative(fit(mean)) * scale
        if (beta := self.beta) is not None:
            shift = shift + fit(beta)
        return scale, shift

    def normalize(
        self, x: ArrayLike, epsilon: float | None = None, axis: int | None = None
    ) -> Array:
        """Inference: `gamma * (x - moving_mean) / sqrt(moving_variance + epsilon) + beta`.

        Args:
            x: an array whose size along the layer's axis is the layer's number of channels.
            epsilon: needed where the file does not tell it; it is never guessed.
            axis: the channels' axis of `x`; the file's own where it tells one, else the one
                that the variables' shape tells, else the last.

        Returns:
            An array of the shape of `x`, in the wider of the dtypes of `x` and of the layer,
            float32 at least.

        Raises:
            AmbiguousError: epsilon is not known, or a variable of the layer has no certain role.
            NotFoundError: the file does not hold the moving statistics.
            DamagedError: the layer's variables do not fit together.
            ValueError: `x` does not fit the layer.
        """
        mean, variance = self._statistics()
        epsilon = self._epsilon(epsilon)
        given = np.asarray(x)
        shape = self._broadcast_shape(given.shape, axis)
        kind = np.result_type(_working_dtype(variance), _working_dtype(given), np.float32)

        def fit(array: Array) -> Array:
            return array.astype(kind).reshape(shape)

        result = (given.astype(kind) - fit(mean)) / np.sqrt(fit(variance) + kind.type(epsilon))
        if (gamma := self.gamma) is not None:
            result = fit(gamma) * result
        if (beta := self.beta) is not None:
            result = result + fit(beta)
        return np.asarray(result)

    def _statistics(self) -> tuple[Array, Array]:
        if self.undecided:
            keys = ", ".join(variable.key for variable in self.undecided)
            raise AmbiguousError(
                self.name, f"the file does not tell which role {keys} has", "load the full model"
            )
        mean, variance = self.moving_mean, self.moving_variance
        if mean is None or variance is None:
            raise NotFoundError(
                self.name,
                "its moving mean and variance are not in the file",
                "use a checkpoint that holds more than the trainable variables",
            )
        # Sizes of 1 apart: some libraries keep (1, 1, 1, channels) beside (channels,).
        shapes = {v.shape for v in self.variables.values()}
        if len({tuple(size for size in shape if size != 1) for shape in shapes}) > 1:
            listed = ", ".join(str(list(shape)) for shape in sorted(shapes))
            raise DamagedError(self.name, f"its variables are of different shapes: {listed}")
        return mean, variance

    def _epsilon(self, given: float | None) -> float:
        if given is not None:
            return given
        if self.epsilon is not None:
            return self.epsilon
        raise AmbiguousError(
            self.name,
            "the file does not tell this layer's epsilon",
            "pass epsilon= (Keras, tf.layers and slim default to 0.001; PyTorch to 1e-5)",
        )

    def _broadcast_shape(self, given: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
        """The shape in which the layer's variables line up with an input of shape `given`."""
        axes = self.axis if axis is None else axis
        if not isinstance(axes, int) and len(self.shape) == len(given):
            shape = list(self.shape)
        else:
            positions = []
            for position in axes if isinstance(axes, tuple) else (-1 if axes is None else axes,):
                if not -len(given) <= position < len(given):
                    raise ValueError(f"axis {position} does not exist in an input of shape {given}")
                positions.append(position % len(given))
            squeezed = [size for size in self.shape if size != 1]
            sizes = [self.channels] if len(positions) == 1 else squeezed
            shape = [1] * len(given)
            for position, size in zip(positions, sizes, strict=False):
                shape[position] = size
        fits = all(size in (1, of) for size, of in zip(shape, given, strict=True))
        if not fits or int(np.prod(shape)) != self.channels:
            raise ValueError(
                f"an input of shape {given} does not have the {self.channels} channels "
                f"of {self.name} on axis {-1 if axes is None else axes}"
            )
        return tuple(shape)


class Model(Sequence[BatchNorm]):
    """The batch-norm layers of one file: a sequence, and a mapping by name.

    Attributes:
        source: where the layers were read from.
        layers: in the order of the network where the file tells it, else by name.
        incomplete: layers that are surely batch norm, but whose moving statistics are not in
            the file; they are not among `layers`.
        notes: what was noticed while reading, one line each.
    """

    def __init__(
        self,
        source: Source,
        layers: Sequence[BatchNorm],
        *,
        incomplete: Sequence[BatchNorm] = (),
        notes: Sequence[str] = (),
        explain: Callable[[], Sequence[Verdict]] = tuple,
    ) -> None:
        self.source = source
        self.layers = tuple(layers)
        self.incomplete = tuple(incomplete)
        self.notes = tuple(notes)
        self._explain = explain
        self._by_name = {layer.name: layer for layer in self.layers}

    def explain(self) -> Sequence[Verdict]:
        """For every variable of the file, why it was or was not taken as batch norm."""
        return self._explain()

    def read(
        self,
        layers: Sequence[BatchNorm] | None = None,
        track: Callable[[Sequence[BatchNorm]], Iterable[BatchNorm]] = iter,
    ) -> None:
        """Read the arrays of many layers now, their bytes fetched together.

        Args:
            layers: which ones; all, and the incomplete ones, if left out.
            track: passes the layers on, such as to show progress.

        Raises:
            DamagedError, NotFoundError: as `Variable.read`.
        """
        wanted = (*self.layers, *self.incomplete) if layers is None else layers
        prefetch(_extents(wanted))
        for layer in track(wanted):
            layer.read()

    def select(self, layers: Sequence[BatchNorm]) -> Model:
        """The same model, narrowed to some of its layers."""
        return Model(
            self.source,
            layers,
            incomplete=self.incomplete,
            notes=self.notes,
            explain=self._explain,
        )

    @property
    def channels(self) -> int:
        """The number of channels of all layers together."""
        return sum(layer.channels for layer in self.layers)

    def keys(self) -> list[str]:
        """The layers' names."""
        return list(self._by_name)

    def values(self) -> list[BatchNorm]:
        """The layers."""
        return list(self.layers)

    def items(self) -> list[tuple[str, BatchNorm]]:
        """The layers with their names."""
        return list(self._by_name.items())

    def get(self, name: str, default: BatchNorm | None = None) -> BatchNorm | None:
        """The layer of that name, or `default`."""
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
        count = len(self.layers)
        layers = "1 batch-norm layer" if count == 1 else f"{count} batch-norm layers"
        return f"<Model {self.source.path!r} ({self.source.format}): {layers}>"

    def _repr_html_(self) -> str:
        """The table that a notebook shows."""
        import html

        def cell(layer: BatchNorm, role: str) -> str:
            array = layer.array(role)
            if array is None:
                return "&ndash;"
            numbers = Summary.of(array)
            return f"{numbers.mean:.4g} &plusmn; {numbers.std:.3g}"

        head = "".join(f"<th>{title}</th>" for title in ("layer", "channels", *ROLES))
        rows = "".join(
            f"<tr><td>{html.escape(printable(layer.name))}</td><td>{layer.channels}</td>"
            + "".join(f"<td>{cell(layer, role)}</td>" for role in ROLES)
            + "</tr>"
            for layer in self.layers
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


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


def printable(text: str) -> str:
    r"""`text` with everything escaped that could act on a terminal, page or reader's eye.

    Control characters, line breaks, bidirectional overrides and lone surrogates become `\\x1b`
    and the like; printable text of any language stays as it is.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def _extents(layers: Sequence[BatchNorm]) -> Iterator[Range]:
    """Where the layers' arrays are; what cannot be found tells so when it is read."""
    for layer in layers:
        for variable in layer.all_variables():
            try:
                yield from variable.extents()
            except BnstatError:
                continue


def _working_dtype(array: Array) -> np.dtype[np.generic]:
    """float64 where the array is float64 (or a wide integer), else float32."""
    wide = array.dtype == np.float64 or (array.dtype.kind in "iu" and array.dtype.itemsize > 2)
    return np.dtype(np.float64 if wide else np.float32)
