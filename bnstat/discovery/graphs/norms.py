"""Batch normalization in computation graphs.

In inference, a graph computes `gamma * (x - mean) / sqrt(variance + epsilon) + beta`, by one op
(such as `FusedBatchNorm`) or by several ops that compute an equivalent formula, such as `x * s +
(beta - mean * s)` with `s = gamma * rsqrt(variance + epsilon)` (`tf.nn.batch_normalization`).
The results that a graph computes from `r = 1 / sqrt(variance + epsilon)` are expanded to sums of
products of leaves: the root, variables, and other tensors. An expression that equals `x * r * gamma
- mean * r * gamma + beta` normalizes `x`, whichever ops compute it.

In training, a graph uses the mean and variance of the batch. The moving statistics are then the
variables that ops update from these tensors (see `updates`). Layer, group and instance
normalization compute statistics, but update no variables.

A graph records the epsilon of each layer, often its axis and momentum, the roles of variables, and
the order of the network. Several graphs may share variables, and a graph may use a layer several
times. All uses are merged into one layer, at the position of the first use.

Sources: tensorflow/core/ops/nn_ops.cc, tensorflow/python/ops/nn_impl.py,
keras/src/layers/normalization.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod

from bnstat.discovery.configuration import NAMED_BATCH_NORM
from bnstat.discovery.graphs.tensors import SUMS, Leaf, Steps, Tensors
from bnstat.discovery.graphs.updates import AVERAGING, STATISTICS, Updates, complement
from bnstat.discovery.merge import Merger, Sighting
from bnstat.discovery.schemes import ACCUMULATOR, RENORM, describe_lookalike
from bnstat.formats.contents import Contents, Op
from bnstat.model import ROLES, StatisticsMode, Variable

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

_DEFAULT_EPSILON = 1e-4
"""The epsilon of TensorFlow's fused ops if a graph omits the attribute."""

_ONNX_DEFAULTS = {"epsilon": 1e-5, "momentum": 0.9}
"""The defaults of ONNX's op in all of its versions (docs/Operators.md of ONNX)."""

_CHANNEL_AXES = {"NHWC": 3, "NCHW": 1, "NDHWC": 4, "NCDHW": 1}

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "QLinearConv"})

_ARITHMETIC = SUMS | {"Mul", "RealDiv", "Div", "Sub", "Neg", "Reciprocal", "Inv"}

_LARGEST_CONE = 128
"""The limit on ops after a root that are expanded: a normalization has at most ten, gradients have
many."""

_MOST_TERMS = 6

_MOST_FACTORS = 6

_RSQRT = Leaf(("1 / sqrt(variance + epsilon)",))
_SQRT = Leaf(("sqrt(variance + epsilon)",))

_Product = tuple[Leaf, ...]
_Expression = Mapping[_Product, int]
"""A sum of products: product (leaves in a fixed order) -> coefficient."""

_CALL = re.compile(r"(?:branch|(?:Stateful)?PartitionedCall)(?:_\d+)?")
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
        normalizes: the statistics that normalize: `batch`, `stored`, or `either` if an input of the
            graph selects one of the two.
    """

    axis: int | None = None
    op: str = ""
    x: tuple[str, ...] = ()
    normalizes: StatisticsMode = "stored"


def from_graphs(contents: Contents) -> list[Sighting]:
    """Return the batch-norm layers in a file's graphs, in network order.

    A graph is skipped if, for every layer whose variables it contains, earlier graphs already show
    the moving variance, epsilon and momentum. Momentum is not required if the file has layer
    configurations.
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
    """Return the batch normalizations of a graph, in the order of the network.

    ONNX's `BatchNormalization` is included even if the file contains none of its inputs. A variable
    whose size differs from the moving statistics is left out. `doubt` returns, for the key of a
    variable, a number that is larger the less likely the variable is a moving statistic; None if it
    is not one.
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
    """Remove the roles of variables whose size differs from the moving statistics.

    If the sizes of mean and variance differ, all roles are removed.
    """
    sizes = {
        role: prod(variables[key].shape) for role, key in norm.roles.items() if key in variables
    }
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
            norm.momentum = _onnx_momentum(op)
        elif "moving_variance" not in norm.roles:
            return None
    return norm


def _roles(tensors: Tensors, operands: Mapping[str, Leaf | None]) -> dict[str, str]:
    """Return role -> key for those operands (role -> leaf) that are variables."""
    return {
        role: leaf.key
        for role, leaf in operands.items()
        if leaf is not None and leaf.key is not None and not _is_filler(tensors, leaf, role)
    }


def _add_updated(norm: Norm, computed: Mapping[str, Sequence[str]], updates: Updates) -> None:
    """Add to `norm` the moving statistics that are updated from the computed statistics.

    `computed` maps role -> tensors of the statistic that the layer computes.
    """
    keys = {role: updates.key(tensors) for role, tensors in computed.items()}
    norm.roles = {**{role: key for role, key in keys.items() if key is not None}, **norm.roles}
    norm.uses_batch_statistics = norm.roles.keys().isdisjoint(STATISTICS) and not any(
        updates.follow(tensors) for tensors in computed.values()
    )


def _fused_axis(tensors: Tensors, op: Op, inputs: Sequence[str]) -> int | None:
    """Return the channel axis of the input of a fused op; None if unknown.

    The axis is -1 if the input is a matrix that is reshaped to images only for the op.
    """
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
    """Return the momentum that an ONNX op records; None if unknown.

    If the op does not record it, the default of ONNX is used only if the op trains, because
    converters for inference omit the momentum of the network.
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
    is_on_batch = (
        norm.uses_batch_statistics and is_moment and _is_batch_moment(tensors, formula.mean)
    )
    # Weights are standardized over the first axis as well, by statistics of their own.
    return norm if is_on_batch and norm.roles and formula.x.key is None else None


@dataclass(frozen=True, slots=True)
class _Formula:
    """A normalization: `gamma * (x - mean) * r + beta` with `r = 1 / sqrt(variance + epsilon)`.

    Attributes:
        op: the op that computes the result.
        x, mean, gamma, beta: the operands; None if the formula has no gamma or beta.
    """

    op: str
    x: Leaf
    mean: Leaf
    gamma: Leaf | None
    beta: Leaf | None


def _normalization(tensors: Tensors, root: str) -> _Formula | None:
    """Return the normalization that ops compute from the op `root` (a square root), or None."""
    after = tensors.downstream(root, _ARITHMETIC, _LARGEST_CONE)
    for expand_differences in (False, True):
        expansion = _Expansion(tensors, root, frozenset(after), expand_differences)
        best: _Formula | None = None
        for name in after:
            formula = _formula(name, expansion.of_op(name))
            if formula is None:
                continue
            if best is None:
                best = formula
                if tensors.ops[name].type in SUMS:
                    break
            elif _completes(formula, best):
                best = formula
        if best is not None:
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
    if expression is None or not 2 <= len(expression) <= 3:
        return None
    scaled = {product: times for product, times in expression.items() if _RSQRT in product}
    free = [product for product in expression if product not in scaled]
    inputs = [product for product, times in scaled.items() if times == 1]
    means = [product for product, times in scaled.items() if times == -1]
    if len(inputs) != 1 or len(means) != 1 or len(scaled) != 2 or len(free) > 1:
        return None
    x, mean = Counter(inputs[0]), Counter(means[0])
    shared = x & mean
    gamma = list((shared - Counter([_RSQRT])).elements())
    x, mean = x - shared, mean - shared
    beta = free[0] if free else ()
    if x.total() != 1 or mean.total() != 1 or len(gamma) > 1 or len(beta) > 1:
        return None
    if free and (not beta or expression[beta] != 1):
        return None
    (x_leaf,), (mean_leaf,) = x, mean
    # A frozen network may normalize a constant, but none normalizes its own statistics.
    is_statistic = x_leaf.key is not None and x_leaf.key == mean_leaf.key
    if shared[_RSQRT] != 1 or is_statistic:
        return None
    return _Formula(op, x_leaf, mean_leaf, gamma[0] if gamma else None, beta[0] if beta else None)


class _Expansion:
    """Expressions of the tensors that are computed from the op `root`, a square root.

    With `differences`, a difference that does not depend on the root is expanded, too.
    """

    def __init__(
        self, tensors: Tensors, root: str, after: frozenset[str], differences: bool
    ) -> None:
        self._tensors = tensors
        self._root = root
        self._after = after
        self._differences = differences
        self._of_ops: dict[str, _Expression | None] = {}

    def of_op(self, name: str) -> _Expression | None:
        """Return the expression of an op; None if it is too large or uses other arithmetic."""
        if name not in self._of_ops:
            self._of_ops[name] = None  # the expression of an op that depends on itself
            self._of_ops[name] = self._compute(name)
        return self._of_ops[name]

    def _of_tensor(self, tensor: str) -> _Expression:
        leaf = self._tensors.leaf(tensor)
        op = self._tensors.producer(tensor)
        if op is None or leaf.key is not None:
            return {(leaf,): 1}
        if op.name == self._root:
            return {(_RSQRT if op.type == "Rsqrt" else _SQRT,): 1}
        inside = self.of_op(op.name) if op.name in self._after else self._before(op)
        return {(leaf,): 1} if inside is None else inside

    def _before(self, op: Op) -> _Expression | None:
        """Return the expression of an op that does not depend on the root, or None."""
        inputs = self._tensors.inputs(op.name)
        if op.type == "Const":
            return {(): 1} if self._tensors.scalars(op.name) == [1.0] else None
        if op.type == "Neg" and len(inputs) == 1:
            return {(self._tensors.leaf(inputs[0]),): -1}
        if not self._differences or len(inputs) != 2:
            return None
        if op.type == "Sub":
            return {(self._tensors.leaf(inputs[0]),): 1, (self._tensors.leaf(inputs[1]),): -1}
        if op.type == "Mul":
            for gamma, difference in (inputs, inputs[::-1]):
                terms = self._tensors.operands(difference, {"Sub"})
                factor = self._tensors.leaf(gamma)
                if terms and factor.key is not None:
                    x, mean = map(self._tensors.leaf, terms)
                    return _product({(factor,): 1}, {(x,): 1, (mean,): -1})
        return None

    def _compute(self, name: str) -> _Expression | None:
        op_type = self._tensors.ops[name].type
        operands = [self._of_tensor(tensor) for tensor in self._tensors.inputs(name)]
        if len(operands) == 1:
            if op_type == "Neg":
                return _product(operands[0], {(): -1})
            return {(_RSQRT,): 1} if operands[0] == {(_SQRT,): 1} else None
        if len(operands) != 2:
            return None
        left, right = operands
        if op_type == "Mul":
            return _product(left, right)
        if op_type in ("RealDiv", "Div"):
            return _product(left, {(_RSQRT,): 1}) if right == {(_SQRT,): 1} else None
        return _sum(left, right, 1 if op_type in SUMS else -1)


def _product(left: _Expression, right: _Expression) -> _Expression | None:
    result: Counter[_Product] = Counter()
    for first, times in left.items():
        for second, more in right.items():
            product = tuple(sorted(first + second, key=lambda leaf: leaf.sources))
            result[product] += times * more
    return _checked(result)


def _sum(left: _Expression, right: _Expression, sign: int) -> _Expression | None:
    result = Counter(left)
    for product, times in right.items():
        result[product] += sign * times
    return _checked(result)


def _checked(expression: Counter[_Product]) -> _Expression | None:
    """Return `expression` as a dict; None if it is too large for a normalization."""
    is_small = len(expression) <= _MOST_TERMS and all(len(p) <= _MOST_FACTORS for p in expression)
    return dict(expression) if is_small else None


def _statistics(tensors: Tensors, variance: Leaf | None) -> StatisticsMode:
    """Return the kind of statistics that a variance belongs to.

    This is `stored` if all sources of the variance are variables, `either` if some are, and `batch`
    if it has no source that is a variable.
    """
    sources = () if variance is None else variance.sources
    stored = [source for source in sources if tensors.variable(source) is not None]
    if not stored:
        return "batch"
    return "stored" if len(stored) == len(sources) else "either"


def _is_batch_moment(tensors: Tensors, leaf: Leaf) -> bool:
    """Return True if a tensor is a mean over the first axis, like batch norm's statistics.

    Layer and instance norm compute statistics over other axes.
    """
    op = tensors.op(leaf.sources[0]) if len(leaf.sources) == 1 else None
    inputs = tensors.inputs(op.name) if op is not None and op.type == "Mean" else ()
    axes = tensors.constants(inputs[1]) if len(inputs) == 2 else []
    return len(axes) == 1 and 0 in axes[0]


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


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

    Converters from TensorFlow give a folded op a name that contains the name of the batch norm. If
    no name shows this, a convolution with a bias is the only sign that batch norm may be folded.
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
        return [f"batch norm was folded into {where}, as names show: {proof.format('proves')}"]
    if biased:
        return [
            f"batch norm may have been folded into {_count(biased, 'convolution')} with a bias: "
            f"{proof.format('decides')}"
        ]
    return []


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
