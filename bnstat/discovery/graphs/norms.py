"""Batch normalization in computation graphs.

In inference, a graph computes `gamma * (x - mean) / sqrt(variance + epsilon) + beta`, by one op
(such as `FusedBatchNorm`) or by several ops that compute an equivalent formula, such as `x * s +
(beta - mean * s)` with `s = gamma * rsqrt(variance + epsilon)` (`tf.nn.batch_normalization`).

In training, a graph uses the mean and variance of the batch. The moving statistics are then the
variables that ops update from these tensors (see `updates`). Layer, group and instance
normalization compute statistics, but update no variables.

A graph records the epsilon of each layer, often its axis and momentum, the roles of variables, and
the order of the network. Several graphs may share variables, and a graph may use a layer several
times. All uses are merged into one layer, at the first position.

Sources: tensorflow/core/ops/nn_ops.cc, tensorflow/python/ops/nn_impl.py,
keras/src/layers/normalization.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import isfinite, prod
from typing import Literal

from bnstat.discovery.configuration import NAMED_BATCH_NORM
from bnstat.discovery.graphs.algebra import SUMS, normalization
from bnstat.discovery.graphs.tensors import Steps, Tensors
from bnstat.discovery.graphs.updates import AVERAGING, STATISTICS, UPDATES, Updates, complement
from bnstat.discovery.merge import Sighting
from bnstat.discovery.schemes import ACCUMULATOR, RENORM, describe_lookalike
from bnstat.formats.contents import Contents, Op
from bnstat.model import ROLES, Variable

_OLDEST = "BatchNormWithGlobalNormalization"
_CONTRACTIONS = frozenset({"_FusedConv2D", "_FusedDepthwiseConv2dNative"})
_ONNX = "BatchNormalization"
_FUSED = AVERAGING | _CONTRACTIONS | {_OLDEST, _ONNX}

_ROOTS = frozenset({"Rsqrt", "Sqrt"})

_MOST_OPS = 20_000
"""The limit on candidate ops of a graph; the largest networks have some thousands."""

_MOST_CANDIDATES = 100
"""The limit on layers that a normalization is compared with, if many share a variable."""

_DEFAULT_EPSILON = 1e-4
"""The epsilon of TensorFlow's fused ops if a graph omits the attribute."""

_ONNX_DEFAULTS = {"epsilon": 1e-5, "momentum": 0.9}
"""The defaults of ONNX's op in all of its versions (docs/Operators.md of ONNX)."""

_CHANNEL_AXES = {"NHWC": 3, "NCHW": 1, "NDHWC": 4, "NCDHW": 1}

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "QLinearConv"})

Statistics = Literal["batch", "stored", "either"]

_CALL = re.compile(r"(?:branch|(?:Stateful)?PartitionedCall)(?:_\d+)?")
_INSIDE = re.compile(r"(?:cond|batchnorm|(?:Stateless)?(?:If|Case|While))(?:_\d+)?")
_FUSED_NAME = re.compile(
    r"(?:FusedBatchNorm(?:V\d)?|BatchNormWithGlobalNormalization|BatchNormalization)(?:_\d+)?"
)
"""Components of an op's name that do not belong to the layer's name."""

_NAMELESS = re.compile(r"(?:Const|ones|zeros|ones_like|zeros_like)(?:_\d+)?")


@dataclass(frozen=True, slots=True)
class Norm:
    """A batch normalization in a graph.

    Attributes:
        op: the op whose output is the normalized tensor.
        scope: the layer's name in the graph, or an empty string.
        roles: role -> key.
        x: the input tensors, several if a switch selects one of them.
        epsilon, momentum, axis: None if the graph does not record them.
        on_batch: True if the op uses batch statistics, and no variable stores their moving average.
        normalizes: the statistics that normalize: the batch's, the stored ones, or either, if an
            input of the graph selects them.
    """

    op: str
    scope: str
    roles: Mapping[str, str]
    x: tuple[str, ...]
    epsilon: float | None
    momentum: float | None
    axis: int | None
    on_batch: bool = False
    normalizes: Statistics = "stored"


def from_graphs(contents: Contents) -> list[Sighting]:
    """Return the batch-norm layers in a file's graphs, in network order.

    A graph is skipped if earlier graphs already show all facts about its variables. Momentum is not
    needed if the file has layer configurations.
    """

    def doubt(key: str) -> int | None:
        name = contents.name_of(key)
        description = describe_lookalike(key, name)
        if description == ACCUMULATOR or name.rpartition("/")[2] in RENORM:
            return None
        return 0 if description is None else 1

    layers = _Layers(with_momentum=not contents.layers)
    shown: set[str] = set()
    steps = Steps()
    for graph in contents.graphs() if contents.graphs else ():
        keys = set(graph.variables.values())
        if keys <= shown and layers.unfinished.isdisjoint(keys):
            continue
        shown |= keys
        for norm in find_norms(Tensors(graph, steps), contents.variables, doubt):
            layers.add(norm, graph.name)
    return layers.sightings()


class _Layers:
    """The layers found in graphs so far, in order.

    Attributes:
        unfinished: keys of variables whose layers another graph may complete.
    """

    def __init__(self, with_momentum: bool) -> None:
        self.unfinished: set[str] = set()
        self._with_momentum = with_momentum
        self._sightings: list[Sighting] = []
        self._epsilons: list[list[float]] = []
        self._by_key: dict[str, list[int]] = {}

    def add(self, norm: Norm, graph: str) -> None:
        """Add a normalization found in the graph with this name."""
        index = self._index_of(norm)
        if index is None:
            index = len(self._sightings)
            self._sightings.append(Sighting("graph", norm.scope))
            self._epsilons.append([])
        layer, epsilons = self._sightings[index], self._epsilons[index]
        for key in set(norm.roles.values()) - set(layer.roles.values()):
            self._by_key.setdefault(key, []).append(index)
        layer.roles = {**layer.roles, **norm.roles}
        layer.inputs |= {(graph, tensor) for tensor in norm.x}
        layer.uses_batch_statistics |= norm.on_batch
        if norm.epsilon is not None and norm.epsilon not in epsilons:
            epsilons.append(norm.epsilon)
        layer.momentum = norm.momentum if layer.momentum is None else layer.momentum
        layer.axis = norm.axis if layer.axis is None else layer.axis
        needs_momentum = self._with_momentum and layer.momentum is None
        if "moving_variance" in layer.roles and epsilons and not needs_momentum:
            self.unfinished.difference_update(layer.roles.values())
        else:
            self.unfinished.update(layer.roles.values())

    def _index_of(self, norm: Norm) -> int | None:
        """Return the index of the layer that shares variables and roles with a normalization."""
        # The statistics belong to one layer; several layers may share gamma and beta.
        keys = [norm.roles[role] for role in reversed(ROLES) if role in norm.roles]
        candidates = (index for key in keys for index in self._by_key.get(key, ()))
        for index in islice(candidates, _MOST_CANDIDATES):
            roles = self._sightings[index].roles
            common = roles.keys() & norm.roles.keys()
            if common and all(roles[role] == norm.roles[role] for role in common):
                return index
        return None

    def sightings(self) -> list[Sighting]:
        """Return the layers as sightings, with a note if graphs disagree about an epsilon."""
        for layer, epsilons in zip(self._sightings, self._epsilons, strict=True):
            layer.uses_batch_statistics &= "moving_variance" not in layer.roles
            if len(epsilons) == 1:
                layer.epsilon = epsilons[0]
            elif epsilons:
                listed = " and ".join(map(repr, epsilons))
                layer.notes = (f"its graphs use different epsilons ({listed})",)
        return self._sightings


def find_norms(
    tensors: Tensors,
    variables: Mapping[str, Variable],
    doubt: Callable[[str], int | None] = lambda key: 0,
) -> list[Norm]:
    """Return the batch normalizations of a graph, in the order of the network.

    ONNX's op is included even if the file contains none of its inputs.

    Args:
        tensors: the tensors of the graph.
        variables: key -> variable. Variables of different sizes do not belong to one layer.
        doubt: returns, for a key, how unlikely the variable is a moving statistic; None if
            impossible.
    """
    updates = Updates(tensors, _of_types(tensors, UPDATES), doubt)
    norms = {}
    for op in _of_types(tensors, _FUSED | _ROOTS):
        read = _fused if op.type in _FUSED else _spelled_out
        norm = read(tensors, op, updates)
        if norm is None:
            continue
        norm = _without_misfits(norm, variables)
        if norm.roles or op.type == _ONNX:
            norms[norm.op] = norm
    return [norms[name] for name in tensors.in_order(norms)]


def _of_types(tensors: Tensors, types: frozenset[str]) -> list[Op]:
    return [op for op in tensors.ops.values() if op.type in types][:_MOST_OPS]


def _without_misfits(norm: Norm, variables: Mapping[str, Variable]) -> Norm:
    """Remove variables whose size differs from the statistics; all if mean and variance differ."""

    def size(role: str) -> int | None:
        variable = variables.get(norm.roles[role])
        return None if variable is None else prod(variable.shape)

    statistics = [role for role in STATISTICS if role in norm.roles]
    if not statistics:
        return norm
    first = size(statistics[0])
    misfits = {role for role in norm.roles if first is not None and size(role) not in (first, None)}
    if misfits.intersection(statistics):
        return replace(norm, roles={})
    return replace(norm, roles={r: key for r, key in norm.roles.items() if r not in misfits})


def is_training(op: Op) -> bool:
    """Return True if a TensorFlow op normalizes with batch statistics."""
    return op.type in AVERAGING and op.attribute("is_training") in (None, True)


def _fused(tensors: Tensors, op: Op, updates: Updates) -> Norm | None:
    """Return the normalization that a single op computes, or None."""
    inputs = tensors.inputs(op.name)
    operands = _operands(op, inputs)
    roles = {}
    for role, tensor in operands.items():
        key = tensors.variable(tensor)
        if key is not None and not _is_filler(tensors, (tensor,), role):
            roles[role] = key
    normalizes = _statistics(tensors, operands.get("moving_variance"))
    if normalizes == "batch" and op.type != _OLDEST:
        normalizes = "either"  # The op's input does not lead to a variable.
    momentum = None
    computed: Mapping[str, Sequence[str]] = {}
    if is_training(op):
        normalizes = "batch"
        factor = op.attribute("exponential_avg_factor")
        if isinstance(factor, float) and factor != 1:  # At 1 the op does not average.
            momentum = _finite(complement(factor))
        computed = {role: (f"{op.name}:{n}",) for n, role in enumerate(STATISTICS, 1)}
    elif op.type == _ONNX:
        momentum = _onnx_momentum(op)
    elif op.type == _OLDEST and len(inputs) == 5:
        computed = {role: tensors.sources(operands[role]) for role in STATISTICS}
    elif "moving_variance" not in roles:
        return None
    for role, sources in computed.items():
        if role not in roles and (key := updates.key(sources)) is not None:
            roles[role] = key
    epsilon = op.attribute("variance_epsilon" if op.type == _OLDEST else "epsilon")
    default = _ONNX_DEFAULTS["epsilon"] if op.type == _ONNX else _DEFAULT_EPSILON
    return Norm(
        op=op.name,
        scope=_scope(op) or ("" if "moving_variance" in roles else op.name),
        roles=roles,
        x=tensors.sources(inputs[0]) if inputs else (),
        epsilon=_finite(epsilon if isinstance(epsilon, float) else default),
        momentum=updates.momentum(roles) if momentum is None else momentum,
        axis=_fused_axis(tensors, op, inputs),
        on_batch=bool(computed)
        and roles.keys().isdisjoint(STATISTICS)
        and not updates.follow([source for sources in computed.values() for source in sources]),
        normalizes=normalizes,
    )


def _operands(op: Op, inputs: Sequence[str]) -> Mapping[str, str]:
    """Return role -> input of a fused op."""
    if op.type == _OLDEST:
        names: Sequence[str] = ("x", "moving_mean", "moving_variance", "beta", "gamma")
    elif op.type in _CONTRACTIONS:
        if op.attribute("num_args") != 4:  # it adds a bias
            return {}
        names = ("x", "filter", "gamma", "beta", "moving_mean", "moving_variance")
    else:
        names = ("x", "gamma", "beta", "moving_mean", "moving_variance")
    operands = zip(names, inputs, strict=False)
    return {name: tensor for name, tensor in operands if name in ROLES}


def _fused_axis(tensors: Tensors, op: Op, inputs: Sequence[str]) -> int | None:
    """Return the channel axis: the last axis if a matrix is reshaped to images only for the op."""
    if op.type == _ONNX:
        return None if op.attribute("spatial") == 0 else 1
    x = tensors.op(inputs[0]) if inputs else None
    shape = tensors.inputs(x.name)[1:2] if x is not None and x.type == "Reshape" else ()
    for array in tensors.constants(shape[0]) if shape else ():
        sizes = array.ravel().tolist()
        if sizes[:1] == [-1] and len(sizes) == 4 and (sizes[1:3] == [1, 1] or sizes[2:] == [1, 1]):
            return -1
    return _CHANNEL_AXES.get(str(op.attribute("data_format") or "NHWC"))


def _onnx_momentum(op: Op) -> float | None:
    """Return the share of the old value that is kept.

    The default is used only if the op trains, because converters for inference omit the network's
    momentum.
    """
    momentum = op.attribute("momentum")
    if momentum is None and op.attribute("training_mode") == 1:
        momentum = _ONNX_DEFAULTS["momentum"]
    return _finite(momentum) if isinstance(momentum, float) else None


def _spelled_out(tensors: Tensors, root: Op, updates: Updates) -> Norm | None:
    """Return the normalization that ops compute from `1 / sqrt(variance + epsilon)`, or None."""
    inputs = tensors.inputs(root.name)
    terms = tensors.operands(inputs[0], SUMS) if len(inputs) == 1 else None
    for variance, offset in (terms, terms[::-1]) if terms else ():
        epsilons = set(tensors.scalars(offset))
        if len(epsilons) == 1 and tensors.variable(offset) is None:
            return _around(tensors, root, variance, epsilons.pop(), updates)
    return None


def _around(
    tensors: Tensors, root: Op, variance: str, epsilon: float, updates: Updates
) -> Norm | None:
    variance_key = tensors.variable(variance) or updates.key(tensors.sources(variance))
    is_moment = variance_key is None and _is_batch_moment(tensors, variance)
    if variance_key is None and not updates and not is_moment:
        return None
    formula = normalization(tensors, root.name)
    if formula is None:
        return None
    mean_sources = formula.mean.sources
    mean_key = formula.mean.key or updates.key(mean_sources)
    if mean_key is None:
        if (
            not is_moment
            or len(mean_sources) != 1
            or not _is_batch_moment(tensors, mean_sources[0])
        ):
            return None
    elif variance_key is None and formula.mean.key is not None:
        return None
    roles = {"moving_mean": mean_key, "moving_variance": variance_key}
    for role, leaf in (("gamma", formula.gamma), ("beta", formula.beta)):
        if leaf is not None and not _is_filler(tensors, leaf.sources, role):
            roles[role] = leaf.key
    keys = {role: key for role, key in roles.items() if key}
    on_batch = mean_key is None and not updates.follow([*mean_sources, *tensors.sources(variance)])
    # Weights are standardized over the first axis as well, by statistics of their own.
    if mean_key is None and not (on_batch and keys and formula.x.key is None):
        return None
    return Norm(
        op=formula.op,
        scope=_scope(root) or (root.name if on_batch else ""),
        roles=keys,
        x=formula.x.sources,
        epsilon=_finite(epsilon),
        momentum=updates.momentum(keys),
        axis=tensors.axis(variance),
        on_batch=on_batch,
        normalizes=_statistics(tensors, variance),
    )


def _statistics(tensors: Tensors, variance: str | None) -> Statistics:
    """Return the kind of statistics that normalize, according to the sources of the variance."""
    sources = () if variance is None else tensors.sources(variance)
    stored = [source for source in sources if tensors.variable(source) is not None]
    if not stored:
        return "batch"
    return "stored" if len(stored) == len(sources) else "either"


def _is_batch_moment(tensors: Tensors, tensor: str) -> bool:
    """Return True if a tensor is a mean over the first axis, like batch norm's statistics.

    Layer and instance norm compute statistics over other axes.
    """
    op = tensors.producer(tensor)
    inputs = tensors.inputs(op.name) if op is not None and op.type == "Mean" else ()
    axes = tensors.constants(inputs[1]) if len(inputs) == 2 else []
    return len(axes) == 1 and 0 in axes[0]


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def _is_filler(tensors: Tensors, sources: Sequence[str], role: str) -> bool:
    """Return True for a constant in place of a missing gamma or beta."""
    op = tensors.producer(sources[0]) if len(sources) == 1 else None
    if op is None or op.type != "Const" or not _NAMELESS.fullmatch(op.name.rpartition("/")[2]):
        return False
    neutral = {"gamma": 1, "beta": 0}.get(role)
    return all(bool((array == neutral).all()) for array in tensors.constants(op.name))


def _scope(op: Op) -> str:
    """Return the layer's name in an op's name: `net/bn1` in `net/bn1/batchnorm/Rsqrt`."""
    *scopes, own = op.name.split("/")
    parts = [part for part in scopes if part and not _CALL.fullmatch(part)]
    if op.type in _FUSED and not _FUSED_NAME.fullmatch(own):
        return "/".join([*parts, own])
    while parts and _INSIDE.fullmatch(parts[-1]):
        parts.pop()
    return "/".join(parts) or (op.name if op.type == _ONNX else "")


def note_folded(contents: Contents) -> list[str]:
    """Return notes on folded batch norm, for a file without batch-norm layers.

    Converters from TensorFlow join the names of folded ops. If the names are gone, the bias of a
    convolution may come from a batch norm.
    """
    if contents.source.format != "onnx" or contents.graphs is None:
        return []
    (graph,) = contents.graphs()
    named: Counter[bool] = Counter()
    biased = 0
    for op in graph.ops.values():
        keys = [graph.variables[name] for name in op.inputs if name in graph.variables]
        is_convolution = op.type in _CONVOLUTIONS
        named[is_convolution] += any(NAMED_BATCH_NORM.search(key) is not None for key in keys)
        biased += is_convolution and len(keys) == 2
    proof = "nothing of it is left to show (bnstat diff ORIGINAL FILE {} it)"
    if named.total():
        parts = [_count(named[True], "convolution")] if named[True] else []
        parts += [_count(named[False], "other operation")] if named[False] else []
        where = " and ".join(parts)
        return [f"batch norm was folded into {where}, by their names: {proof.format('proves')}"]
    if biased:
        return [
            f"batch norm may have been folded into {_count(biased, 'convolution')} with a bias: "
            f"{proof.format('decides')}"
        ]
    return []


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
