"""Which variables a training graph moves, and towards what.

A moving statistic is moved by `variable -= (variable - new) * (1 - momentum)`
(`assign_moving_average`), or by `variable = variable * momentum + new * (1 - momentum)`
(Keras 3), where `new` is a batch's statistic.

Some keep an accumulator, which starts at zero and is what is moved so. The statistic is then
set to, or moved towards, the accumulator divided by what its start leaves of it:
`biased / (1 - momentum ** step)` (zero debias, Sonnet 2), `average / weight` (batch
renormalization). So the statistic follows what the accumulator follows, and the accumulator
is none.

Sources: tensorflow/python/training/moving_averages.py,
tensorflow/python/layers/normalization.py (1.15), keras/src/layers/normalization,
sonnet/src/moving_averages.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from math import isfinite

from bnstat.discovery.graphs.algebra import SUMS
from bnstat.discovery.graphs.tensors import Tensors
from bnstat.formats.contents import Op
from bnstat.model import ROLES

UPDATES = frozenset({"AssignSub", "AssignSubVariableOp", "Assign", "AssignVariableOp"})

AVERAGING = frozenset(
    {"FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3", "_FusedBatchNormEx"}
)
"""Ops that give moving statistics by themselves, where they are given the old ones."""

_QUOTIENTS = frozenset({"RealDiv", "Div", "DivNoNan"})

STATISTICS = ROLES[2:]


@dataclass(frozen=True, slots=True)
class _Move:
    """What an op does to a variable.

    Attributes:
        op: the op's name.
        variable: the tensors that stand for the variable.
        key: of the variable; None where the file does not have it.
        new: the tensor that the variable is moved towards; empty where it is merely set.
        momentum: the share of itself that it keeps, where that is a constant.
        dividend: where the new value is a quotient, the tensors that its dividend may be.
    """

    op: str
    variable: tuple[str, ...]
    key: str | None
    new: str
    momentum: float | None
    dividend: tuple[str, ...]


class Updates:
    """Which variables the ops of a graph that assign move, and towards what.

    Args:
        tensors: the graph's.
        ops: its ops of the types `UPDATES`.
        doubt: how unlikely a key's variable is to be a moving statistic. Of several that are
            moved alike the least unlikely is taken; None for one that cannot be any.
    """

    def __init__(
        self, tensors: Tensors, ops: Sequence[Op], doubt: Callable[[str], int | None]
    ) -> None:
        self._momenta: dict[str, float] = {}
        self._keys: dict[str, str | None] = {}
        self._tensors = tensors
        self._assigned = [inputs[1] for op in ops if len(inputs := tensors.inputs(op.name)) == 2]
        self._moves = [*_moves(tensors, ops)]
        doubts: dict[str, int] = {}
        for key, move in _of_statistics(self._moves):
            least = doubt(key)
            if least is None:
                continue
            if move.momentum is not None and isfinite(move.momentum):
                self._momenta.setdefault(key, move.momentum)
            for tensor in tensors.reach(move.new):
                before = doubts.setdefault(tensor, least)
                if least < before or tensor not in self._keys:
                    doubts[tensor], self._keys[tensor] = least, key
                elif least == before and self._keys[tensor] != key:
                    self._keys[tensor] = None

    def __bool__(self) -> bool:
        return bool(self._keys)

    @cached_property
    def ops(self) -> Mapping[str, Sequence[str]]:
        """The key of a variable -> the names of the ops that move it."""
        ops: dict[str, list[str]] = {}
        for move in self._moves:
            if move.key is not None:
                ops.setdefault(move.key, []).append(move.op)
        return ops

    def key(self, tensors: Sequence[str]) -> str | None:
        """The key of the variable that is moved towards one of these tensors, if only one is."""
        keys = {self._keys[tensor] for tensor in tensors if tensor in self._keys}
        return keys.pop() if len(keys) == 1 else None

    @cached_property
    def _stored(self) -> set[str]:
        """All tensors that some variable, of the file or not, is set to or moved towards."""
        new = [*self._assigned, *(move.new for move in self._moves if move.new)]
        return set().union(*map(self._tensors.reach, new))

    def follow(self, tensors: Sequence[str]) -> bool:
        """Return True if some variable, of the file or not, follows one of these tensors."""
        return not self._stored.isdisjoint(tensors)

    def momentum(self, roles: Mapping[str, str]) -> float | None:
        """The momentum of the layer with these moving statistics."""
        keys = [roles[role] for role in STATISTICS if role in roles]
        return next((self._momenta[key] for key in keys if key in self._momenta), None)


def complement(share: float) -> float:
    """`1 - share` in decimal, as its author meant it: 0.99 for 0.01."""
    return float(1 - Decimal(repr(share)))


def _of_statistics(moves: Sequence[_Move]) -> Iterator[tuple[str, _Move]]:
    """The moves that say what a statistic follows, each with the statistic's key.

    An accumulator's is that of the statistic that is a fraction of it.
    """
    moved = {move.variable for move in moves}
    fractions = {
        move.dividend: move.key
        for move in moves
        if move.dividend in moved and move.dividend != move.variable
    }
    for move in moves:
        key = fractions.get(move.variable, move.key)
        if key is not None and move.new and move.dividend not in fractions:
            yield key, move


def _moves(tensors: Tensors, ops: Sequence[Op]) -> Iterator[_Move]:
    for op in ops:
        inputs = tensors.inputs(op.name)
        if len(inputs) != 2 or not (variable := tensors.sources(inputs[0])):
            continue
        new, momentum = _new_value(tensors, op, *inputs)
        quotient = tensors.operands(new or inputs[1], _QUOTIENTS)
        dividend = tensors.sources(quotient[0]) if quotient else ()
        if new or dividend:
            yield _Move(op.name, variable, tensors.variable(inputs[0]), new, momentum, dividend)


def _new_value(tensors: Tensors, op: Op, target: str, value: str) -> tuple[str, float | None]:
    """What an op moves a variable towards (empty: nothing), and the share that it keeps."""
    if op.type.startswith("AssignSub"):
        return _step(tensors, target, value)
    if (terms := tensors.operands(value, {"Sub"})) and _same(tensors, terms[0], target):
        return _step(tensors, target, terms[1])
    if terms := tensors.operands(value, SUMS):
        return _mixture(tensors, target, terms)
    maker = tensors.producer(value)
    return (value if maker is not None and maker.type in AVERAGING else ""), None


def _step(tensors: Tensors, target: str, step: str) -> tuple[str, float | None]:
    """`(variable - new) * (1 - momentum)` or `variable - new`, which is subtracted."""
    if (terms := tensors.operands(step, {"Sub"})) and _same(tensors, terms[0], target):
        return terms[1], None
    factors = tensors.operands(step, {"Mul"}) or ()
    for difference, rate in (factors, factors[::-1]) if factors else ():
        terms = tensors.operands(difference, {"Sub"})
        if terms and _same(tensors, terms[0], target):
            return terms[1], _kept_at(tensors, rate)
    return "", None


def _mixture(tensors: Tensors, target: str, terms: tuple[str, str]) -> tuple[str, float | None]:
    """`variable * momentum + new * (1 - momentum)`."""
    for old, new in (terms, terms[::-1]):
        factors = tensors.operands(old, {"Mul"}) or ()
        for variable, momentum in (factors, factors[::-1]) if factors else ():
            if _same(tensors, variable, target):
                momenta = set(tensors.scalars(momentum))
                return new, momenta.pop() if len(momenta) == 1 else None
    return "", None


def _same(tensors: Tensors, tensor: str, target: str) -> bool:
    """Whether a tensor has the numbers of the variable that an op assigns to."""
    key = tensors.variable(target)
    if key is not None:
        return tensors.variable(tensor) == key
    return tensors.sources(tensor) == tensors.sources(target)


def _kept_at(tensors: Tensors, rate: str) -> float | None:
    """The momentum, where `1 - momentum` is a constant or is computed from one.

    In a graph that can be switched to inference, its other value is the one that keeps all.
    """
    if terms := tensors.operands(rate, {"Sub"}):
        momenta = set(tensors.scalars(terms[1])) if tensors.scalars(terms[0]) == [1.0] else set()
    else:
        momenta = {complement(value) for value in tensors.scalars(rate)}
    momenta.discard(1.0)
    return momenta.pop() if len(momenta) == 1 else None
