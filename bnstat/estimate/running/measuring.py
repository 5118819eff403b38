"""The ops that measure what enters a normalization.

A graph that also measures what enters its normalizations.

The ops that measure are built in a graph of their own, beside placeholders for the tensors of the
model's, and then spliced in. Each input that takes a moving statistic gets another one: that of
the batch, or one that is fed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from bnstat.errors import UnsupportedError
from bnstat.estimate.running.flat_graph import Condition, Loop, Order
from bnstat.estimate.running.normalizations import MEAN, Edge, Site

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


_SPELLED_OUT = frozenset({"FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"})


@dataclass(frozen=True)
class Measuring:
    """A graph that measures.

    Attributes:
        graph_def: the graph.
        results: for each site, the names of the tensors count, mean, variance.
        given: layer -> role -> the placeholder of the statistics that it is to use; empty where
            each layer normalizes by its batch.
        phase: the placeholder of a number that is to be another one in each batch.
    """

    graph_def: Any
    results: Sequence[Measured]
    given: Mapping[str, Mapping[str, str]]
    phase: str


def measuring(
    graph_def: Any,
    model: Any,
    sites: Sequence[Site],
    order: Order,
    *,
    by_batch: bool,
    sample: bool,
) -> Measuring:
    """Add the measuring of these sites to a flat graph.

    Args:
        graph_def: a flat `GraphDef`, which is left as it is.
        model: the same as a `tf.Graph`.
        sites: the normalizations.
        order: of the same graph.
        by_batch: whether each layer normalizes by its batch, instead of by what is fed.
        sample: whether a sample of the positions will do.

    Raises:
        UnsupportedError: a tensor's shape is not known.
    """
    builder = _Builder(_free_prefix(graph_def), model, by_batch, sample)
    for number, site in enumerate(sites):
        builder.add(number, site, order.conditions(site.x, site.op))
    return builder.spliced(graph_def)


def unmeasurable(model: Any, sites: Sequence[Site]) -> dict[str, str]:
    """Layer -> why it cannot be measured: the graph does not tell enough of its tensors' shapes."""
    found = {}
    for site in sites:
        try:
            _entering(model, site)
        except UnsupportedError as error:
            found[site.layer] = error.what
    return found


def _entering(model: Any, site: Site) -> tuple[Any, Sequence[int], int]:
    """What enters a normalization, the axes of its channels, and how many there are."""
    x = model.get_tensor_by_name(_full(site.x))
    edge = next(edge for edge in site.edges if edge.role == MEAN)
    statistic = model.get_tensor_by_name(_full(edge.tensor))
    if x.shape.rank is None and statistic.shape.is_fully_defined():
        # TensorFlow does not look at what loops hand back, and loses shapes there.
        op, sizes = model.get_operation_by_name(site.op), statistic.shape.as_list()
        wide = [place - len(sizes) for place, size in enumerate(sizes) if size != 1]
        if "data_format" in op.node_def.attr and site.axis is not None:
            known = [None] * len(op.get_attr("data_format"))
            known[site.axis] = prod(sizes)
            x.set_shape(known)
        elif len(wide) == 1 and (len(sizes) > 1 or site.axis in (None, -1)):
            return x, wide, prod(sizes)
    kept = kept_axes(x, statistic, site.axis, site.layer)
    if len(kept) == 1 and x.shape[kept[0]] is None:
        known = [None] * x.shape.rank
        known[kept[0]] = statistic.shape.num_elements()
        x.set_shape(known)
    if any(x.shape[axis] is None for axis in kept):
        raise UnsupportedError(site.layer, "the graph does not tell its number of channels")
    return x, kept, prod(x.shape[axis] for axis in kept)


class _Builder:
    """Builds the ops that measure."""

    def __init__(self, prefix: str, model: Any, by_batch: bool, sample: bool) -> None:
        import tensorflow as tf

        self._prefix = prefix
        self._model = model
        self._by_batch = by_batch
        self._sample = sample
        self._graph = tf.Graph()
        self._aliases: dict[str, str] = {}
        self._edges: dict[tuple[str, int], str] = {}
        self._replaced: dict[str, str] = {}
        self._back: dict[str, str] = {}
        self._results: list[Measured] = []
        self._given: dict[str, dict[str, str]] = {}
        with self._graph.as_default():
            self._phase = tf.compat.v1.placeholder(tf.int32, [], f"{prefix}/phase")

    def add(self, number: int, site: Site, conditions: Sequence[Condition | Loop]) -> None:
        """Add what measures a site."""
        tf = _tensorflow()
        x, kept, channels = _entering(self._model, site)
        loops = [each for each in conditions if isinstance(each, Loop)]
        with self._graph.as_default(), tf.name_scope(f"{self._prefix}/{number}/"):
            entering = self._alias(x, site.x)
            # What depends on nothing, as a constant, would not belong to the loop.
            with tf.control_dependencies([entering] if loops else []):
                mask = site.mask and self._alias(
                    self._model.get_tensor_by_name(site.mask), site.mask
                )
                found = measured(
                    entering, kept, channels, _within(self._phase, loops), self._sample, mask
                )
                for place, edge in enumerate(site.edges):
                    source = self._source(site, edge, found, channels, loops)
                    self._rewire(place, edge, source)
                self._spell_out(site, entering, kept, found, channels, loops)
            self._results.append(self._whenever(found, conditions, channels))

    def spliced(self, graph_def: Any) -> Measuring:
        """The model's graph with all that was added."""
        merged = type(graph_def)()
        merged.CopyFrom(graph_def)
        for node in merged.node:
            for position in range(len(node.input)):
                tensor = node.input[position]
                tensor = self._edges.get((node.name, position), tensor)
                node.input[position] = self._replaced.get(tensor, tensor)
        for node in self._graph.as_graph_def().node:
            added = merged.node.add()
            added.CopyFrom(node)
            if node.name in self._back:
                added.input[1] = self._back[node.name]
            if node.name in self._aliases:
                dtype = node.attr["dtype"].type
                added.Clear()
                added.name, added.op = node.name, "Identity"
                tensor = self._aliases[node.name]
                added.input.append(self._replaced.get(tensor, tensor))
                added.attr["T"].type = dtype
        return Measuring(merged, self._results, self._given, self._phase.name)

    def _tensor(self, edge: Edge) -> Any:
        return self._model.get_tensor_by_name(_full(edge.tensor))

    def _alias(self, tensor: Any, name: str) -> Any:
        """A stand-in for a tensor of the model's."""
        placeholder = _tensorflow().compat.v1.placeholder(tensor.dtype.base_dtype, tensor.shape)
        self._aliases[placeholder.op.name] = name
        return placeholder

    def _source(
        self, site: Site, edge: Edge, found: Measured, channels: int, loops: Sequence[Loop]
    ) -> Any:
        """The statistic that an edge is to have: [channels]."""
        if self._by_batch:
            return found.mean if edge.role == MEAN else found.variance
        tf = _tensorflow()
        given = self._given.setdefault(site.layer, {})
        if edge.role not in given:
            dtype = self._tensor(edge).dtype.base_dtype
            dtype = tf.float64 if dtype == tf.float64 else tf.float32
            with tf.control_dependencies(None):
                given[edge.role] = tf.compat.v1.placeholder(dtype, [channels]).name
        return _within(self._graph.get_tensor_by_name(given[edge.role]), loops)

    def _rewire(self, place: int, edge: Edge, source: Any) -> None:
        tf = _tensorflow()
        old = self._tensor(edge)
        shape = old.shape.as_list() if old.shape.is_fully_defined() else [-1]
        fitted = tf.cast(tf.reshape(source, shape), old.dtype.base_dtype)
        self._edges[edge.op, edge.position] = tf.identity(fitted, f"edge_{place}").name

    def _spell_out(
        self,
        site: Site,
        x: Any,
        kept: Sequence[int],
        found: Measured,
        channels: int,
        loops: Sequence[Loop],
    ) -> None:
        """Put a product and a sum in the place of a fused op, which would not write in place."""
        tf = _tensorflow()
        op = self._model.get_operation_by_name(site.op)
        if op.type not in _SPELLED_OUT or kept[-1] != x.shape.rank - 1 or x.dtype != tf.float32:
            return
        gamma, beta = (self._alias(tensor, tensor.name) for tensor in op.inputs[1:3])
        mean, variance = (
            self._source(site, edge, found, channels, loops)
            for edge in sorted(site.edges, key=lambda edge: edge.role)
        )
        scale = gamma * tf.math.rsqrt(variance + op.get_attr("epsilon"))
        result = (x * scale + (beta - mean * scale)).name
        self._replaced.update({site.op: result, f"{site.op}:0": result})

    def _whenever(
        self, found: Measured, conditions: Sequence[Condition | Loop], channels: int
    ) -> Measured:
        """The moments, of all turns of a loop; zeros where the tensor is not computed."""
        tf = _tensorflow()
        if any(isinstance(each, Loop) for each in conditions):
            with tf.control_dependencies([found.count]):
                wide = (tf.cast(each, tf.float64) for each in found[1:])
                found = Measured(found.count, *wide)
        nothing = [
            tf.zeros([] if tensor.shape.rank == 0 else [channels], tensor.dtype) for tensor in found
        ]
        around = []
        for each in conditions:
            if isinstance(each, Loop):
                around.append([_enter(tensor, each, False) for tensor in nothing])
                nothing = [_enter(tensor, each, True) for tensor in nothing]
            else:
                predicate = self._predicate(each.predicate)
                taken = [tf.raw_ops.Switch(data=tensor, pred=predicate) for tensor in nothing]
                around.append([switched[0 if each.value else 1] for switched in taken])
                nothing = [switched[1 if each.value else 0] for switched in taken]
        for each, absent in zip(reversed(conditions), reversed(around), strict=True):
            if isinstance(each, Loop):
                found = self._over_all_turns(found, each, absent)
            else:
                pairs = zip(found, absent, strict=True)
                found = Measured(*(tf.raw_ops.Merge(inputs=[*pair])[0] for pair in pairs))
        return Measured(*(tensor.name for tensor in found))

    def _over_all_turns(self, found: Measured, loop: Loop, start: Sequence[Any]) -> Measured:
        """The moments of all turns of a loop, which are handed from one to the next."""
        tf = _tensorflow()
        going = self._predicate(loop.going)
        merges = [tf.raw_ops.Merge(inputs=[tensor, tensor])[0] for tensor in start]

        def switched(tensors: Sequence[Any]) -> tuple[Measured, Measured]:
            pairs = [tf.raw_ops.Switch(data=tensor, pred=going) for tensor in tensors]
            return Measured(*(no for no, _ in pairs)), Measured(*(yes for _, yes in pairs))

        def with_these(before: Measured) -> Measured:
            with tf.control_dependencies([found.count]):
                return pooled(before, found)

        if loop.deciding:
            last, after = switched(with_these(Measured(*merges)))
        else:
            last, before = switched(merges)
            after = with_these(before)
        for merge, tensor in zip(merges, after, strict=True):
            self._back[merge.op.name] = tf.raw_ops.NextIteration(data=tensor).name
        return Measured(*(tf.raw_ops.Exit(data=tensor) for tensor in last))

    def _predicate(self, name: str) -> Any:
        return self._alias(self._model.get_tensor_by_name(_full(name)), name)


def _within(tensor: Any, loops: Sequence[Loop]) -> Any:
    """A tensor, in these loops the same in each turn."""
    with _tensorflow().control_dependencies(None):
        for loop in loops:
            tensor = _enter(tensor, loop, True)
    return tensor


def _enter(tensor: Any, loop: Loop, constant: bool) -> Any:
    return _tensorflow().raw_ops.Enter(
        data=tensor,
        frame_name=loop.frame,
        is_constant=constant,
        parallel_iterations=loop.parallel,
    )


def _tensorflow() -> Any:
    import tensorflow

    return tensorflow


def _full(tensor: str) -> str:
    return tensor if ":" in tensor else f"{tensor}:0"


def _free_prefix(graph_def: Any) -> str:
    """A scope that the graph does not use."""
    prefix = "bnstat"
    while any(node.name.startswith(prefix) for node in graph_def.node):
        prefix += "_"
    return prefix
