"""A graph that also measures what enters its normalizations.

The ops that measure are built in a graph of their own, beside placeholders for the tensors of the
model's, and then spliced in. Each input that takes a moving statistic gets another one: that of
the batch, or one that is fed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from bnstat.errors import UnsupportedError
from bnstat.mending.estimating.running.measure import Measured, kept_axes, measured
from bnstat.mending.estimating.running.order import Condition, Order
from bnstat.mending.estimating.running.sites import MEAN, Edge, Site

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
    sites: Sequence[Site],
    order: Order,
    *,
    by_batch: bool,
    sample: bool,
) -> Measuring:
    """Add the measuring of these sites to a flat graph.

    Args:
        graph_def: a flat `GraphDef`, which is left as it is.
        sites: the normalizations.
        order: of the same graph.
        by_batch: whether each layer normalizes by its batch, instead of by what is fed.
        sample: whether a sample of the positions will do.

    Raises:
        UnsupportedError: a tensor's shape is not known.
    """
    import tensorflow as tf

    model = tf.Graph()
    with model.as_default():
        tf.graph_util.import_graph_def(graph_def, name="")
    builder = _Builder(_free_prefix(graph_def), model, by_batch, sample)
    for number, site in enumerate(sites):
        builder.add(number, site, order.conditions(site.x))
    return builder.spliced(graph_def)


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
        self._results: list[Measured] = []
        self._given: dict[str, dict[str, str]] = {}
        with self._graph.as_default():
            self._phase = tf.compat.v1.placeholder(tf.int32, [], f"{prefix}/phase")

    def add(self, number: int, site: Site, conditions: Sequence[Condition]) -> None:
        """Add what measures a site."""
        tf = _tensorflow()
        x = self._model.get_tensor_by_name(_full(site.x))
        mean_edge = next(edge for edge in site.edges if edge.role == MEAN)
        kept = kept_axes(x, self._tensor(mean_edge), site.axis, site.layer)
        if any(x.shape[axis] is None for axis in kept):
            raise UnsupportedError(site.layer, "the graph does not tell its number of channels")
        channels = prod(x.shape[axis] for axis in kept)
        with self._graph.as_default(), tf.name_scope(f"{self._prefix}/{number}/"):
            entering = self._alias(x, site.x)
            found = measured(entering, kept, self._phase, self._sample)
            for place, edge in enumerate(site.edges):
                with tf.control_dependencies([]):
                    self._rewire(place, edge, self._source(site, edge, found, channels))
            self._spell_out(site, entering, kept, found, channels)
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

    def _source(self, site: Site, edge: Edge, found: Measured, channels: int) -> Any:
        """The statistic that an edge is to have: [channels]."""
        if self._by_batch:
            return found.mean if edge.role == MEAN else found.variance
        tf = _tensorflow()
        given = self._given.setdefault(site.layer, {})
        if edge.role not in given:
            dtype = self._tensor(edge).dtype.base_dtype
            dtype = tf.float64 if dtype == tf.float64 else tf.float32
            given[edge.role] = tf.compat.v1.placeholder(dtype, [channels]).name
        return self._graph.get_tensor_by_name(given[edge.role])

    def _rewire(self, place: int, edge: Edge, source: Any) -> None:
        tf = _tensorflow()
        old = self._tensor(edge)
        shape = old.shape.as_list() if old.shape.is_fully_defined() else [-1]
        fitted = tf.cast(tf.reshape(source, shape), old.dtype.base_dtype)
        self._edges[edge.op, edge.position] = tf.identity(fitted, f"edge_{place}").name

    def _spell_out(
        self, site: Site, x: Any, kept: Sequence[int], found: Measured, channels: int
    ) -> None:
        """Put a product and a sum in the place of a fused op, which would not write in place."""
        tf = _tensorflow()
        op = self._model.get_operation_by_name(site.op)
        if op.type not in _SPELLED_OUT or kept[-1] != x.shape.rank - 1 or x.dtype != tf.float32:
            return
        gamma, beta = (self._alias(tensor, tensor.name) for tensor in op.inputs[1:3])
        mean, variance = (
            self._source(site, edge, found, channels)
            for edge in sorted(site.edges, key=lambda edge: edge.role)
        )
        scale = gamma * tf.math.rsqrt(variance + op.get_attr("epsilon"))
        result = (x * scale + (beta - mean * scale)).name
        self._replaced.update({site.op: result, f"{site.op}:0": result})

    def _whenever(
        self, found: Measured, conditions: Sequence[Condition], channels: int
    ) -> Measured:
        """The moments; zeros where the tensor is not computed."""
        tf = _tensorflow()
        if not conditions:
            return Measured(*(tensor.name for tensor in found))
        predicates = [
            self._alias(self._model.get_tensor_by_name(_full(name)), name) for name, _ in conditions
        ]
        results = []
        for tensor in found:
            nothing = tf.zeros(tensor.shape if tensor.shape.rank == 0 else [channels], tensor.dtype)
            absent = []
            for predicate, (_, value) in zip(predicates, conditions, strict=True):
                taken = tf.raw_ops.Switch(data=nothing, pred=predicate)
                absent.append(taken[0] if value else taken[1])
                nothing = taken[1] if value else taken[0]
            for other in reversed(absent):
                tensor = tf.raw_ops.Merge(inputs=[tensor, other])[0]
            results.append(tensor.name)
        return Measured(*results)


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
