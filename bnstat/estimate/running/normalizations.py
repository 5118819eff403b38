"""Where a flat graph normalizes: what enters, and which inputs are the statistics."""

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
"""Ops that take the mean and the variance as these inputs."""

_KEEPS_UNBIASED = frozenset(_FUSED) - {"BatchNormWithGlobalNormalization"}
"""Ops whose variance of a batch, which training averages, is the unbiased one."""

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
_LARGEST = 128
"""Ops of one normalization; they are some ten."""

MEAN, VARIANCE = "moving_mean", "moving_variance"


@dataclass(frozen=True)
class Edge:
    """An input of an op that takes a moving statistic.

    Attributes:
        op: the op's name.
        position: which of its inputs.
        tensor: the tensor that it takes there.
        role: which statistic that is.
    """

    op: str
    position: int
    tensor: str
    role: str


@dataclass(frozen=True)
class Site:
    """A place where a layer normalizes; a shared layer has several.

    Attributes:
        layer: the layer's name.
        op: the op that gives the normalized tensor.
        x: the tensor that enters.
        edges: the inputs that take the moving statistics; at least one of each.
        axis: the channels' axis, where the graph tells it.
        unbiased: whether training averages the unbiased variance.
        mask: the tensor of one dimension less that tells what counts; all where it is None.
    """

    layer: str
    op: str
    x: str
    edges: tuple[Edge, ...]
    axis: int | None
    unbiased: bool
    mask: str | None = None


@dataclass(frozen=True)
class Survey:
    """All normalizations of a graph.

    Attributes:
        sites: in the order of the network.
        blind: layer -> why its statistics are not read, for those that have no site.
    """

    sites: tuple[Site, ...]
    blind: Mapping[str, str]


def survey(graph_def: Any, variables: Mapping[str, str], layers: Sequence[BatchNorm]) -> Survey:
    """Find where these layers normalize.

    Args:
        graph_def: a flat `GraphDef`.
        variables: name of an op -> key of the variable that it stands for.
        layers: with their variables' keys.
    """
    graph = flat_graph(graph_def, variables)
    tensors = Tensors(graph, Steps())
    held = {v.key: v for layer in layers for v in layer.variables.values()}
    owners = {
        variable.key: layer.name
        for layer in layers
        for role, variable in layer.variables.items()
        if role in (MEAN, VARIANCE)
    }

    sites = []
    blind = {}
    for norm in find_norms(tensors, held):
        owner = next((owners[key] for key in norm.roles.values() if key in owners), None)
        if owner is None:
            continue
        found = _site(tensors, norm, owner)
        if isinstance(found, Site):
            sites.append(found)
        else:
            blind[owner] = found
    with_sites = {site.layer for site in sites}
    read = {key for name, key in variables.items() if name in graph.ops}
    for layer in layers:
        used = {layer.variables[role].key for role in (MEAN, VARIANCE)} <= read
        blind.setdefault(
            layer.name,
            "how the graph normalizes with it is not understood"
            if used
            else "nothing between the inputs and the outputs reads its statistics",
        )
    return Survey(
        tuple(sites), {name: why for name, why in blind.items() if name not in with_sites}
    )


def _site(tensors: Tensors, norm: Norm, layer: str) -> Site | str:
    """The site of a normalization, or why it has none."""
    op = tensors.ops[norm.op]
    if op.type in _FUSED:
        given = tensors.inputs(op.name)
        if op.attribute("is_training") in (None, True) and op.type in _KEEPS_UNBIASED:
            return _TRAINING
        places = zip((MEAN, VARIANCE), _FUSED[op.type], strict=True)
        edges = [Edge(op.name, place, given[place], role) for role, place in places]
        x = given[0] if given else ""
    elif op.type.startswith("_Fused"):
        return "it is one op with its convolution, which hides what enters it"
    else:
        x, edges = _spelled_out(tensors, norm)
    if {edge.role for edge in edges} != {MEAN, VARIANCE}:
        return _TRAINING
    if not x:
        return "how the graph normalizes with it is not understood"
    return Site(layer, norm.op, x, tuple(edges), norm.axis, op.type in _KEEPS_UNBIASED)


_TRAINING = (
    "the graph normalizes by the batch whatever the statistics are (training=True is built in)"
)


def _spelled_out(tensors: Tensors, norm: Norm) -> tuple[str, list[Edge]]:
    """The tensor that enters the ops that spell a normalization out, and their statistics."""
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
                walked = op is not None and op.type in _WALKED and op.name not in seen
                if op is not None and walked and len(seen) < _LARGEST:
                    seen.add(op.name)
                    stack.append(op.name)
    return x, edges
