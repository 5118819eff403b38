"""Add ops to a model's graph that measure the inputs of its normalizations.

In the new graph, each op input that took a moving statistic takes the batch statistic, or a
statistic that the caller feeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from bnstat.errors import UnsupportedError
from bnstat.estimate.running.flat_graph import Condition, Dependencies, full_name
from bnstat.estimate.running.normalizations import MEAN, VARIANCE, Edge, Normalization

_ENOUGH = 4_096
"""About this number of positions of a batch is measured if every n-th position suffices."""

_FEW = 128
"""All positions are measured if each sample has at most this number of positions."""

_FOR_SHIFT = 64
"""The number of positions whose mean is subtracted before squares are summed."""

_BLOCK = 64
"""The number of rows in a block: rows are summed in the tensor's dtype, blocks in float64."""


class BatchMoments(NamedTuple):
    """The moments of a batch: as tensors, as names of tensors, or as arrays.

    Attributes:
        count: int64, the number of elements per channel.
        mean: [channels], float64.
        variance: [channels], float64, the biased variance.
    """

    count: Any
    mean: Any
    variance: Any


@dataclass(frozen=True)
class MeasuringGraph:
    """A graph that also measures the inputs of its normalizations.

    Attributes:
        graph_def: the graph.
        moments: layer -> for each use of the layer, the names of the tensors with the moments.
        statistics: layer -> role -> name of the placeholder that takes the statistic; empty if each
            layer normalizes with batch statistics.
        phase: the name of an int32 placeholder. Feeding a different number for each batch measures
            different positions.
    """

    graph_def: Any
    moments: Mapping[str, Sequence[BatchMoments]]
    statistics: Mapping[str, Mapping[str, str]]
    phase: str


def add_measuring(
    graph: Any,
    normalizations: Sequence[Normalization],
    dependencies: Dependencies,
    *,
    by_batch: bool,
    sample: bool,
) -> MeasuringGraph:
    """Add ops that measure the inputs of normalizations to a `tf.Graph`; return the graph to run.

    `passes.Runner` documents `by_batch` and `sample`.
    """
    import tensorflow as tf

    moments: dict[str, list[BatchMoments]] = {}
    statistics: dict[str, dict[str, str]] = {}
    edges: dict[tuple[str, int], str] = {}
    with graph.as_default(), tf.name_scope("bnstat"):
        phase = tf.compat.v1.placeholder(tf.int32, [])
        for each in normalizations:
            x, channel_axes, channels = entering(graph, each)
            mask = None if each.mask is None else tensor_of(graph, each.mask)
            measured = _measure(x, channel_axes, channels, phase, sample, mask)
            if by_batch:
                used = {MEAN: measured.mean, VARIANCE: measured.variance}
            else:
                names = statistics.setdefault(each.layer, {})
                used = {
                    edge.role: _placeholder(graph, edge, names, channels) for edge in each.edges
                }
            for edge in each.edges:
                edges[edge.op, edge.position] = _fitted(graph, edge, used[edge.role]).name
            measured = _or_zeros(graph, measured, dependencies.conditions(each.x))
            names_of_moments = BatchMoments(*(tensor.name for tensor in measured))
            moments.setdefault(each.layer, []).append(names_of_moments)
    graph_def = graph.as_graph_def()
    for node in graph_def.node:
        for position, tensor in enumerate(node.input):
            node.input[position] = edges.get((node.name, position), tensor)
    return MeasuringGraph(graph_def, moments, statistics, phase.name)


def tensor_of(graph: Any, name: str) -> Any:
    """Return a tensor of a `tf.Graph`; the name of an op means the op's first output."""
    return graph.get_tensor_by_name(full_name(name))


def entering(graph: Any, normalization: Normalization) -> tuple[Any, Sequence[int], int]:
    """Return the tensor that is normalized, its channel axes, and the number of channels.

    If the rank of the tensor is unknown, the only channel axis is negative (counted from the end).

    Raises:
        UnsupportedError: the graph does not record enough of the tensor's shape.
    """
    x = tensor_of(graph, normalization.x)
    edge = next(edge for edge in normalization.edges if edge.role == MEAN)
    statistic = tensor_of(graph, edge.tensor)
    axis = normalization.axis
    if x.shape.rank is None and statistic.shape.is_fully_defined():
        # The results of loops have no shape, because shape inference does not follow a loop.
        op, sizes = graph.get_operation_by_name(normalization.op), statistic.shape.as_list()
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
    """Return the channel axes of a tensor, given its shape `x` and the shape of a statistic."""
    rank, sizes = x.rank, statistic.as_list() if statistic.rank else None
    if rank is None or sizes is None or None in sizes or len(sizes) > rank:
        raise UnsupportedError(layer, "the graph does not record the shape of its input")
    if len(sizes) == 1 and axis is not None:
        return (axis % rank,)
    first = rank - len(sizes)
    channel_axes = tuple(first + place for place, size in enumerate(sizes) if size != 1)
    return channel_axes or ((axis % rank,) if axis is not None else (rank - 1,))


def _measure(
    x: Any, channel_axes: Sequence[int], channels: int, phase: Any, sample: bool, mask: Any
) -> BatchMoments:
    """Add ops that compute the moments of a tensor, and return the moments as tensors.

    Args:
        x: the tensor.
        channel_axes: the channel axes, as `entering` returns them.
        channels: the number of channels.
        phase: see `MeasuringGraph`.
        sample: True if every n-th position suffices.
        mask: a tensor that is true for the values to measure; ignored unless the last axis of `x`
            is the only channel axis.
    """
    import tensorflow as tf

    if x.shape.rank is None:
        x = tf.reshape(x, tf.concat([[-1], tf.shape(x)[channel_axes[0] :]], 0))
        x = tf.ensure_shape(x, [None, channels, *[None] * (-1 - channel_axes[0])])
        channel_axes = (1,)
    others = [axis for axis in range(x.shape.rank) if axis not in channel_axes]
    if max(others, default=-1) > min(channel_axes):
        x = tf.transpose(x, [*others, *channel_axes])
    elif mask is not None and len(channel_axes) == 1:
        x = tf.boolean_mask(x, tf.broadcast_to(tf.cast(mask, tf.bool), tf.shape(x)[:-1]))
        others = [0]
    if sample and len(others) > 1:
        x = _sampled(x, len(others), channels, phase)
    if x.dtype not in (tf.float32, tf.float64):
        x = tf.cast(x, tf.float32)
    x = tf.reshape(x, [-1, channels])
    shift = tf.reduce_mean(x[:_FOR_SHIFT], 0)
    mean_of = _mean_by_product if sample else _mean_in_blocks
    squares = mean_of(tf.math.squared_difference(x, shift))
    exact_shift = tf.cast(shift, tf.float64)
    # A sample is not copied once more for a mean that need not be exact.
    offset = mean_of(x) - exact_shift if sample else mean_of(x - shift)
    variance = tf.maximum(squares - tf.square(offset), 0)
    return BatchMoments(tf.shape(x, tf.int64)[0], exact_shift + offset, variance)


def _sampled(x: Any, rank: int, channels: int, phase: Any) -> Any:
    """Return every n-th position of a large tensor; return a small tensor unchanged.

    The positions lie along the first `rank` axes, beginning with the batch. Each sample of the
    batch contributes the same number of positions. `phase` shifts the first position.
    """
    import tensorflow as tf

    sizes = x.shape[1:rank]
    if sizes.is_fully_defined() and sizes.num_elements() <= _FEW:
        return x
    samples, positions = tf.shape(x)[0], tf.reduce_prod(tf.shape(x)[1:rank])
    x = tf.reshape(x, [samples, positions, channels])
    step = tf.maximum(tf.minimum(samples * positions // _ENOUGH, positions), 1)
    return tf.gather(x, tf.range(phase % step, positions, step), axis=1)


def _mean_by_product(x: Any) -> Any:
    """Return the mean over the rows of a matrix, from one fast product in the matrix's dtype."""
    import tensorflow as tf

    rows = tf.shape(x)[0]
    total = tf.matmul(tf.ones([1, rows], x.dtype), x)[0]
    return tf.cast(total, tf.float64) / tf.cast(rows, tf.float64)


def _mean_in_blocks(x: Any) -> Any:
    """Return the mean over the rows of a matrix; the sums of blocks are added in float64."""
    import tensorflow as tf

    rows = tf.shape(x)[0]
    count = rows // _BLOCK
    blocks = tf.reshape(x[: count * _BLOCK], [count, _BLOCK, x.shape[1]])
    sums = tf.matmul(tf.ones([count, 1, _BLOCK], x.dtype), blocks)[:, 0]
    total = sum(tf.reduce_sum(tf.cast(part, tf.float64), 0) for part in (sums, x[count * _BLOCK :]))
    return total / tf.cast(rows, tf.float64)


def _placeholder(graph: Any, edge: Edge, names: dict[str, str], channels: int) -> Any:
    """Return the placeholder that takes the statistic of an edge, and add it if it is missing.

    `names` maps role -> name of the placeholder, for the layer of the edge.
    """
    import tensorflow as tf

    if edge.role not in names:
        is_double = tensor_of(graph, edge.tensor).dtype.base_dtype == tf.float64
        dtype = tf.float64 if is_double else tf.float32
        names[edge.role] = tf.compat.v1.placeholder(dtype, [channels]).name
    return tensor_of(graph, names[edge.role])


def _fitted(graph: Any, edge: Edge, statistic: Any) -> Any:
    """Return a statistic in the shape and dtype of the tensor that it replaces at an edge."""
    import tensorflow as tf

    old = tensor_of(graph, edge.tensor)
    shape = old.shape.as_list() if old.shape.is_fully_defined() else [-1]
    return tf.cast(tf.reshape(statistic, shape), old.dtype.base_dtype)


def _or_zeros(graph: Any, moments: BatchMoments, conditions: Sequence[Condition]) -> BatchMoments:
    """Return tensors that are the moments in runs that meet the conditions, otherwise zeros."""
    import tensorflow as tf

    zeros = [tf.zeros(each.shape, each.dtype) for each in moments]
    absent = []
    for condition in conditions:
        predicate = tensor_of(graph, condition.predicate)
        switched = [tf.raw_ops.Switch(data=zero, pred=predicate) for zero in zeros]
        absent.append([pair[not condition.value] for pair in switched])
        zeros = [pair[condition.value] for pair in switched]
    for alternatives in reversed(absent):
        pairs = zip(moments, alternatives, strict=True)
        moments = BatchMoments(*(tf.raw_ops.Merge(inputs=[*pair])[0] for pair in pairs))
    return moments
