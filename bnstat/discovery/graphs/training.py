"""The variables that a training graph updates, and the new values.

A moving statistic is updated by `variable -= (variable - new) * (1 - momentum)`
(`assign_moving_average`) or by `variable = variable * momentum + new * (1 - momentum)` (Keras 3),
where `new` is a statistic of the batch.

Some layers update an accumulator instead, which starts at zero. A quotient corrects for the zero:
`biased / (1 - momentum ** step)` (zero debias, Sonnet 2) or `average / weight` (batch
renormalization). The statistic is set to the quotient or moved towards the quotient. An update of
the accumulator counts as an update of the statistic.

Sources: tensorflow/python/training/moving_averages.py,
tensorflow/python/layers/normalization.py (1.15), keras/src/layers/normalization,
sonnet/src/moving_averages.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from math import isfinite
from typing import NamedTuple

from bnstat.discovery.configuration import complement
from bnstat.discovery.graphs.tracing import SUMS, Leaf, Tensors
from bnstat.formats.contents import Op
from bnstat.model import ROLES

UPDATES = frozenset({"AssignSub", "AssignSubVariableOp", "Assign", "AssignVariableOp"})

AVERAGING = frozenset(
    {"FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3", "_FusedBatchNormEx"}
)
"""Ops that take old moving statistics as inputs and output new moving statistics."""

_QUOTIENTS = frozenset({"RealDiv", "Div", "DivNoNan"})

STATISTICS = ROLES[2:]


class _Update(NamedTuple):
    """The update of a variable by an op.

    Attributes:
        new: the tensor towards which the variable is moved; empty if the variable is only set.
        momentum: the share of the old value that is kept; None if it is not a constant.
        dividend: the sources of the dividend if the new value is a quotient; empty otherwise.
    """

    op: str
    variable: Leaf
    new: str
    momentum: float | None
    dividend: tuple[str, ...]


class Updates:
    """The updates of variables by the ops of a graph.

    A variable follows a tensor if an op sets the variable to the tensor or moves it towards the
    tensor. If several variables follow a tensor, only the one with the smallest `doubt` counts (see
    `find_norms`).
    """

    def __init__(self, tensors: Tensors, doubt: Callable[[str], int | None]) -> None:
        ops = tensors.of_types(UPDATES)
        self._momenta: dict[str, float] = {}
        self._keys: dict[str, str | None] = {}
        self._tensors = tensors
        self._assigned = [inputs[1] for op in ops if len(inputs := tensors.inputs(op.name)) == 2]
        self._updates = [*_updates(tensors, ops)]
        doubts: dict[str, int] = {}
        for key, update in _of_statistics(self._updates):
            own_doubt = doubt(key)
            if own_doubt is None:
                continue
            if update.momentum is not None and isfinite(update.momentum):
                self._momenta.setdefault(key, update.momentum)
            for tensor in tensors.reach(update.new):
                least = doubts.setdefault(tensor, own_doubt)
                if own_doubt < least or tensor not in self._keys:
                    doubts[tensor], self._keys[tensor] = own_doubt, key
                elif own_doubt == least and self._keys[tensor] != key:
                    self._keys[tensor] = None

    def __bool__(self) -> bool:
        return bool(self._keys)

    @cached_property
    def ops(self) -> Mapping[str, Sequence[str]]:
        """Key of a variable -> the names of the ops that update the variable."""
        ops: dict[str, list[str]] = {}
        for update in self._updates:
            if update.variable.key is not None:
                ops.setdefault(update.variable.key, []).append(update.op)
        return ops

    def key(self, tensors: Sequence[str]) -> str | None:
        """Return the key of the only statistic that follows one of `tensors`, or None."""
        keys = {self._keys[tensor] for tensor in tensors if tensor in self._keys}
        return keys.pop() if len(keys) == 1 else None

    @cached_property
    def averaged(self) -> set[str]:
        """All tensors from which moving averages are updated, even averages that the file lacks."""
        new = [*self._assigned, *(update.new for update in self._updates if update.new)]
        return set().union(*map(self._tensors.reach, new))

    def momentum(self, roles: Mapping[str, str]) -> float | None:
        """Return the momentum of the layer with these roles (role -> key); None if unknown."""
        keys = [roles[role] for role in STATISTICS if role in roles]
        return next((self._momenta[key] for key in keys if key in self._momenta), None)


def _of_statistics(updates: Sequence[_Update]) -> Iterator[tuple[str, _Update]]:
    """Yield (key of the statistic, update) for each update of a statistic or its accumulator."""
    updated = {update.variable.sources for update in updates}
    fractions = {
        update.dividend: update.variable.key
        for update in updates
        if update.dividend in updated and update.dividend != update.variable.sources
    }
    for update in updates:
        key = fractions.get(update.variable.sources, update.variable.key)
        if key is not None and update.new and update.dividend not in fractions:
            yield key, update


def _updates(tensors: Tensors, ops: Sequence[Op]) -> Iterator[_Update]:
    for op in ops:
        inputs = tensors.inputs(op.name)
        if len(inputs) != 2 or not (variable := tensors.leaf(inputs[0])).sources:
            continue
        new, momentum = _new_value(tensors, op, *inputs)
        quotient = tensors.operands(new or inputs[1], _QUOTIENTS)
        dividend = tensors.sources(quotient[0]) if quotient else ()
        if new or dividend:
            yield _Update(op.name, variable, new, momentum, dividend)


def _new_value(tensors: Tensors, op: Op, target: str, value: str) -> tuple[str, float | None]:
    """Return the tensor towards which an op moves the variable `target`, and the momentum."""

    def less_than_target(difference: str) -> str | None:
        """Return `new` if a tensor is `target - new`, else None."""
        terms = tensors.operands(difference, {"Sub"})
        return terms[1] if terms and _is_same(tensors, terms[0], target) else None

    step = value if op.type.startswith("AssignSub") else less_than_target(value)
    if step is not None:
        if (new := less_than_target(step)) is not None:
            return new, None
        for difference, rate in tensors.either_order(step, {"Mul"}):
            if (new := less_than_target(difference)) is not None:
                return new, _share_kept(tensors, rate)
        return "", None  # The variable is set, not moved towards a tensor.
    for old, new in tensors.either_order(value, SUMS):
        for variable, momentum in tensors.either_order(old, {"Mul"}):
            if _is_same(tensors, variable, target):
                momenta = set(tensors.scalars(momentum))
                return new, momenta.pop() if len(momenta) == 1 else None
    producer = tensors.producer(value)
    return (value if producer is not None and producer.type in AVERAGING else ""), None


def _is_same(tensors: Tensors, tensor: str, target: str) -> bool:
    """Return True if a tensor has the values of the variable `target`."""
    one, other = tensors.leaf(tensor), tensors.leaf(target)
    return one.sources == other.sources if other.key is None else one.key == other.key


def _share_kept(tensors: Tensors, rate: str) -> float | None:
    """Return the momentum if `rate`, which is `1 - momentum`, is constant; None otherwise."""
    if terms := tensors.operands(rate, {"Sub"}):
        momenta = set(tensors.scalars(terms[1])) if tensors.scalars(terms[0]) == [1.0] else set()
    else:
        momenta = {complement(value) for value in tensors.scalars(rate)}
    momenta.discard(1.0)  # of inference, in a graph that can be switched
    return momenta.pop() if len(momenta) == 1 else None
