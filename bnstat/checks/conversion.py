"""Layers that a converter rewrote: their statistics are now part of gamma and beta.

A converter that rewrites a layer as scale and shift leaves moving mean 0, moving variance 1 and an
epsilon too small to change the result. A layer that was never updated has the same statistics, but
a usual epsilon, which is never that small. A moving mean of -0.0 also shows a conversion: every
library initializes the mean with 0.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from bnstat.checks.rule import (
    Finding,
    Rule,
    Thresholds,
    all_of,
    as_rule,
    has_initial_statistics,
    numbers_of,
)
from bnstat.formats.registry import BY_NAME
from bnstat.model import BatchNorm, Model


def has_initial_weights(layer: BatchNorm) -> bool | None:
    """Return True if gamma and beta have initial values; None if the layer has neither.

    A trained beta is not exactly 0 in every channel, whatever the initial gamma was.
    """
    beta = numbers_of(layer, "beta")
    if beta is not None:
        return bool((beta == 0).all())
    gamma = numbers_of(layer, "gamma")
    if gamma is not None:
        return bool((gamma == 1).all() or (gamma == 0).all())
    return None


def rewritten(model: Model) -> Literal["surely", "perhaps", "no"]:
    """Return how certainly a converter moved all statistics of a model into gamma and beta.

    The result is "no" if a layer has other statistics than 0 and 1, if gamma and beta are initial,
    or if the writer is known to keep statistics. It is "surely" if 1 + epsilon is 1 in float32 for
    every layer, or if a moving mean is -0.0.
    """
    source = model.source
    if not source.is_converted:
        return "no"
    if (source.writer or "").lower().startswith(BY_NAME[source.format].exact_writers):
        return "no"
    if not all(map(has_initial_statistics, model.layers)):
        return "no"
    if all(map(has_initial_weights, model.layers)):
        return "no"
    if any(map(has_negative_zero, model.layers)) or all(map(_divides_by_one, model.layers)):
        return "surely"
    return "perhaps"


def has_negative_zero(layer: BatchNorm) -> bool:
    """Return True if the moving mean of a channel is -0.0, which is not an initial value."""
    mean = numbers_of(layer, "moving_mean")
    return mean is not None and bool((np.signbit(mean) & (mean == 0)).any())


def _divides_by_one(layer: BatchNorm) -> bool:
    return layer.epsilon is not None and bool(np.float32(1) + np.float32(layer.epsilon) == 1)


@as_rule("BN015", "rewritten", "info", "statistics moved into gamma and beta")
def _rewritten(rule: Rule[Model], model: Model, _: Thresholds) -> Iterator[Finding]:
    count = len(model.layers)
    if not count or rewritten(model) != "surely":
        return
    proof = "an epsilon too small to change anything"
    if not all(map(_divides_by_one, model.layers)):
        proof = "a mean of -0.0, which was computed"
    yield rule.finding(
        f"rewritten by a converter: {all_of(count, 'layer')} {'has' if count == 1 else 'have'} "
        f"moving mean 0, variance 1 and {proof}; gamma and beta are scale and shift",
        layers=count,
    )
