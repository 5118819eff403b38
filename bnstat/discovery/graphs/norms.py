"""Batch normalization in computation graphs.

In inference, a graph computes `gamma * (x - mean) / sqrt(variance + epsilon) + beta`, by one op
(such as `FusedBatchNorm`) or by several ops that compute an equivalent formula, such as `x * s +
(beta - mean * s)` with `s = gamma * rsqrt(variance + epsilon)` (`tf.nn.batch_normalization`).
The results that a graph computes from `r = 1 / sqrt(variance + epsilon)` are expanded to sums of
products of leaves: `r` (the root), variables, and other tensors. If an expression equals `x * r *
gamma - mean * r * gamma + beta`, the graph normalizes `x`, whichever ops it uses.

In training, a graph uses the mean and variance of the batch. The moving statistics are then the
variables that ops update from these tensors (see `updates`). Layer, group and instance
normalization compute statistics, but update no variables.

Sources: tensorflow/core/ops/nn_ops.cc, tensorflow/python/ops/nn_impl.py,
keras/src/layers/normalization.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from math import isfinite, prod
from typing import NamedTuple

from bnstat.discovery.configuration import NAMED_BATCH_NORM, complement
from bnstat.discovery.graphs.tracing import SUMS, Leaf, Steps, Tensors, op_of
from bnstat.discovery.graphs.training import AVERAGING, STATISTICS, Updates
from bnstat.discovery.merge import Merger, Sighting
from bnstat.discovery.schemes import ACCUMULATOR, RENORM, describe_lookalike
from bnstat.formats.contents import Contents, Op
from bnstat.model import ROLES, StatisticsMode, Variable
from bnstat.text import count

_OLDEST = "BatchNormWithGlobalNormalization"
_CONTRACTIONS = frozenset({"_FusedConv2D", "_FusedDepthwiseConv2dNative"})
_ONNX = "BatchNormalization"
_FUSED = AVERAGING | _CONTRACTIONS | {_OLDEST, _ONNX}

_INPUTS: Mapping[str, Sequence[str]] = {
    _OLDEST: ("x", *STATISTICS, "beta", "gamma"),
    **dict.fromkeys(_CONTRACTIONS, ("x", "filter", *ROLES)),
}
"""Fused op -> names of its inputs. The other fused ops take x and the four roles in order."""

_ROOTS = frozenset({"Rsqrt", "Sqrt"})

_DEFAULT_EPSILON = 1e-4  # of TensorFlow's fused ops
_ONNX_DEFAULTS = {"epsilon": 1e-5, "momentum": 0.9}  # in all versions (docs/Operators.md of ONNX)

_CHANNEL_AXES = {"NHWC": 3, "NCHW": 1, "NDHWC": 4, "NCDHW": 1}

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "QLinearConv"})

_ARITHMETIC = SUMS | {"Mul", "RealDiv", "Div", "Sub", "Neg", "Reciprocal", "Inv"}

_MEANS = frozenset({"Mean", "Sum"})
_SCALINGS = SUMS | {"Mul", "Sub", "Square", "Squeeze"}
"""The ops that compute a mean, and those that compute a moment from a sum."""

_LARGEST_MOMENT = 16  # ops of a moment that are searched for reductions; a variance has seven

_LARGEST_CONE = 128  # ops after a root that are expanded; a normalization has ten, gradients many
_MOST_TERMS = 6
_MOST_FACTORS = 6

_RSQRT = Leaf(("1 / sqrt(variance + epsilon)",))
_SQRT = Leaf(("sqrt(variance + epsilon)",))

_Product = tuple[Leaf, ...]
_Expression = Mapping[_Product, int]
"""A sum of products: product (leaves in a fixed order) -> coefficient."""

_CALL = re.compile(r"(?:branch|(?:Stateful)?PartitionedCall|TRTEngineOp|BatchFunction)(?:_\d+)*")
_INSIDE = re.compile(r"(?:cond|batchnorm|(?:Stateless)?(?:If|Case|While))(?:_\d+)?")
_FUSED_NAME = re.compile(
    r"(?:FusedBatchNorm(?:V\d)?|BatchNormWithGlobalNormalization|BatchNormalization)(?:_\d+)?"
)
"""Components of an op's name that do not belong to the layer's name."""

_NAMELESS = re.compile(r"(?:Const|ones|zeros|ones_like|zeros_like)(?:_\d+)?")


@dataclass(slots=True)
class Norm(Sighting):
    """A batch normalization in a graph. Its name is the layer's name in the graph, or empty.

    Attributes:
        op: the op whose output is the normalized tensor.
        x: the input tensors, several if a switch selects one of them.
        normalizes: the statistics that normalize; `either` if an input of the graph selects them.
    """

    axis: int | None = None
    op: str = ""
    x: tuple[str, ...] = ()
    normalizes: StatisticsMode = "stored"


def from_graphs(contents: Contents) -> list[Sighting]:
    """Return the batch-norm layers in a file's graphs, in network order.

    A graph is skipped if earlier graphs show all its layers with moving variance, epsilon and
    momentum. Momentum is not required if the file has layer configurations.
    """

    def doubt(key: str) -> int | None:
        name = contents.name_of(key)
        description = describe_lookalike(key, name)
        if description == ACCUMULATOR or name.rpartition("/")[2] in RENORM:
            return None
        return 0 if description is None else 1

    merger = Merger()
    epsilons: dict[int, list[float]] = {}
    shown: set[str] = set()
    unfinished: set[str] = set()
    steps = Steps()
    for graph in contents.graphs() if contents.graphs else ():
        keys = set(graph.variables.values())
        if keys <= shown and unfinished.isdisjoint(keys):
            continue
        shown |= keys
        for norm in find_norms(Tensors(graph, steps), contents.variables, doubt):
            norm.inputs = frozenset((graph.name, tensor) for tensor in norm.x)
            layer = merger.add("graphs", norm)
            values = epsilons.setdefault(layer.positions["graphs"], [])
            if norm.epsilon is not None and norm.epsilon not in values:
                values.append(norm.epsilon)
            has_momentum = layer.momentum is not None or bool(contents.layers)
            if "moving_variance" in layer.roles and values and has_momentum:
                unfinished.difference_update(layer.roles.values())
            else:
                unfinished.update(layer.roles.values())
    for layer in merger.layers:
        layer.uses_batch_statistics &= "moving_variance" not in layer.roles
        values = epsilons[layer.positions["graphs"]]
        if len(values) > 1:
            layer.epsilon = None
            listed = " and ".join(map(repr, values))
            layer.notes = (f"its graphs use different epsilons ({listed})",)
    return merger.layers


def find_norms(
    tensors: Tensors,
    variables: Mapping[str, Variable],
    doubt: Callable[[str], int | None] = lambda key: 0,
) -> list[Norm]:
    """Return the batch normalizations of a graph, in network order.

    ONNX's `BatchNormalization` is included even if the file contains none of its inputs. `doubt`
    returns 0 for the key of a variable that may be a moving statistic, a larger number for a less
    likely variable, and None for an impossible variable.
    """
    updates = Updates(tensors, doubt)
    norms = {}
    for op in tensors.of_types(_FUSED | _ROOTS):
        read = _fused if op.type in _FUSED else _spelled_out
        norm = read(tensors, op, updates)
        if norm is None:
            continue
        if norm.momentum is None:
            norm.momentum = updates.momentum(norm.roles)
        if not norm.name and "moving_variance" not in norm.roles:
            norm.name = op.name
        _drop_misfits(norm, variables)
        if norm.roles or op.type == _ONNX:
            norms[norm.op] = norm
    return [norms[name] for name in tensors.in_order(norms)]


def _drop_misfits(norm: Norm, variables: Mapping[str, Variable]) -> None:
    """Remove the roles of variables whose size differs from that of the moving statistics."""
    stored = {role: variables[key] for role, key in norm.roles.items() if key in variables}
    sizes = {role: prod(variable.shape) for role, variable in stored.items()}
    of_statistics = {sizes[role] for role in STATISTICS if role in sizes}
    if len(of_statistics) > 1:
        norm.roles = {}
    elif of_statistics:
        misfits = {role for role, size in sizes.items() if size not in of_statistics}
        norm.roles = {role: key for role, key in norm.roles.items() if role not in misfits}


def is_training(op: Op) -> bool:
    """Return True if a TensorFlow op normalizes with batch statistics."""
    return op.type in AVERAGING and op.attribute("is_training") in (None, True)


def _fused(tensors: Tensors, op: Op, updates: Updates) -> Norm | None:
    """Return the normalization that a single op computes, or None."""
    inputs = tensors.inputs(op.name)
    names = _INPUTS.get(op.type, ("x", *ROLES))
    if op.type in _CONTRACTIONS and op.attribute("num_args") != 4:
        return None  # It adds a bias.
    operands = {
        role: tensors.leaf(tensor)
        for role, tensor in zip(names, inputs, strict=False)
        if role in ROLES
    }
    epsilon = op.attribute("variance_epsilon" if op.type == _OLDEST else "epsilon")
    default = _ONNX_DEFAULTS["epsilon"] if op.type == _ONNX else _DEFAULT_EPSILON
    norm = Norm(
        "graph",
        _scope(op),
        _roles(tensors, operands),
        epsilon=_finite(epsilon if isinstance(epsilon, float) else default),
        axis=_fused_axis(tensors, op, inputs),
        op=op.name,
        x=tensors.sources(inputs[0]) if inputs else (),
        normalizes=_statistics(tensors, operands.get("moving_variance")),
    )
    if is_training(op):
        norm.normalizes = "batch"
        factor = op.attribute("exponential_avg_factor")
        if isinstance(factor, float) and factor != 1:  # At 1 the op does not average.
            norm.momentum = _finite(complement(factor))
        outputs = {role: (f"{op.name}:{n}",) for n, role in enumerate(STATISTICS, 1)}
        _add_updated(norm, outputs, updates)
    elif op.type == _OLDEST and len(inputs) == 5:
        _add_updated(norm, {role: operands[role].sources for role in STATISTICS}, updates)
    else:
        if norm.normalizes == "batch":
            norm.normalizes = "either"  # The op's input does not lead to a variable.
        if op.type == _ONNX:
            momentum = op.attribute("momentum")
            # ONNX's default is no evidence in inference: converters omit the network's momentum.
            if momentum is None and op.attribute("training_mode") == 1:
                momentum = _ONNX_DEFAULTS["momentum"]
            norm.momentum = _finite(momentum)
        elif "moving_variance" not in norm.roles:
            return None
    return norm


def _roles(tensors: Tensors, operands: Mapping[str, Leaf | None]) -> dict[str, str]:
    return {
        role: leaf.key
        for role, leaf in operands.items()
        if leaf is not None and leaf.key is not None and not _is_filler(tensors, leaf, role)
    }


def _add_updated(norm: Norm, computed: Mapping[str, Sequence[str]], updates: Updates) -> None:
    """Add to `norm` the moving statistics that ops update from `computed` (role -> tensors)."""
    keys = {role: updates.key(tensors) for role, tensors in computed.items()}
    norm.roles = {**{role: key for role, key in keys.items() if key is not None}, **norm.roles}
    has_statistics = not norm.roles.keys().isdisjoint(STATISTICS)
    all_computed = chain.from_iterable(computed.values())
    norm.uses_batch_statistics = not has_statistics and updates.averaged.isdisjoint(all_computed)


def _fused_axis(tensors: Tensors, op: Op, inputs: Sequence[str]) -> int | None:
    if op.type == _ONNX:
        return None if op.attribute("spatial") == 0 else 1
    x = tensors.op(inputs[0]) if inputs else None
    shape = tensors.inputs(x.name)[1:2] if x is not None and x.type == "Reshape" else ()
    for array in tensors.constants(shape[0]) if shape else ():
        sizes = array.ravel().tolist()
        if sizes[:1] == [-1] and len(sizes) == 4 and (sizes[1:3] == [1, 1] or sizes[2:] == [1, 1]):
            return -1  # A matrix, which is reshaped to images only for the op.
    return _CHANNEL_AXES.get(str(op.attribute("data_format") or "NHWC"))


def _spelled_out(tensors: Tensors, root: Op, updates: Updates) -> Norm | None:
    """Return the normalization that ops compute from `1 / sqrt(variance + epsilon)`, or None."""
    inputs = tensors.inputs(root.name)
    sums = [
        (variance, epsilons.pop())
        for variance, offset in (tensors.either_order(inputs[0], SUMS) if len(inputs) == 1 else ())
        if len(epsilons := set(tensors.scalars(offset))) == 1 and tensors.variable(offset) is None
    ]
    if not sums:
        return None
    variance, epsilon = sums[0]
    variance_leaf = tensors.leaf(variance)
    is_moment = _is_batch_moment(tensors, variance_leaf)
    if variance_leaf.key is None and not updates and not is_moment:
        return None
    formula = _normalization(tensors, root.name)
    if formula is None:
        return None
    statistics = {"moving_mean": formula.mean, "moving_variance": variance_leaf}
    norm = Norm(
        "graph",
        _scope(root),
        _roles(tensors, {"gamma": formula.gamma, "beta": formula.beta, **statistics}),
        epsilon=_finite(epsilon),
        axis=tensors.axis(variance),
        op=formula.op,
        x=formula.x.sources,
        normalizes=_statistics(tensors, variance_leaf),
    )
    _add_updated(norm, {role: leaf.sources for role, leaf in statistics.items()}, updates)
    if "moving_mean" in norm.roles:
        return norm if "moving_variance" in norm.roles or formula.mean.key is None else None
    is_moment = is_moment and _is_batch_moment(tensors, formula.mean)
    is_on_batch = norm.uses_batch_statistics and is_moment and formula.x.key is None
    # Weights are standardized over the first axis as well, by statistics of their own.
    return norm if is_on_batch and norm.roles else None


class _Formula(NamedTuple):
    """A normalization: `gamma * (x - mean) / sqrt(variance + epsilon) + beta`, computed by `op`."""

    op: str
    x: Leaf
    mean: Leaf
    gamma: Leaf | None
    beta: Leaf | None


def _normalization(tensors: Tensors, root: str) -> _Formula | None:
    """Return the normalization that ops compute from the op `root` (a square root), or None."""
    after = tensors.downstream(root, _ARITHMETIC, _LARGEST_CONE)
    for expands_differences in (False, True):
        expansion = _Expansion(tensors, root, frozenset(after), expands_differences, {})
        formulas = filter(None, (_formula(name, expansion.of_op(name)) for name in after))
        best = next(formulas, None)
        if best is None:
            continue
        if tensors.ops[best.op].type not in SUMS:
            for formula in formulas:
                best = formula if _completes(formula, best) else best
        return best
    return None


def _completes(formula: _Formula, other: _Formula) -> bool:
    """Return True if `formula` applies a variable as gamma or beta to the result of `other`."""
    is_same = formula.x == other.x and formula.mean == other.mean
    pairs = ((formula.gamma, other.gamma), (formula.beta, other.beta))
    return is_same and all(
        new == old or (old is None and new is not None and new.key is not None)
        for new, old in pairs
    )


def _formula(op: str, expression: _Expression | None) -> _Formula | None:
    """Return the normalization that an expression represents, or None."""
    if expression is None:
        return None
    scaled = {times: product for product, times in expression.items() if _RSQRT in product}
    free = [product for product in expression if _RSQRT not in product]
    if scaled.keys() != {1, -1} or len(expression) != 2 + len(free) or len(free) > 1:
        return None
    if any(len(product) != 1 or expression[product] != 1 for product in free):
        return None
    with_x, with_mean = Counter(scaled[1]), Counter(scaled[-1])
    shared = with_x & with_mean
    parts = with_x - shared, with_mean - shared, shared - Counter([_RSQRT])
    x, mean, gamma = (list(leaves.elements()) for leaves in parts)
    if len(x) != 1 or len(mean) != 1 or len(gamma) > 1 or shared[_RSQRT] != 1:
        return None
    # A frozen network may normalize a constant, but none normalizes its own statistics.
    if x[0].key is not None and x[0].key == mean[0].key:
        return None
    beta = free[0][0] if free else None
    return _Formula(op, x[0], mean[0], gamma[0] if gamma else None, beta)


class _Expansion(NamedTuple):
    """The expressions of the tensors that a graph computes from the square root `root`."""

    tensors: Tensors
    root: str
    after: frozenset[str]
    expands_differences: bool  # Also differences that do not depend on the root.
    of_ops: dict[str, _Expression | None]

    def of_op(self, name: str) -> _Expression | None:
        """Return the expression of an op, or None if a normalization cannot contain it."""
        if name not in self.of_ops:
            self.of_ops[name] = None  # the expression of an op that depends on itself
            operands = [self._of_tensor(tensor) for tensor in self.tensors.inputs(name)]
            self.of_ops[name] = _compute(self.tensors.ops[name].type, operands)
        return self.of_ops[name]

    def _of_tensor(self, tensor: str) -> _Expression:
        leaf = self.tensors.leaf(tensor)
        op = self.tensors.producer(tensor)
        if op is None or leaf.key is not None:
            return {(leaf,): 1}
        if op.name == self.root:
            return {(_RSQRT if op.type == "Rsqrt" else _SQRT,): 1}
        inside = self.of_op(op.name) if op.name in self.after else self._before(op)
        return {(leaf,): 1} if inside is None else inside

    def _before(self, op: Op) -> _Expression | None:
        """Return the expression of an op that does not depend on the root, or None."""
        if op.type == "Const":
            return {(): 1} if self.tensors.scalars(op.name) == [1.0] else None
        if op.type == "Neg" or (self.expands_differences and op.type == "Sub"):
            leaves = map(self.tensors.leaf, self.tensors.inputs(op.name))
            return _compute(op.type, [{(leaf,): 1} for leaf in leaves])
        if self.expands_differences:
            for gamma, difference in self.tensors.either_order(op.name, {"Mul"}):
                terms = self.tensors.operands(difference, {"Sub"})
                factor = self.tensors.leaf(gamma)
                if terms and factor.key is not None:
                    x, mean = map(self.tensors.leaf, terms)
                    return _compute("Mul", [{(factor,): 1}, {(x,): 1, (mean,): -1}])
        return None


def _compute(op_type: str, operands: Sequence[_Expression]) -> _Expression | None:
    """Return the result of an arithmetic op, or None if a normalization cannot contain it."""
    if op_type == "Neg":
        operands = [*operands, {(): -1}]
    elif len(operands) == 1 or op_type in ("RealDiv", "Div"):
        # The root may only be a divisor.
        if operands[-1:] != [{(_SQRT,): 1}]:
            return None
        operands = [*operands[:-1], {(_RSQRT,): 1}]
    if len(operands) == 1:
        return operands[0]
    if len(operands) != 2:
        return None
    left, right = operands
    result: Counter[_Product] = Counter()
    if op_type in SUMS or op_type == "Sub":
        result.update(left)
        for product, times in right.items():
            result[product] += times if op_type in SUMS else -times
    else:
        for first, times in left.items():
            for second, more in right.items():
                product = tuple(sorted(first + second, key=lambda leaf: leaf.sources))
                result[product] += times * more
    is_small = len(result) <= _MOST_TERMS and all(len(p) <= _MOST_FACTORS for p in result)
    return dict(result) if is_small else None


def _statistics(tensors: Tensors, variance: Leaf | None) -> StatisticsMode:
    """Return "stored" if all sources of a variance are variables, "batch" if none is."""
    sources = () if variance is None else variance.sources
    stored = [tensors.variable(source) is not None for source in sources]
    if not any(stored):
        return "batch"
    return "stored" if all(stored) else "either"


def _is_batch_moment(tensors: Tensors, leaf: Leaf) -> bool:
    """Return True if a tensor is a mean over the first axis, unlike in layer and instance norm.

    Before TensorFlow 1.3, `tf.nn.moments` computed both moments from sums.
    """
    op = tensors.op(leaf.sources[0]) if len(leaf.sources) == 1 else None
    if op is None:
        return False

    def inputs(name: str) -> Iterator[str]:
        if name in tensors.ops and tensors.ops[name].type in _SCALINGS:
            yield from map(op_of, tensors.inputs(name))

    behind = islice(tensors.walk([op.name], inputs), _LARGEST_MOMENT)
    reductions = [other for other in map(tensors.ops.get, behind) if other and other.type in _MEANS]
    return bool(reductions) and all(_is_over_batch(tensors, other) for other in reductions)


def _is_over_batch(tensors: Tensors, reduction: Op) -> bool:
    inputs = tensors.inputs(reduction.name)
    axes = tensors.constants(inputs[1]) if len(inputs) == 2 else []
    return len(axes) == 1 and 0 in axes[0]


def _finite(value: object) -> float | None:
    return value if isinstance(value, float) and isfinite(value) else None


def _is_filler(tensors: Tensors, leaf: Leaf, role: str) -> bool:
    """Return True if an operand is a constant (1 or 0) in place of a missing gamma or beta."""
    op = tensors.op(leaf.sources[0]) if len(leaf.sources) == 1 else None
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

    Converters from TensorFlow give a folded op a name that contains the name of the batch norm.
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
    proof = "no layer is left to show (bnstat diff ORIGINAL FILE {})"
    if named.total():
        parts = [count(named[True], "convolution")] if named[True] else []
        parts += [count(named[False], "other operation")] if named[False] else []
        where = " and ".join(parts)
        return [f"batch norm was folded into {where}, as names show: {proof.format('proves this')}"]
    if biased:
        return [
            f"batch norm may have been folded into {count(biased, 'convolution')} with a bias: "
            f"{proof.format('decides this')}"
        ]
    return []
