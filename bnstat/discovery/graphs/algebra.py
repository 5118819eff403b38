"""Symbolic expansion of the results that a graph computes from `1 / sqrt(variance + epsilon)`.

An expression is a sum of products of leaves: the root, variables, and other tensors. An expression
that equals `x * r * gamma - mean * r * gamma + beta` normalizes `x`, whichever ops compute it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from bnstat.discovery.graphs.tensors import SUMS, Leaf, Tensors
from bnstat.formats.contents import Op

_ARITHMETIC = SUMS | {"Mul", "RealDiv", "Div", "Sub", "Neg", "Reciprocal", "Inv"}

_LARGEST_CONE = 128
"""The limit on ops after a root that are expanded: a normalization has at most ten, gradients have
many."""

_MOST_TERMS = 6

_MOST_FACTORS = 6


_RSQRT = Leaf(("1 / sqrt(variance + epsilon)",))
_SQRT = Leaf(("sqrt(variance + epsilon)",))

Product = tuple[Leaf, ...]
Expression = Mapping[Product, int]
"""Product of leaves, in a fixed order -> its coefficient."""


@dataclass(frozen=True, slots=True)
class Formula:
    """A normalization: `gamma * (x - mean) * r + beta`.

    Attributes:
        op: the op that computes the result.
        x, mean: leaves.
        gamma, beta: leaves; None if the formula lacks the factor or term.
    """

    op: str
    x: Leaf
    mean: Leaf
    gamma: Leaf | None
    beta: Leaf | None


def normalization(tensors: Tensors, root: str) -> Formula | None:
    """Return the normalization that is computed from a root, or None.

    Args:
        tensors: the tensors of the graph.
        root: the op that computes `1 / sqrt(...)` or `sqrt(...)`.
    """
    after = tensors.downstream(root, _ARITHMETIC, _LARGEST_CONE)
    for expand_differences in (False, True):
        expansion = _Expansion(tensors, root, frozenset(after), expand_differences)
        best: Formula | None = None
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


def _completes(formula: Formula, other: Formula) -> bool:
    """Return True if `formula` applies a variable as gamma or beta to the result of `other`."""
    is_same = formula.x == other.x and formula.mean == other.mean
    pairs = ((formula.gamma, other.gamma), (formula.beta, other.beta))
    return is_same and all(
        new == old or (old is None and new is not None and new.key is not None)
        for new, old in pairs
    )


def _formula(op: str, expression: Expression | None) -> Formula | None:
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
    return Formula(op, x_leaf, mean_leaf, gamma[0] if gamma else None, beta[0] if beta else None)


class _Expansion:
    """Expressions of the tensors that are computed from a root."""

    def __init__(
        self, tensors: Tensors, root: str, after: frozenset[str], differences: bool
    ) -> None:
        self._tensors = tensors
        self._root = root
        self._after = after
        self._differences = differences
        self._of_ops: dict[str, Expression | None] = {}

    def of_op(self, name: str) -> Expression | None:
        """Return the expression of an op; None if it is too large or uses other arithmetic."""
        if name not in self._of_ops:
            self._of_ops[name] = None  # the expression of an op that depends on itself
            self._of_ops[name] = self._compute(name)
        return self._of_ops[name]

    def _of_tensor(self, tensor: str) -> Expression:
        leaf = self._tensors.leaf(tensor)
        op = self._tensors.producer(tensor)
        if op is None or leaf.key is not None:
            return {(leaf,): 1}
        if op.name == self._root:
            return {(_RSQRT if op.type == "Rsqrt" else _SQRT,): 1}
        inside = self.of_op(op.name) if op.name in self._after else self._before(op)
        return {(leaf,): 1} if inside is None else inside

    def _before(self, op: Op) -> Expression | None:
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

    def _compute(self, name: str) -> Expression | None:
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


def _product(left: Expression, right: Expression) -> Expression | None:
    result: Counter[Product] = Counter()
    for first, times in left.items():
        for second, more in right.items():
            product = tuple(sorted(first + second, key=lambda leaf: leaf.sources))
            result[product] += times * more
    return _checked(result)


def _sum(left: Expression, right: Expression, sign: int) -> Expression | None:
    result = Counter(left)
    for product, times in right.items():
        result[product] += sign * times
    return _checked(result)


def _checked(expression: Counter[Product]) -> Expression | None:
    """Return the expression; None if it is too large for a normalization."""
    is_small = len(expression) <= _MOST_TERMS and all(len(p) <= _MOST_FACTORS for p in expression)
    return dict(expression) if is_small else None
