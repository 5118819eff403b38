"""Layers that a converter rewrote: their statistics are now part of gamma and beta.

A converter that rewrites a layer as scale and shift leaves moving mean 0, moving variance 1 and an
epsilon too small to change the result. A layer that was never updated has the same statistics, but
a usual epsilon, which is never that small. A moving mean of -0.0 also shows a conversion: every
library initializes the mean with 0.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import numpy as np

from bnstat.checks.rule import Finding, Rule, Thresholds, all_of, has_initial_statistics, numbers_of
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


def _find_rewritten(rule: Rule[Model], model: Model, _: Thresholds) -> Iterator[Finding]:
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


REWRITTEN: Final = Rule(
    code="BN015",
    name="rewritten",
    title="statistics moved into gamma and beta",
    severity="info",
    what="In a file that a converter wrote, every moving mean is exactly 0, every moving variance "
    "exactly 1, and every epsilon so small that 1 + epsilon is 1 in float32, while gamma and beta "
    "are not initial. A moving mean of -0.0 is the same proof, whatever the epsilon. There is one "
    "finding for the whole model, in place of BN001.",
    why="It does no harm: gamma contains gamma / sqrt(variance + epsilon), and beta contains "
    "beta - mean * gamma / sqrt(variance + epsilon), so the network computes the same. However, "
    "the file no longer contains the statistics, and training cannot continue from it.",
    example="OnnxMLTools from Keras: gamma 1.63 ± 0.69, moving mean 0 ± 0, moving variance 1 ± 0, "
    "epsilon 1e-09.",
    fixes={
        "any library": "Nothing to fix. The statistics are in the file it was converted from.",
    },
    confidence="High: no library has an epsilon that small, and none initializes a mean with -0.0. "
    "If the epsilon is a usual one and no mean is -0.0, the file does not show whether a layer was "
    "rewritten or never updated, and BN001 reports both possibilities. A file that PyTorch "
    "exported contains the statistics of training, and BN001 checks it.",
    threshold="None: exact equality in every channel. float32 has 24 bits: 1 + epsilon is 1 below "
    "6e-8.",
    find=_find_rewritten,
)
