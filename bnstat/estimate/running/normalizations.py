"""Find the normalizations in a flat graph, with their data inputs and statistics inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bnstat.discovery.graphs.norms import Norm, find_norms
from bnstat.discovery.graphs.tensors import PASSES, Steps, Tensors
from bnstat.formats.tensorflow.graph_def import flat_graph
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

_WALKED = PASSES | {
    "Add",
    "AddV2",
    "BiasAdd",
    "Div",
    "Inv",
    "Merge",
    "Mul",
    "Neg",
    "RealDiv",
    "Reciprocal",
    "Rsqrt",
    "Select",
    "SelectV2",
    "Sqrt",
    "Sub",
}
_MOST_OPS = 128
"""The limit on the ops that compute one normalization; about ten are usual."""

_TRAINING = "the graph always normalizes with batch statistics (training=True is built in)"
_UNKNOWN = "bnstat does not recognize how the graph normalizes with it"

MEAN, VARIANCE = "moving_mean", "moving_variance"


@dataclass(frozen=True)
class Edge:
    """The place where a moving statistic enters an op.

    Attributes:
        op: the name of the op.
        position: the index of the op's input that takes the statistic.
        tensor: the name of the tensor that the model's graph connects to this input.
        role: moving mean or moving variance.
    """

    op: str
    position: int
    tensor: str
    role: str


@dataclass(frozen=True)
class Normalization:
    """One use of a layer in the graph. A shared layer has several.

    Attributes:
        layer: the name of the layer.
        op: the name of the op whose output is the normalized tensor.
        x: the name of the tensor that is normalized.
        edges: where the moving statistics enter; at least one edge for each statistic.
        axis: the channel axis, if the graph records it.
        unbiased: True if training averages the unbiased variance.
        mask: the name of a tensor that is true for the values of `x` that the statistics include.
            It lacks the last dimension of `x`. None if the statistics include all values.
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
    """Find the normalizations of some layers in a flat `GraphDef`.

    Args:
        graph_def: the graph.
        variables: name of an op -> key of the variable that the op holds.
        layers: the layers to find.

    Returns:
        The normalizations in network order, and a mapping: layer without a normalization -> the
        reason.
    """
    graph = flat_graph(graph_def, variables)
    tensors = Tensors(graph, Steps())
    by_key = {v.key: v for layer in layers for v in layer.variables.values()}
    owners = {
        layer.variables[role].key: layer.name
        for layer in layers
        for role in (MEAN, VARIANCE)
        if role in layer.variables
    }

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
        is_read = {layer.variables[role].key for role in (MEAN, VARIANCE)} <= read
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
    """Return the data input and the edges of a normalization that consists of several ops."""
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
