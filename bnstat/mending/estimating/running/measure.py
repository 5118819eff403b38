"""The ops that measure what enters a normalization."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

from bnstat.errors import UnsupportedError

ENOUGH = 16_384
"""Positions of a batch that are looked at, where a tensor has more and a sample will do."""

_FOR_SHIFT = 64
"""Positions whose mean is subtracted before squares are summed."""


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


def measured(x: Any, kept: Sequence[int], phase: Any, sample: bool) -> Measured:
    """Add the ops that measure a tensor.

    Args:
        x: the tensor.
        kept: the axes of the channels.
        phase: an int32 that is another one in each batch, for which positions are sampled.
        sample: whether to look only at `ENOUGH` positions of a batch, where it has more.
    """
    import tensorflow as tf

    if sample:
        x = _sampled(x, kept, phase)
    if x.dtype not in (tf.float32, tf.float64):
        x = tf.cast(x, tf.float32)
    rank = x.shape.rank
    axes = [axis for axis in range(rank) if axis not in kept]
    channels = prod(x.shape[axis] or 1 for axis in kept)
    sizes = tf.shape(x, tf.int64)
    count = tf.reduce_prod(tf.gather(sizes, axes)) if axes else tf.constant(1, tf.int64)
    if tuple(kept) == (rank - 1,):
        x = tf.reshape(x, [-1, channels])
        axes = [0]
    shift = tf.stop_gradient(_rough_mean(x, axes))
    deviation = x - shift
    offset = tf.reduce_mean(deviation, axes, keepdims=True)
    squares = tf.reduce_mean(tf.square(deviation), axes, keepdims=True)
    variance = tf.maximum(squares - tf.square(offset), 0)
    return Measured(count, tf.reshape(shift + offset, [-1]), tf.reshape(variance, [-1]))


def _rough_mean(x: Any, axes: Sequence[int]) -> Any:
    """The mean of a few positions, near enough to keep squares from cancelling out."""
    import tensorflow as tf

    first = x[:_FOR_SHIFT] if axes[:1] == [0] else x
    return tf.reduce_mean(first, axes, keepdims=True)


def _sampled(x: Any, kept: Sequence[int], phase: Any) -> Any:
    """Every so manieth row of a tensor; the rows of another place in each batch."""
    import tensorflow as tf

    rank = x.shape.rank
    spatial = [axis for axis in range(1, rank) if axis not in kept]
    if 0 in kept or not spatial:
        return x
    sizes = tf.shape(x)
    positions = tf.reduce_prod(tf.gather(sizes, [0, *spatial]))
    for axis in spatial[:2]:
        step = tf.clip_by_value(positions // ENOUGH, 1, sizes[axis])
        begin = tf.scatter_nd([[axis]], [tf.math.floormod(phase, step)], [rank])
        strides = tf.tensor_scatter_nd_update(tf.ones([rank], tf.int32), [[axis]], [step])
        static = [size if place != axis else None for place, size in enumerate(x.shape)]
        x = tf.ensure_shape(tf.strided_slice(x, begin, sizes, strides), static)
        sizes = tf.shape(x)
        positions = tf.reduce_prod(tf.gather(sizes, [0, *spatial]))
    return x
