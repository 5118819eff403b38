"""The ops that measure what enters a normalization."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

from bnstat.errors import UnsupportedError

ENOUGH = 4_096
"""Positions of a batch that are looked at, where a tensor has more and a sample will do."""

_FEW = 128
"""Positions of a sample that are not worth choosing from."""

_FOR_SHIFT = 64
"""Positions whose mean is subtracted before squares are summed."""

_BLOCK = 64
"""Rows that are summed before float64 takes over."""


class Measured(NamedTuple):
    """The moments of a batch, as tensors.

    Attributes:
        count: int64, the number of elements of a channel.
        mean: [channels].
        variance: [channels], the biased one.
    """

    count: Any
    mean: Any
    variance: Any


def kept_axes(x: Any, statistic: Any, axis: int | None, where: str) -> tuple[int, ...]:
    """The axes of a tensor along which a normalization's statistics lie.

    Args:
        x: a tensor of known rank.
        statistic: the tensor of the mean that is combined with it.
        axis: the channels' axis, where the graph tells it.
        where: for messages.

    Raises:
        UnsupportedError: the shapes do not tell.
    """
    rank, sizes = x.shape.rank, statistic.shape.as_list() if statistic.shape.rank else None
    if rank is None or sizes is None or None in sizes or len(sizes) > rank:
        raise UnsupportedError(where, "the graph does not tell the shape of what enters")
    if len(sizes) == 1 and axis is not None:
        return (axis % rank,)
    first = rank - len(sizes)
    kept = tuple(first + place for place, size in enumerate(sizes) if size != 1)
    return kept or ((axis % rank,) if axis is not None else (rank - 1,))


def measured(
    x: Any, kept: Sequence[int], channels: int, phase: Any, sample: bool, mask: Any = None
) -> Measured:
    """Add the ops that measure a tensor.

    Args:
        x: the tensor.
        kept: the axes of the channels; one, counted from the end, where the rank is not known.
        channels: how many there are.
        phase: an int32 that is another one in each batch, for which positions are sampled.
        sample: whether to look only at `ENOUGH` positions of a batch, where it has more.
        mask: of one dimension less, tells which positions count, where the channels come last.
    """
    import tensorflow as tf

    rank = x.shape.rank
    if rank is None:
        rank = 1 - kept[0]
        x = tf.reshape(x, tf.concat([[-1], tf.shape(x)[kept[0] :]], 0))
        x = tf.ensure_shape(x, [None, channels, *[None] * (rank - 2)])
        kept = (1,)
    last = tuple(kept) == (rank - 1,)
    if last and mask is not None:
        counts = tf.broadcast_to(tf.cast(mask, tf.bool), tf.shape(x)[:-1])
        x, kept, rank = tf.boolean_mask(x, counts), (1,), 2
    if last and rank > 2:
        x = tf.reshape(x, [tf.shape(x)[0], prod(_known(x.shape[1:-1])), channels])
        kept, rank = (2,), 3
    if sample:
        x = _sampled(x, kept, phase)
    if x.dtype not in (tf.float32, tf.float64):
        x = tf.cast(x, tf.float32)
    axes = [axis for axis in range(rank) if axis not in kept]
    count = tf.reduce_prod(tf.gather(tf.shape(x, tf.int64), axes))
    if last:
        x, axes = tf.reshape(x, [-1, channels]), [0]
    shift = tf.reduce_mean(x[:_FOR_SHIFT] if 0 in axes else x, axes, keepdims=True)
    if last and sample:
        offset = _by_product(x) - shift
        squares = _by_product(tf.math.squared_difference(x, shift))
    elif last:
        offset = _in_blocks(x - shift)
        squares = _in_blocks(tf.math.squared_difference(x, shift))
        shift = tf.cast(shift, offset.dtype)
    else:
        deviation = x - shift
        offset = tf.reduce_mean(deviation, axes, keepdims=True)
        squares = tf.reduce_mean(tf.square(deviation), axes, keepdims=True)
    variance = tf.maximum(squares - tf.square(offset), 0)
    return Measured(count, tf.reshape(shift + offset, [-1]), tf.reshape(variance, [-1]))


def pooled(one: Measured, other: Measured) -> Measured:
    """Add the ops that merge moments, by the formula of `Moments`.

    Args:
        one: moments; float64, but for the count.
        other: more of them.
    """
    import tensorflow as tf

    count = one.count + other.count
    weight = tf.cast(other.count, tf.float64) / tf.cast(tf.maximum(count, 1), tf.float64)
    difference = other.mean - one.mean
    mean = one.mean + difference * weight
    within = one.variance * (1 - weight) + other.variance * weight
    variance = within + tf.square(difference) * weight * (1 - weight)
    there = other.count > 0
    return Measured(count, tf.where(there, mean, one.mean), tf.where(there, variance, one.variance))


def _known(sizes: Sequence[int | None]) -> Sequence[int]:
    """Sizes whose product TensorFlow finds out (-1) where one of them is not known."""
    return [-1] if None in sizes else [size or 0 for size in sizes]


def _by_product(x: Any) -> Any:
    """The mean over the rows of a matrix: fast, and exact enough for a sample."""
    import tensorflow as tf

    rows = tf.shape(x)[0]
    return tf.matmul(tf.ones([1, rows], x.dtype), x) / tf.cast(rows, x.dtype)


def _in_blocks(x: Any) -> Any:
    """The mean over the rows of a matrix, in float64: the sum of products of a few rows each."""
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


def _sampled(x: Any, kept: Sequence[int], phase: Any) -> Any:
    """Every so manieth position of a tensor along an axis; others in each batch."""
    import tensorflow as tf

    spatial = [axis for axis in range(1, x.shape.rank) if axis not in kept]
    static = [x.shape[axis] for axis in spatial]
    if 0 in kept or not spatial or (None not in static and prod(static) <= _FEW):
        return x
    sizes = tf.shape(x)
    axis = spatial[0]
    step = tf.reduce_prod(tf.gather(sizes, [0, *spatial])) // ENOUGH
    step = tf.clip_by_value(step, 1, sizes[axis])
    return tf.gather(x, tf.range(phase % step, sizes[axis], step), axis=axis)
