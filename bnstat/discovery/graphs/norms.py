"""Batch normalization as computation graphs spell it.

Inference computes `gamma * (x - mean) / sqrt(variance + epsilon) + beta`. A graph has one op
for that (`FusedBatchNorm` and its kin), or spells it out in one of the ways that algebra
allows; TensorFlow's own (`tf.nn.batch_normalization`) is `x * s + (beta - mean * s)` with
`s = gamma * rsqrt(variance + epsilon)`.

In training, mean and variance are those of the batch. The moving ones are then known by the
ops that update them from the very same tensors (see `updates`).
Layer, group and instance normalization compute their statistics and update nothing.

Sources: tensorflow/core/ops/nn_ops.cc, tensorflow/python/ops/nn_impl.py,
keras/src/layers/normalization.

Batch normalization by the computation graphs of a file.

A graph tells the epsilon of each layer, often its axis and momentum, which variable has which
role, and the order of the network. Graphs share variables (a network for training and one for
inference, a function for each layer), and a graph may use a layer several times: all of that
is one layer, found where it comes first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from math import isfinite, prod
from typing import Literal

from bnstat.discovery.configuration import CALLED
from bnstat.discovery.graphs.algebra import SUMS, normalization
from bnstat.discovery.graphs.tensors import Steps, Tensors
from bnstat.discovery.graphs.updates import AVERAGING, STATISTICS, UPDATES, Updates, complement
from bnstat.discovery.lookalikes import ACCUMULATOR, set_apart
from bnstat.discovery.merge import Sighting
from bnstat.discovery.schemes import RENORM
from bnstat.formats.contents import Contents, Op
from bnstat.model import ROLES

_OLDEST = "BatchNormWithGlobalNormalization"
_CONTRACTIONS = frozenset({"_FusedConv2D", "_FusedDepthwiseConv2dNative"})
_ONNX = "BatchNormalization"
_FUSED = AVERAGING | _CONTRACTIONS | {_OLDEST, _ONNX}

_ROOTS = frozenset({"Rsqrt", "Sqrt"})

_MOST_OPS = 20_000
"""Ops of a graph that are tried; the largest networks have some thousands."""

_DEFAULT_EPSILON = 1e-4
"""Of TensorFlow's fused ops, where a graph leaves the attribute out."""

_ONNX_DEFAULTS = {"epsilon": 1e-5, "momentum": 0.9}
"""Of ONNX's op, which is defined by them in all of its versions (docs/Operators.md of ONNX)."""

_CHANNEL_AXES = {"NHWC": 3, "NCHW": 1, "NDHWC": 4, "NCDHW": 1}

Statistics = Literal["batch", "stored", "either"]

_CALL = re.compile(r"(?:branch|(?:Stateful)?PartitionedCall)(?:_\d+)?")
_INSIDE = re.compile(r"(?:cond|batchnorm|(?:Stateless)?(?:If|Case|While))(?:_\d+)?")
_FUSED_NAME = re.compile(
    r"(?:FusedBatchNorm(?:V\d)?|BatchNormWithGlobalNormalization|BatchNormalization)(?:_\d+)?"
)
"""Parts of an op's name that are no part of the layer's."""

_NAMELESS = re.compile(r"(?:Const|ones|zeros|ones_like|zeros_like)(?:_\d+)?")


@dataclass(frozen=True, slots=True)
class Norm:
    """A batch normalization in a graph.

    Attributes:
        op: the op that gives the normalized tensor.
        scope: the name under which the graph has it; empty where it has none.
        roles: role -> key.
        x: the tensors that it may normalize.
        on_batch: True if it normalizes by the statistics of the batch, and no variable follows
            these.
        epsilon, momentum, axis: where the graph tells them.
        normalizes: the statistics that normalize: those of the batch, the stored ones, or either,
            as the graph is told when it runs.
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


def find_norms(
    tensors: Tensors, fit: Callable[[str, str], bool], doubt: Callable[[str], int | None]
) -> list[Norm]:
    """The batch normalizations of a graph, in the order of the network.

    ONNX's op is one even where none of what it takes is in the file.

    Args:
        tensors: the graph's.
        fit: whether the variables of two keys can belong to one layer.
        doubt: how unlikely a key's variable is to be a moving statistic; None for one that
            cannot be any.
    """
    updates = Updates(tensors, _of_types(tensors, UPDATES), doubt)
    norms = {}
    for op in _of_types(tensors, _FUSED | _ROOTS):
        read = _fused if op.type in _FUSED else _spelled_out
        norm = read(tensors, op, updates)
        if norm is None:
            continue
        norm = _without_misfits(norm, fit)
        if norm.roles or op.type == _ONNX:
            norms[norm.op] = norm
    return [norms[name] for name in tensors.in_order(norms)]


def _of_types(tensors: Tensors, types: frozenset[str]) -> list[Op]:
    return [op for op in tensors.ops.values() if op.type in types][:_MOST_OPS]


def _fused(tensors: Tensors, op: Op, updates: Updates) -> Norm | None:
    given = tensors.inputs(op.name)
    roles = {}
    for role, tensor in _operands(op, given).items():
        key = tensors.variable(tensor)
        if key is not None and not _is_filler(tensors, (tensor,), role):
            roles[role] = key
    momentum, on_batch = None, False
    normalizes = _kind(tensors, _operands(op, given).get("moving_variance"))
    if normalizes == "batch" and op.type != _OLDEST:
        normalizes = "either"  # What the op takes is not followed to a variable.
    if is_training(op):
        normalizes = "batch"
        for output, role in enumerate(STATISTICS, 1):
            updated = updates.key((f"{op.name}:{output}",))
            if role not in roles and updated is not None:
                roles[role] = updated
        momentum = _share_kept(op.attribute("exponential_avg_factor"))
        on_batch = not roles.keys() & set(STATISTICS) and not updates.follow(
            (f"{op.name}:1", f"{op.name}:2")
        )
    elif op.type == _ONNX:
        momentum = _onnx_momentum(op)
    elif op.type == _OLDEST and len(given) == 5:
        for role, tensor in zip(STATISTICS, given[1:3], strict=True):
            if role not in roles and (moved := updates.key(tensors.sources(tensor))) is not None:
                roles[role] = moved
        on_batch = not roles.keys() & set(STATISTICS) and not updates.follow(
            [source for tensor in given[1:3] for source in tensors.sources(tensor)]
        )
    elif "moving_variance" not in roles:
        return None
    epsilon = op.attribute("variance_epsilon" if op.type == _OLDEST else "epsilon")
    default = _ONNX_DEFAULTS["epsilon"] if op.type == _ONNX else _DEFAULT_EPSILON
    return Norm(
        op=op.name,
        scope=_scope(op) or ("" if "moving_variance" in roles else op.name),
        roles=roles,
        x=tensors.sources(given[0]) if given else (),
        epsilon=_finite(epsilon if isinstance(epsilon, float) else default),
        momentum=updates.momentum(roles) if momentum is None else momentum,
        axis=_fused_axis(tensors, op, given),
        on_batch=on_batch,
        normalizes=normalizes,
    )


def is_training(op: Op) -> bool:
    """Return True if an op of TensorFlow normalizes with the statistics of the batch."""
    return op.type in AVERAGING and op.attribute("is_training") in (None, True)


def _kind(tensors: Tensors, variance: str | None) -> Statistics:
    """The statistics that normalize, by where the variance comes from."""
    sources = () if variance is None else tensors.sources(variance)
    stored = [source for source in sources if tensors.variable(source) is not None]
    if not stored:
        return "batch"
    return "stored" if len(stored) == len(sources) else "either"


def _operands(op: Op, given: Sequence[str]) -> Mapping[str, str]:
    """What a fused op takes for gamma, beta, mean and variance."""
    if op.type == _OLDEST:
        names: Sequence[str] = ("x", "moving_mean", "moving_variance", "beta", "gamma")
    elif op.type in _CONTRACTIONS:
        if op.attribute("num_args") != 4:  # it adds a bias
            return {}
        names = ("x", "filter", "gamma", "beta", "moving_mean", "moving_variance")
    else:
        names = ("x", "gamma", "beta", "moving_mean", "moving_variance")
    operands = zip(names, given, strict=False)
    return {name: tensor for name, tensor in operands if name in ROLES}


def _fused_axis(tensors: Tensors, op: Op, given: Sequence[str]) -> int | None:
    """The channels' axis: the last, where a matrix is dressed as an image for the op's sake."""
    if op.type == _ONNX:
        return None if op.attribute("spatial") == 0 else 1
    x = tensors.op(given[0]) if given else None
    shape = tensors.inputs(x.name)[1:2] if x is not None and x.type == "Reshape" else ()
    for array in tensors.constants(shape[0]) if shape else ():
        sizes = array.ravel().tolist()
        if sizes[:1] == [-1] and len(sizes) == 4 and (sizes[1:3] == [1, 1] or sizes[2:] == [1, 1]):
            return -1
    return _CHANNEL_AXES.get(str(op.attribute("data_format") or "NHWC"))


def _onnx_momentum(op: Op) -> float | None:
    """The share that is kept. One that is not written counts where the op trains, and only there:
    converters of networks for inference leave out whatever momentum the network had.
    """
    momentum = op.attribute("momentum")
    if momentum is None and op.attribute("training_mode") == 1:
        momentum = _ONNX_DEFAULTS["momentum"]
    return _finite(momentum) if isinstance(momentum, float) else None


def _spelled_out(tensors: Tensors, root: Op, updates: Updates) -> Norm | None:
    inside = tensors.inputs(root.name)
    terms = tensors.operands(inside[0], SUMS) if len(inside) == 1 else None
    for variance, offset in (terms, terms[::-1]) if terms else ():
        epsilons = set(tensors.scalars(offset))
        if len(epsilons) == 1 and tensors.variable(offset) is None:
            return _around(tensors, root, variance, epsilons.pop(), updates)
    return None


def _around(
    tensors: Tensors, root: Op, variance: str, epsilon: float, updates: Updates
) -> Norm | None:
    """The normalization around `1 / sqrt(variance + epsilon)`."""
    squares = tensors.variable(variance) or updates.key(tensors.sources(variance))
    is_moment = squares is None and _is_batch_moment(tensors, variance)
    if squares is None and not updates and not is_moment:
        return None
    formula = normalization(tensors, root.name)
    if formula is None:
        return None
    mean = formula.mean.key or updates.key(formula.mean.sources)
    roles = {}
    if mean is None:
        sources = formula.mean.sources
        if not is_moment or len(sources) != 1 or not _is_batch_moment(tensors, sources[0]):
            return None
    elif squares is None and formula.mean.key is not None:
        return None
    else:
        roles["moving_mean"] = mean
    if squares is not None:
        roles["moving_variance"] = squares
    for role, leaf in (("gamma", formula.gamma), ("beta", formula.beta)):
        if leaf is not None and leaf.key and not _is_filler(tensors, leaf.sources, role):
            roles[role] = leaf.key
    on_batch = mean is None and not updates.follow(
        [*formula.mean.sources, *tensors.sources(variance)]
    )
    # Weights are standardized over the first axis as well, by statistics of their own.
    if mean is None and not (on_batch and roles and formula.x.key is None):
        return None
    return Norm(
        op=formula.op,
        scope=_scope(root) or (root.name if on_batch else ""),
        roles=roles,
        x=formula.x.sources,
        epsilon=_finite(epsilon),
        momentum=updates.momentum(roles),
        axis=tensors.axis(variance),
        on_batch=on_batch,
        normalizes=_kind(tensors, variance),
    )


def _is_batch_moment(tensors: Tensors, tensor: str) -> bool:
    """Return True if a tensor is a mean over the first axis, as batch norm's statistics are.

    Layer and instance norm take theirs over other axes, and leave the first.
    """
    op = tensors.producer(tensor)
    inputs = tensors.inputs(op.name) if op is not None and op.type == "Mean" else ()
    axes = tensors.constants(inputs[1]) if len(inputs) == 2 else []
    return len(axes) == 1 and 0 in axes[0]


def _share_kept(factor: float | int | bool | str | None) -> float | None:
    """The momentum of an op that averages by itself; at a factor of 1 it does not."""
    return _finite(complement(factor)) if isinstance(factor, float) and factor != 1 else None


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def _is_filler(tensors: Tensors, sources: Sequence[str], role: str) -> bool:
    """Whether this is a constant that stands where the layer has no gamma or no beta."""
    op = tensors.producer(sources[0]) if len(sources) == 1 else None
    if op is None or op.type != "Const" or not _NAMELESS.fullmatch(op.name.rpartition("/")[2]):
        return False
    neutral = {"gamma": 1, "beta": 0}.get(role)
    return all(bool((array == neutral).all()) for array in tensors.constants(op.name))


def _without_misfits(norm: Norm, fit: Callable[[str, str], bool]) -> Norm:
    """The same without variables of other sizes; without any where the statistics differ."""
    statistics = [norm.roles[role] for role in STATISTICS if role in norm.roles]
    if any(not fit(statistics[0], key) for key in statistics):
        return replace(norm, roles={})
    fitting = {
        role: key for role, key in norm.roles.items() if not statistics or fit(statistics[0], key)
    }
    return replace(norm, roles=fitting)


def _scope(op: Op) -> str:
    """The layer's name in an op's name: `net/bn1` in `net/bn1/batchnorm/Rsqrt`."""
    *scopes, own = op.name.split("/")
    parts = [part for part in scopes if part and not _CALL.fullmatch(part)]
    if op.type in _FUSED and not _FUSED_NAME.fullmatch(own):
        return "/".join([*parts, own])
    while parts and _INSIDE.fullmatch(parts[-1]):
        parts.pop()
    return "/".join(parts) or (op.name if op.type == _ONNX else "")


_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "QLinearConv"})

_MOST_CANDIDATES = 100
"""Layers that a sighting is compared with, where many share a variable."""


@dataclass(slots=True)
class _Layer:
    """What all graphs say of one layer."""

    scope: str
    roles: dict[str, str] = field(default_factory=dict)
    epsilons: list[float] = field(default_factory=list)
    momentum: float | None = None
    axis: int | None = None
    uses_batch_statistics: bool = False
    inputs: set[tuple[str, str]] = field(default_factory=set)

    def accepts(self, roles: Mapping[str, str]) -> bool:
        """Whether these are roles of this layer: some in common, and none in conflict."""
        common = [role for role in roles if role in self.roles]
        return bool(common) and all(self.roles[role] == roles[role] for role in common)

    def add(self, norm: Norm, graph: str) -> None:
        """Take up what a graph says of this layer."""
        self.uses_batch_statistics |= norm.on_batch
        self.inputs.update((graph, tensor) for tensor in norm.x)
        self.roles.update(norm.roles)
        if norm.epsilon is not None and norm.epsilon not in self.epsilons:
            self.epsilons.append(norm.epsilon)
        self.momentum = norm.momentum if self.momentum is None else self.momentum
        self.axis = norm.axis if self.axis is None else self.axis

    def sighting(self) -> Sighting:
        """What the graphs say, with a note where they disagree."""
        notes: tuple[str, ...] = ()
        if len(self.epsilons) > 1:
            listed = " and ".join(map(repr, self.epsilons))
            notes = (f"its graphs use different epsilons ({listed})",)
        return Sighting(
            evidence="graph",
            name=self.scope,
            roles=self.roles,
            epsilon=self.epsilons[0] if len(self.epsilons) == 1 else None,
            momentum=self.momentum,
            axis=self.axis,
            notes=notes,
            uses_batch_statistics=self.uses_batch_statistics and STATISTICS[1] not in self.roles,
            inputs=frozenset(self.inputs),
        )


class _Layers:
    """The layers that graphs have shown so far, in the order in which they came.

    Attributes:
        unfinished: keys of variables of layers of which another graph can tell more.
    """

    def __init__(self, with_momentum: bool) -> None:
        self._with_momentum = with_momentum
        self._layers: list[_Layer] = []
        self._by_key: dict[str, list[_Layer]] = {}
        self.unfinished: set[str] = set()

    def add(self, norm: Norm, graph: str) -> None:
        """Take up what the graph of that name shows: of a known layer, or of a new one."""
        # The statistics are a layer's own; gamma and beta may be those of many.
        keys = [norm.roles[role] for role in reversed(ROLES) if role in norm.roles]
        candidates = (layer for key in keys for layer in self._by_key.get(key, ()))
        for layer in islice(candidates, _MOST_CANDIDATES):
            if layer.accepts(norm.roles):
                break
        else:
            layer = _Layer(norm.scope)
            self._layers.append(layer)
        for key in set(norm.roles.values()) - set(layer.roles.values()):
            self._by_key.setdefault(key, []).append(layer)
        layer.add(norm, graph)
        known = "moving_variance" in layer.roles and layer.epsilons
        if known and (layer.momentum is not None or not self._with_momentum):
            self.unfinished.difference_update(layer.roles.values())
        else:
            self.unfinished.update(layer.roles.values())

    def sightings(self) -> list[Sighting]:
        """What the graphs say of each layer."""
        return [layer.sighting() for layer in self._layers]


def from_graphs(contents: Contents) -> list[Sighting]:
    """The batch-norm layers that a file's graphs show, in the order of the network.

    A graph whose variables have all been seen in others, with all that is wanted of them, is
    not looked at; momentum is not wanted where layer configurations tell it.
    """
    variables = contents.variables

    def fit(one: str, other: str) -> bool:
        first, second = variables.get(one), variables.get(other)
        return first is None or second is None or prod(first.shape) == prod(second.shape)

    def doubt(key: str) -> int | None:
        name = contents.name_of(key)
        reason = set_apart(key, name)
        if reason == ACCUMULATOR or name.endswith(RENORM):
            return None
        return 0 if reason is None else 1

    layers = _Layers(with_momentum=not contents.layers)
    seen: set[str] = set()
    steps = Steps()
    for graph in contents.graphs() if contents.graphs else ():
        keys = set(graph.variables.values())
        if keys <= seen and layers.unfinished.isdisjoint(keys):
            continue
        seen |= keys
        for norm in find_norms(Tensors(graph, steps), fit, doubt):
            layers.add(norm, graph.name)
    return layers.sightings()


def folded(contents: Contents) -> list[str]:
    """A note on where an exporter folded batch norm, for a file in which no layer is left.

    Converters from TensorFlow join the names of what they fold. Where the names are gone, a bias
    that convolutions have may stem from a batch norm.
    """
    if contents.source.format != "onnx" or contents.graphs is None:
        return []
    (graph,) = contents.graphs()
    named: Counter[bool] = Counter()
    biased = 0
    for op in graph.ops.values():
        keys = [graph.variables[name] for name in op.inputs if name in graph.variables]
        is_convolution = op.type in _CONVOLUTIONS
        named[is_convolution] += any(CALLED.search(key) is not None for key in keys)
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
