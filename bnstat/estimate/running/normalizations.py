"""Find the normalizations in a flat graph, and add ops to the graph that measure their inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from bnstat.discovery.graphs.norms import Norm, find_norms
from bnstat.discovery.graphs.tracing import PASSES, Steps, Tensors
from bnstat.errors import UnsupportedError
from bnstat.estimate.running.flat_graph import Condition, full_name
from bnstat.formats.tensorflow.graph_def import inlined, make_graph
from bnstat.model import BatchNorm

_FUSED: Mapping[str, tuple[int, int]] = {
    "FusedBatchNorm": (3, 4),
    "FusedBatchNormV2": (3, 4),
    "FusedBatchNormV3": (3, 4),
    "_FusedBatchNormEx": (3, 4),
    "BatchNormWithGlobalNormalization": (1, 2),
}
"""Op type -> indices of the inputs that take the mean and the variance."""

_KEEPS_UNBIASED = frozenset(_FUSED) - {"BatchNormWithGlobalNormalization"}
"""Op types that average the unbiased batch variance in training."""

_WALKED = PASSES.union(
    ("Add", "AddV2", "BiasAdd", "Sub", "Neg", "Mul", "Div", "RealDiv", "Inv", "Reciprocal"),
    ("Sqrt", "Rsqrt", "Merge", "Select", "SelectV2"),
)
_MOST_OPS = 128  # the limit on the ops that compute one normalization; about ten are usual

_TRAINING = "the graph always normalizes with batch statistics (training=True is built in)"
_UNKNOWN = "bnstat does not recognize how the graph normalizes with it"

MEAN, VARIANCE = "moving_mean", "moving_variance"

_ENOUGH = 4_096  # about this number of positions of a batch is measured, unless all have to be
_FEW = 128  # all positions are measured if each sample has at most this number of positions
_FOR_SHIFT = 64  # the number of positions whose mean is subtracted before squares are summed
_BLOCK = 64  # the rows in a block: rows are summed in the tensor's dtype, blocks in float64


@dataclass(frozen=True)
class Edge:
    """An input that takes a moving statistic: the input `position` of `op` is `tensor`."""

    op: str
    position: int
    tensor: str
    role: str


@dataclass(frozen=True)
class Normalization:
    """One use of a layer in the graph: the op `op` normalizes the tensor `x`.

    `axis` is the channel axis, if the graph records it. `unbiased` is True if training averages the
    unbiased variance. For `mask`, see `Program.masks`.
    """

    layer: str
    op: str
    x: str
    edges: tuple[Edge, ...]
    axis: int | None
    unbiased: bool
    mask: str | None = None


def find_normalizations(
    graph_def: Any, variables: Mapping[str, str], layers: Sequence[BatchNorm]
) -> tuple[list[Normalization], dict[str, str]]:
    """Return the normalizations in network order, and why layers have none: layer -> reason.

    `variables` maps the name of an op to the key of the variable that the op holds.
    """
    graph = make_graph("", inlined(graph_def), variables)
    tensors = Tensors(graph, Steps())
    by_key = {v.key: v for layer in layers for v in layer.variables.values()}
    both = (MEAN, VARIANCE)
    owners = {layer.variables[role].key: layer.name for layer in layers for role in both}
    normalizations = []
    reasons = {}
    for norm in find_norms(tensors, by_key):
        owner = next((owners[key] for key in norm.roles.values() if key in owners), None)
        if owner is None:
            continue
        normalization = _normalization(tensors, norm, owner)
        if isinstance(normalization, Normalization):
            normalizations.append(normalization)
        else:
            reasons[owner] = normalization
    read = {key for name, key in variables.items() if name in graph.ops}
    unread = "nothing between the inputs and the outputs reads its statistics"
    for layer in layers:
        is_read = {layer.variables[role].key for role in both} <= read
        reasons.setdefault(layer.name, _UNKNOWN if is_read else unread)
    for normalization in normalizations:
        reasons.pop(normalization.layer, None)
    return normalizations, reasons


def _normalization(tensors: Tensors, norm: Norm, layer: str) -> Normalization | str:
    """Return the normalization that `norm` describes, or the reason why it cannot be measured."""
    op = tensors.ops[norm.op]
    if op.type in _FUSED:
        inputs = tensors.inputs(op.name)
        if op.attribute("is_training") in (None, True) and op.type in _KEEPS_UNBIASED:
            return _TRAINING
        positions = zip((MEAN, VARIANCE), _FUSED[op.type], strict=True)
        edges = [Edge(op.name, position, inputs[position], role) for role, position in positions]
        x = inputs[0] if inputs else ""
    elif op.type.startswith("_Fused"):
        return "the graph fuses it with its convolution, so its input cannot be measured"
    else:
        x, edges = _spelled_out(tensors, norm)
    if {edge.role for edge in edges} != {MEAN, VARIANCE}:
        return _TRAINING
    if not x:
        return _UNKNOWN
    return Normalization(layer, norm.op, x, tuple(edges), norm.axis, op.type in _KEEPS_UNBIASED)


def _spelled_out(tensors: Tensors, norm: Norm) -> tuple[str, list[Edge]]:
    """Return the data input and the `Edge`s of a layer that consists of several ops."""
    roles = {key: role for role, key in norm.roles.items() if role in (MEAN, VARIANCE)}
    others = set(norm.roles.values()) - roles.keys()
    edges = []
    x = ""
    seen = {norm.op}
    stack = [norm.op]
    while stack:
        name = stack.pop()
        for position, tensor in enumerate(tensors.inputs(name)):
            key = tensors.variable(tensor)
            if tensors.sources(tensor) == norm.x:
                x = x or tensor
            elif key in roles:
                edges.append(Edge(name, position, tensor, roles[key]))
            elif key not in others or key is None:
                op = tensors.op(tensor)
                is_walked = op is not None and op.type in _WALKED and op.name not in seen
                if op is not None and is_walked and len(seen) < _MOST_OPS:
                    seen.add(op.name)
                    stack.append(op.name)
    return x, edges


class BatchMoments(NamedTuple):
    """The moments of a batch: as tensors, as names of tensors, or as arrays.

    The mean and the biased variance, [channels], are float64.
    """

    count: Any
    mean: Any
    variance: Any


def tensor_of(graph: Any, name: str) -> Any:
    """Return a tensor of a `tf.Graph`; the name of an op means the op's first output."""
    return graph.get_tensor_by_name(full_name(name))


def entering(graph: Any, normalization: Normalization) -> tuple[Any, Sequence[int], int]:
    """Return the tensor that is normalized, its channel axes, and the number of channels.

    If the rank of the tensor is unknown, the only channel axis is negative (counted from the end).
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
    rank, sizes = x.shape.rank, statistic.shape.as_list() if statistic.shape.rank else None
    if rank is None or sizes is None or None in sizes or len(sizes) > rank:
        what = "the graph does not record the shape of its input"
        raise UnsupportedError(normalization.layer, what)
    wide = [rank - len(sizes) + place for place, size in enumerate(sizes) if size != 1]
    channel_axes = wide or [rank - 1]
    if axis is not None and (len(sizes) == 1 or not wide):
        channel_axes = [axis % rank]
    if len(channel_axes) == 1 and x.shape[channel_axes[0]] is None:
        shape = [None] * x.shape.rank
        shape[channel_axes[0]] = statistic.shape.num_elements()
        x.set_shape(shape)
    if any(x.shape[axis] is None for axis in channel_axes):
        what = "the graph does not record its number of channels"
        raise UnsupportedError(normalization.layer, what)
    return x, channel_axes, prod(x.shape[axis] for axis in channel_axes)


def measure(graph: Any, normalization: Normalization, phase: Any, exact: bool) -> BatchMoments:
    """Add ops that compute the moments of the layer's input; return the moments as tensors.

    A mask applies only if the last axis is the only channel axis.
    """
    import tensorflow as tf

    x, channel_axes, channels = entering(graph, normalization)
    if x.shape.rank is None:
        x = tf.reshape(x, tf.concat([[-1], tf.shape(x)[channel_axes[0] :]], 0))
        x = tf.ensure_shape(x, [None, channels, *[None] * (-1 - channel_axes[0])])
        channel_axes = (1,)
    others = [axis for axis in range(x.shape.rank) if axis not in channel_axes]
    if max(others, default=-1) > min(channel_axes):
        x = tf.transpose(x, [*others, *channel_axes])
    elif normalization.mask is not None and len(channel_axes) == 1:
        mask = tf.cast(tensor_of(graph, normalization.mask), tf.bool)
        x = tf.boolean_mask(x, tf.broadcast_to(mask, tf.shape(x)[:-1]))
        others = [0]
    if not exact and len(others) > 1:
        x = _sampled(x, len(others), channels, phase)
    if x.dtype not in (tf.float32, tf.float64):
        x = tf.cast(x, tf.float32)
    x = tf.reshape(x, [-1, channels])
    shift = tf.reduce_mean(x[:_FOR_SHIFT], 0)
    mean_of = _mean_in_blocks if exact else _mean_by_product
    squares = mean_of(tf.math.squared_difference(x, shift))
    exact_shift = tf.cast(shift, tf.float64)
    # A sample is not copied once more for a mean that need not be exact.
    offset = mean_of(x - shift) if exact else mean_of(x) - exact_shift
    variance = tf.maximum(squares - tf.square(offset), 0)
    return BatchMoments(tf.shape(x, tf.int64)[0], exact_shift + offset, variance)


def _sampled(x: Any, rank: int, channels: int, phase: Any) -> Any:
    """Return every n-th position of a large tensor; return a small tensor unchanged.

    The positions lie along the first `rank` axes. `phase` shifts the first position.
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
    """Return the mean over the rows of a matrix, by one fast product in the matrix's dtype."""
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


def or_zeros(graph: Any, moments: BatchMoments, conditions: Sequence[Condition]) -> BatchMoments:
    """Return tensors that equal the moments if all conditions hold in a run, otherwise 0."""
    import tensorflow as tf

    zeros = [tf.zeros(each.shape, each.dtype) for each in moments]
    absent = []
    for predicate_name, value in conditions:
        predicate = tensor_of(graph, predicate_name)
        switched = [tf.raw_ops.Switch(data=zero, pred=predicate) for zero in zeros]
        absent.append([pair[not value] for pair in switched])
        zeros = [pair[value] for pair in switched]
    for alternatives in reversed(absent):
        pairs = zip(moments, alternatives, strict=True)
        moments = BatchMoments(*(tf.raw_ops.Merge(inputs=[*pair])[0] for pair in pairs))
    return moments
