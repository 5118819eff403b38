"""What a converter did to a layer: its statistics moved into gamma and beta, or not.

A converter that rewrites a layer to its scale and shift leaves moving mean 0, moving variance 1
and an epsilon so small that it changes nothing. A layer that was never updated has the same
statistics, but the epsilon of its network, which is never that small. A moving mean of -0.0 is
the result of a computation as well: every library initializes it with 0.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import numpy as np

from bnstat.checks.rule import Finding, Rule, Thresholds, at_start, numbers_of
from bnstat.formats.registry import BY_NAME
from bnstat.model import BatchNorm, Model, Source


def is_converted(source: Source) -> bool:
    """Return True if converters write files of this format, and training does not."""
    row = BY_NAME.get(source.format)
    return row is not None and row.is_converted


def untouched(layer: BatchNorm) -> bool | None:
    """Whether gamma and beta are as they were initialized; None where the layer has neither.

    A beta that was trained is not exactly 0 in every channel, whatever gamma started from.
    """
    beta = numbers_of(layer, "beta")
    if beta is not None:
        return bool((beta == 0).all())
    gamma = numbers_of(layer, "gamma")
    if gamma is not None:
        return bool((gamma == 1).all() or (gamma == 0).all())
    return None


def rewritten(model: Model) -> Literal["surely", "perhaps", "no"]:
    """Whether a converter moved all moving statistics of a model into gamma and beta.

    Not where one layer still has statistics of its own, where gamma and beta are those of the
    start, or where the writer is known to leave them. Surely where every layer's epsilon
    disappears beside the variance 1 in float32, or a moving mean is -0.0; else the file does
    not tell.
    """
    source = model.source
    if not is_converted(source):
        return "no"
    if (source.writer or "").lower().startswith(BY_NAME[source.format].exact_writers):
        return "no"
    if not all(map(at_start, model.layers)) or all(map(untouched, model.layers)):
        return "no"
    if any(map(has_negative_zero, model.layers)) or all(map(_divides_by_one, model.layers)):
        return "surely"
    return "perhaps"


def has_negative_zero(layer: BatchNorm) -> bool:
    """Return True if the moving mean of a channel is -0.0, which no library initializes it with."""
    mean = numbers_of(layer, "moving_mean")
    return mean is not None and bool((np.signbit(mean) & (mean == 0)).any())


def _divides_by_one(layer: BatchNorm) -> bool:
    """Whether the root of the variance 1 and epsilon is exactly 1 in float32."""
    return layer.epsilon is not None and bool(np.float32(1) + np.float32(layer.epsilon) == 1)


def _find_rewritten(rule: Rule[Model], model: Model, thresholds: Thresholds) -> Iterator[Finding]:
    if not model.layers or rewritten(model) != "surely":
        return
    count = len(model.layers)
    are = "its only layer has" if count == 1 else f"all {count} layers have"
    proof = "an epsilon that changes nothing"
    if not all(map(_divides_by_one, model.layers)):
        proof = "a mean of -0.0, which was computed"
    yield rule.finding(
        f"rewritten by a converter: {are} moving mean 0, variance 1 and {proof}; gamma and beta "
        "are scale and shift",
        layers=count,
    )


REWRITTEN: Final[Rule[Model]] = Rule(
    code="BN015",
    name="rewritten",
    title="statistics moved into gamma and beta",
    severity="info",
    what="In a file that a converter wrote, every moving mean is exactly 0, every moving variance "
    "exactly 1, and every epsilon so small that 1 + epsilon is 1 in float32, while gamma and beta "
    "are not those of the start. A moving mean of -0.0 proves the same, whatever the epsilon. Said "
    "once of the whole model, in place of BN001.",
    why="It does no harm: gamma holds gamma / sqrt(variance + epsilon) and beta holds "
    "beta - mean * that, so the network computes the same. The statistics themselves are not in "
    "this file any more, and training cannot go on from it.",
    example="OnnxMLTools from Keras: gamma 1.63 ± 0.69, moving mean 0 ± 0, moving variance 1 ± 0, "
    "epsilon 1e-09.",
    mend={
        "TF1": "Nothing to mend. For the statistics go back to the file it was converted from.",
        "Keras 2": "As for TF1.",
        "Keras 3": "As for TF1.",
    },
    confidence="High: no library's epsilon is that small, and none initializes a mean with -0.0. "
    "Where the epsilon is an ordinary one and no mean is -0.0, nothing in the file tells a "
    "rewritten layer from one that was never updated, and BN001 says that; a file that PyTorch "
    "exported has the statistics of training, and is judged by BN001.",
    threshold="None: exact equality in every channel. float32 has 24 bits: 1 + epsilon is 1 below "
    "6e-8.",
    find=_find_rewritten,
)
