"""A graph that also measures the inputs of its normalizations.

The ops that measure are built in a separate graph, in which placeholders represent tensors of the
model. They are then spliced into the model's graph. Each input that takes a moving statistic is
connected to the batch statistic or to a fed statistic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from bnstat.errors import UnsupportedError
from bnstat.estimate.running.flat_graph import Condition, Dependencies, full_name
from bnstat.estimate.running.normalizations import MEAN, Edge, Normalization

_ENOUGH = 4_096
"""The number of positions of a batch that are measured if a sample suffices."""

_FEW = 128
"""If a sample of the data has at most this many positions, all are measured."""

_FOR_SHIFT = 64
"""The number of positions whose mean is subtracted before squares are summed."""

_BLOCK = 64
"""The number of rows that are summed in the tensor's dtype, before float64 is used."""

_SPELLED_OUT = frozenset({"FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"})


class BatchMoments(NamedTuple):
    """The moments of a batch, as tensors or as names of tensors.

    Attributes:
        count: int64, the number of elements of a channel.
        mean: [channels].
        variance: [channels], the biased variance.
    """

    count: Any
    mean: Any
    variance: Any


@dataclass(frozen=True)
class MeasuringGraph:
    """A graph that measures.

    Attributes:
        graph_def: the graph.
        results: for each normalization, the names of the moments' tensors.
        statistics: layer -> role -> the placeholder of the statistics that the layer uses; empty if
            each layer normalizes with batch statistics.
        phase: the placeholder of an int32 that differs between batches.
    """

    graph_def: Any
    results: Sequence[BatchMoments]
    statistics: Mapping[str, Mapping[str, str]]
    phase: str


def add_measuring(
    graph_def: Any,
    model: Any,
    normalizations: Sequence[Normalization],
    dependencies: Dependencies,
    *,
    by_batch: bool,
    sample: bool,
) -> MeasuringGraph:
    """Return a graph with the ops that measure some normalizations.

    Args:
        graph_def: a flat `GraphDef`.
        model: the same graph as a `tf.Graph`.
        normalizations: the normalizations to measure.
        dependencies: the dependencies in the graph.
        by_batch: True if each layer normalizes with batch statistics instead of fed statistics.
        sample: True if a sample of the positions suffices.

    Raises:
        UnsupportedError: the shape of a tensor is unknown.
    """
    builder = _Builder(_free_prefix(graph_def), model, by_batch, sample)
    for number, normalization in enumerate(normalizations):
        builder.add(number, normalization, dependencies.conditions(normalization.x))
    return builder.spliced(graph_def)


def unmeasurable(model: Any, normalizations: Sequence[Normalization]) -> dict[str, str]:
    """Return layer -> the reason, for layers whose tensors have unknown shapes."""
    reasons = {}
    for normalization in normalizations:
        try:
            _entering(model, normalization)
        except UnsupportedError as error:
            reasons[normalization.layer] = error.what
    return reasons


def _entering(model: Any, normalization: Normalization) -> tuple[Any, Sequence[int], int]:
    """Return a normalization's input, the channel axes, and the number of channels."""
    x = model.get_tensor_by_name(full_name(normalization.x))
    edge = next(edge for edge in normalization.edges if edge.role == MEAN)
    statistic = model.get_tensor_by_name(full_name(edge.tensor))
    axis = normalization.axis
    if x.shape.rank is None and statistic.shape.is_fully_defined():
        # The results of loops have no shape, because shape inference does not follow a loop.
        op, sizes = model.get_operation_by_name(normalization.op), statistic.shape.as_list()
        wide = [place - len(sizes) for place, size in enumerate(sizes) if size != 1]
        if "data_format" in op.node_def.attr and axis is not None:
            shape = [None] * len(op.get_attr("data_format"))
            shape[axis] = prod(sizes)
            x.set_shape(shape)
        elif len(wide) == 1 and (len(sizes) > 1 or axis in (None, -1)):
            return x, wide, prod(sizes)
    channel_axes = _channel_axes(x.shape, statistic.shape, axis, normalization.layer)
    if len(channel_axes) == 1 and x.shape[channel_axes[0]] is None:
        shape = [None] * x.shape.rank
        shape[channel_axes[0]] = statistic.shape.num_elements()
        x.set_shape(shape)
    if any(x.shape[axis] is None for axis in channel_axes):
        what = "the graph does not record its number of channels"
        raise UnsupportedError(normalization.layer, what)
    return x, channel_axes, prod(x.shape[axis] for axis in channel_axes)


def _channel_axes(x: Any, statistic: Any, axis: int | None, layer: str) -> tuple[int, ...]:
    """Return the axes of a tensor along which the statistics lie, from the shapes of both."""
    rank, sizes = x.rank, statistic.as_list() if statistic.rank else None
    if rank is None or sizes is None or None in sizes or len(sizes) > rank:
        raise UnsupportedError(layer, "the graph does not record the shape of what enters")
    if len(sizes) == 1 and axis is not None:
        return (axis % rank,)
    first = rank - len(sizes)
    channel_axes = tuple(first + place for place, size in enumerate(sizes) if size != 1)
    return channel_axes or ((axis % rank,) if axis is not None else (rank - 1,))


def _measure(
    x: Any, channel_axes: Sequence[int], channels: int, phase: Any, sample: bool, mask: Any
) -> BatchMoments:
    """Add the ops that measure a tensor.

    If the rank is unknown, there is one channel axis, counted from the end. `phase` selects the
    positions of a sample. A mask is applied if the channels are the last axis.
    """
    import tensorflow as tf

    rank = x.shape.rank
    if rank is None:
        rank = 1 - channel_axes[0]
        x = tf.reshape(x, tf.concat([[-1], tf.shape(x)[channel_axes[0] :]], 0))
        x = tf.ensure_shape(x, [None, channels, *[None] * (rank - 2)])
        channel_axes = (1,)
    is_last = tuple(channel_axes) == (rank - 1,)
    if is_last and mask is not None:
        counts = tf.broadcast_to(tf.cast(mask, tf.bool), tf.shape(x)[:-1])
        x, channel_axes, rank = tf.boolean_mask(x, counts), (1,), 2
    if is_last and rank > 2:
        sizes = x.shape[1:-1]
        positions = -1 if None in sizes else prod(sizes)
        x = tf.reshape(x, [tf.shape(x)[0], positions, channels])
        channel_axes, rank = (2,), 3
    if sample:
        x = _sampled(x, channel_axes, phase)
    if x.dtype not in (tf.float32, tf.float64):
        x = tf.cast(x, tf.float32)
    axes = [axis for axis in range(rank) if axis not in channel_axes]
    count = tf.reduce_prod(tf.gather(tf.shape(x, tf.int64), axes))
    if is_last:
        x, axes = tf.reshape(x, [-1, channels]), [0]
    shift = tf.reduce_mean(x[:_FOR_SHIFT] if 0 in axes else x, axes, keepdims=True)
    if is_last and sample:
        offset = _mean_by_product(x) - shift
        squares = _mean_by_product(tf.math.squared_difference(x, shift))
    elif is_last:
        offset = _mean_in_blocks(x - shift)
        squares = _mean_in_blocks(tf.math.squared_difference(x, shift))
        shift = tf.cast(shift, offset.dtype)
    else:
        deviation = x - shift
        offset = tf.reduce_mean(deviation, axes, keepdims=True)
        squares = tf.reduce_mean(tf.square(deviation), axes, keepdims=True)
    variance = tf.maximum(squares - tf.square(offset), 0)
    return BatchMoments(count, tf.reshape(shift + offset, [-1]), tf.reshape(variance, [-1]))


def _mean_by_product(x: Any) -> Any:
    """Return the mean over the rows of a matrix: fast, and exact enough for a sample."""
    import tensorflow as tf

    rows = tf.shape(x)[0]
    return tf.matmul(tf.ones([1, rows], x.dtype), x) / tf.cast(rows, x.dtype)


def _mean_in_blocks(x: Any) -> Any:
    """Return the mean over the rows of a matrix, in float64, from products of a few rows each."""
    import tensorflow as tf

    rows = tf.shape(x)[0]
    count = rows // _BLOCK
    blocks = tf.reshape(x[: count * _BLOCK], [count, _BLOCK, x.shape[1]])
    sums = tf.matmul(tf.ones([count, 1, _BLOCK], x.dtype), blocks)[:, 0]
    total = sum(
        tf.reduce_sum(tf.cast(part, tf.float64), 0, keepdims=True)
        for part in (sums, x[count * _BLOCK :])
    )
    return total / tf.cast(rows, tf.float64)


def _sampled(x: Any, channel_axes: Sequence[int], phase: Any) -> Any:
    """Subsample the first spatial axis of a large tensor; `phase` shifts the first position."""
    import tensorflow as tf

    spatial = [axis for axis in range(1, x.shape.rank) if axis not in channel_axes]
    static = [x.shape[axis] for axis in spatial]
    if 0 in channel_axes or not spatial or (None not in static and prod(static) <= _FEW):
        return x
    sizes = tf.shape(x)
    axis = spatial[0]
    step = tf.reduce_prod(tf.gather(sizes, [0, *spatial])) // _ENOUGH
    step = tf.clip_by_value(step, 1, sizes[axis])
    return tf.gather(x, tf.range(phase % step, sizes[axis], step), axis=axis)


class _Builder:
    """Builds the ops that measure."""

    def __init__(self, prefix: str, model: Any, by_batch: bool, sample: bool) -> None:
        import tensorflow as tf

        self._tf = tf
        self._prefix = prefix
        self._model = model
        self._by_batch = by_batch
        self._sample = sample
        self._graph = tf.Graph()
        self._aliases: dict[str, str] = {}
        self._edges: dict[tuple[str, int], str] = {}
        self._replaced: dict[str, str] = {}
        self._results: list[BatchMoments] = []
        self._statistics: dict[str, dict[str, str]] = {}
        with self._graph.as_default():
            self._phase = tf.compat.v1.placeholder(tf.int32, [], f"{prefix}/phase")

    def add(
        self, number: int, normalization: Normalization, conditions: Sequence[Condition]
    ) -> None:
        """Add the ops that measure a normalization."""
        x, channel_axes, channels = _entering(self._model, normalization)
        with self._graph.as_default(), self._tf.name_scope(f"{self._prefix}/{number}/"):
            entering = self._alias(x, normalization.x)
            mask = normalization.mask and self._alias_of(normalization.mask)
            moments = _measure(entering, channel_axes, channels, self._phase, self._sample, mask)
            for place, edge in enumerate(normalization.edges):
                self._rewire(place, edge, self._statistic(normalization, edge, moments, channels))
            self._spell_out(normalization, entering, channel_axes, moments, channels)
            moments = self._or_zeros(moments, conditions, channels)
            self._results.append(BatchMoments(*(tensor.name for tensor in moments)))

    def spliced(self, graph_def: Any) -> MeasuringGraph:
        """Return the model's graph with all ops that were added."""
        merged = type(graph_def)()
        merged.CopyFrom(graph_def)
        for node in merged.node:
            for position, tensor in enumerate(node.input):
                new = self._edges.get((node.name, position), tensor)
                node.input[position] = self._replaced.get(new, new)
        for node in self._graph.as_graph_def().node:
            added = merged.node.add()
            added.CopyFrom(node)
            if node.name in self._aliases:
                tensor = self._aliases[node.name]
                added.Clear()
                added.name, added.op = node.name, "Identity"
                added.input.append(self._replaced.get(tensor, tensor))
                added.attr["T"].type = node.attr["dtype"].type
        return MeasuringGraph(merged, self._results, self._statistics, self._phase.name)

    def _alias_of(self, name: str) -> Any:
        return self._alias(self._model.get_tensor_by_name(full_name(name)), name)

    def _alias(self, tensor: Any, name: str) -> Any:
        """Return a placeholder that stands for a tensor of the model."""
        placeholder = self._tf.compat.v1.placeholder(tensor.dtype.base_dtype, tensor.shape)
        self._aliases[placeholder.op.name] = name
        return placeholder

    def _statistic(
        self, normalization: Normalization, edge: Edge, moments: BatchMoments, channels: int
    ) -> Any:
        """Return the new statistic for an edge, [channels]."""
        if self._by_batch:
            return moments.mean if edge.role == MEAN else moments.variance
        tf = self._tf
        placeholders = self._statistics.setdefault(normalization.layer, {})
        if edge.role not in placeholders:
            dtype = self._model.get_tensor_by_name(full_name(edge.tensor)).dtype.base_dtype
            dtype = tf.float64 if dtype == tf.float64 else tf.float32
            placeholders[edge.role] = tf.compat.v1.placeholder(dtype, [channels]).name
        return self._graph.get_tensor_by_name(placeholders[edge.role])

    def _rewire(self, place: int, edge: Edge, statistic: Any) -> None:
        tf = self._tf
        old = self._model.get_tensor_by_name(full_name(edge.tensor))
        shape = old.shape.as_list() if old.shape.is_fully_defined() else [-1]
        fitted = tf.cast(tf.reshape(statistic, shape), old.dtype.base_dtype)
        self._edges[edge.op, edge.position] = tf.identity(fitted, f"edge_{place}").name

    def _spell_out(
        self,
        normalization: Normalization,
        x: Any,
        channel_axes: Sequence[int],
        moments: BatchMoments,
        channels: int,
    ) -> None:
        """Replace a fused op by a product and a sum, which can reuse the memory of `x`."""
        tf = self._tf
        op = self._model.get_operation_by_name(normalization.op)
        if (
            op.type not in _SPELLED_OUT
            or channel_axes[-1] != x.shape.rank - 1
            or x.dtype != tf.float32
        ):
            return
        gamma, beta = (self._alias(tensor, tensor.name) for tensor in op.inputs[1:3])
        mean, variance = (
            self._statistic(normalization, edge, moments, channels)
            for edge in sorted(normalization.edges, key=lambda edge: edge.role)
        )
        scale = gamma * tf.math.rsqrt(variance + op.get_attr("epsilon"))
        result = (x * scale + (beta - mean * scale)).name
        self._replaced.update({op.name: result, f"{op.name}:0": result})

    def _or_zeros(
        self, moments: BatchMoments, conditions: Sequence[Condition], channels: int
    ) -> BatchMoments:
        """Return the moments, or zeros if the conditions of a tensor are not met."""
        tf = self._tf
        zeros = [
            tf.zeros([] if each.shape.rank == 0 else [channels], each.dtype) for each in moments
        ]
        absent = []
        for condition in conditions:
            predicate = self._alias_of(condition.predicate)
            switched = [tf.raw_ops.Switch(data=zero, pred=predicate) for zero in zeros]
            absent.append([pair[not condition.value] for pair in switched])
            zeros = [pair[condition.value] for pair in switched]
        for alternatives in reversed(absent):
            pairs = zip(moments, alternatives, strict=True)
            moments = BatchMoments(*(tf.raw_ops.Merge(inputs=[*pair])[0] for pair in pairs))
        return moments


def _free_prefix(graph_def: Any) -> str:
    """Return the name of a scope that the graph does not use."""
    prefix = "bnstat"
    while any(node.name.startswith(prefix) for node in graph_def.node):
        prefix += "_"
    return prefix
