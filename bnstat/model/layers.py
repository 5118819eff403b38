"""Batch-normalization layers: their variables, and their computation in inference."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from bnstat.display import Displayed, notebook
from bnstat.errors import AmbiguousError, DamagedError, NotFoundError
from bnstat.model.variables import Array, Variable, squeezed

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
        epsilon, momentum, axis, trainable: None if the file does not store them. The axis is an
            int, or a tuple of ints for several axes.
        extra: label -> further variable of the layer, for example in batch renormalization.
        undecided: variables of the layer whose role the file does not record.
        notes: remarks on the layer's numbers.
        uses_batch_statistics: True if a graph shows that the layer normalizes with batch statistics
            only, and updates no moving statistics.
        inputs: the tensors that the layer normalizes, as (graph, tensor); empty if unknown.
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
        """The scale gamma, or None (`scale=False`)."""
        return self.array("gamma")

    @property
    def beta(self) -> Array | None:
        """The offset beta, or None (`center=False`)."""
        return self.array("beta")

    @property
    def moving_mean(self) -> Array | None:
        """The mean that inference subtracts."""
        return self.array("moving_mean")

    @property
    def moving_variance(self) -> Array | None:
        """The variance; inference divides by sqrt(variance + epsilon)."""
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
            epsilon: required if the file does not store epsilon, which is never guessed.

        Returns:
            Two arrays of the layer's `shape`, in float64 for float64 layers, else in float32.

        Raises:
            AmbiguousError: epsilon is unknown, or the role of a variable is undecided.
            NotFoundError: the file does not contain the moving statistics.
            DamagedError: the shapes of the layer's variables are inconsistent.
        """
        mean, variance = self._statistics()
        epsilon = self._epsilon(epsilon)
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
        """Compute inference: `gamma * (x - moving_mean) / sqrt(moving_variance + epsilon) + beta`.

        Args:
            x: an array whose size along the layer's axis is the layer's number of channels.
            epsilon: required if the file does not store epsilon, which is never guessed.
            axis: the channel axis of `x`, or several axes. Default: the stored axis, else the axis
                that follows from the variables' shape, else the last axis.

        Returns:
            An array of the shape of `x`, in the wider dtype of `x` and the layer, at least float32.

        Raises:
            AmbiguousError: epsilon is unknown, or the role of a variable is undecided.
            NotFoundError: the file does not contain the moving statistics.
            DamagedError: the shapes of the layer's variables are inconsistent.
            ValueError: `x` does not fit the layer.
        """
        mean, variance = self._statistics()
        epsilon = self._epsilon(epsilon)
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

    def _statistics(self) -> tuple[Array, Array]:
        if self.undecided:
            keys = ", ".join(variable.key for variable in self.undecided)
            raise AmbiguousError(
                self.name,
                f"the file does not record the role of {keys}",
                "load the full model, or pass its architecture as config=",
            )
        mean, variance = self.moving_mean, self.moving_variance
        if mean is None or variance is None:
            raise NotFoundError(
                self.name,
                "its moving mean and variance are not in the file",
                "use a checkpoint that contains more than the trainable variables",
            )
        shapes = {variable.shape for variable in self.variables.values()}
        if len(set(map(squeezed, shapes))) > 1:
            listed = ", ".join(str(list(shape)) for shape in sorted(shapes))
            raise DamagedError(self.name, f"its variables have different shapes: {listed}")
        return mean, variance

    def _epsilon(self, override: float | None) -> float:
        epsilon = self.epsilon if override is None else override
        if epsilon is None:
            raise AmbiguousError(
                self.name,
                "the file does not store this layer's epsilon",
                "pass epsilon= (Keras, tf.layers and slim default to 0.001; PyTorch to 1e-5)",
            )
        return epsilon

    def _broadcast_shape(self, input_shape: tuple[int, ...], axis: Axis | None) -> tuple[int, ...]:
        """Return the shape for the layer's variables that broadcasts to an input shape."""
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
    """Return float64 for float64 and wide integers, else float32."""
    wide = array.dtype == np.float64 or (array.dtype.kind in "iu" and array.dtype.itemsize > 2)
    return np.dtype(np.float64 if wide else np.float32)
