"""Rules about moving statistics: never updated, only one updated, too few steps, low momentum.

A converter that rewrites a layer as scale and shift leaves moving mean 0, moving variance 1 and an
epsilon too small to change the result. A layer that was never updated has the same statistics, but
a larger epsilon, because the default of every library is larger. A moving mean of -0.0 also shows a
conversion: every library initializes the mean with 0.0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Final, Literal, NamedTuple

import numpy as np

from bnstat.checks.rule import (
    Finding,
    Numbers,
    Rule,
    Severity,
    Thresholds,
    all_of,
    as_rule,
    epsilon_of,
    has_initial_statistics,
    numbers_of,
    statistics_of,
)
from bnstat.checks.training_mode import trained_with
from bnstat.checks.variables import is_collapsed
from bnstat.errors import BnstatError
from bnstat.formats.registry import BY_NAME
from bnstat.model import BatchNorm, Model, Variable, as_float64, fetch

_CAUSES: Final = {
    "untrained": "; gamma and beta are initial as well: these layers were not trained",
    "converted": ": the updates never ran, or a converter moved the statistics into gamma and "
    "beta; the file does not show which, but bnstat diff with the original file does",
    "batch": ", and training used the statistics of each batch: inference is broken; bnstat "
    "recalibrate MODEL --data D -o COPY repairs it",
    "stored": ", and training used these: inference is correct; do not recalibrate",
    "unused": ", but the network in the file does not use them: it normalizes with the statistics "
    "of each batch; run bnstat recalibrate MODEL --data D -o COPY before anything reads the stored "
    "ones (a graph built for inference, an export, a port)",
    "unknown": ": if training used the statistics of each batch, inference is broken; if it used "
    "the initial ones, inference is correct; bnstat drift MODEL --data D shows which",
}
"""Cause of the initial statistics -> end of the message about the whole model."""

_COUNT: Final = "num_batches_tracked"
"""PyTorch's count of a layer's updates."""


def _has_initial_weights(layer: BatchNorm) -> bool | None:
    """Return True if gamma and beta still have initial values; None if the layer has neither.

    Gamma is ignored if the layer has a beta. Training changes beta from the initial 0, whereas
    gamma may be initialized with any number.
    """
    if (beta := numbers_of(layer, "beta")) is not None:
        return bool((beta == 0).all())
    if (gamma := numbers_of(layer, "gamma")) is not None:
        return bool((gamma == 1).all() or (gamma == 0).all())
    return None


def rewritten(model: Model) -> Literal["surely", "perhaps", "no"]:
    """Return how certainly a converter moved all statistics of a model into gamma and beta.

    A tiny epsilon in every layer, or a mean of -0.0, is a proof (see the module's documentation).
    """
    source = model.source
    if not source.is_converted:
        return "no"
    if (source.writer or "").lower().startswith(BY_NAME[source.format].exact_writers):
        return "no"
    is_initial = all(map(has_initial_statistics, model.layers))
    if not is_initial or all(map(_has_initial_weights, model.layers)):
        return "no"
    if any(map(_has_negative_zero, model.layers)) or all(map(_divides_by_one, model.layers)):
        return "surely"
    return "perhaps"


def _has_negative_zero(layer: BatchNorm) -> bool:
    mean = numbers_of(layer, "moving_mean")
    return mean is not None and bool((np.signbit(mean) & (mean == 0)).any())


def _divides_by_one(layer: BatchNorm) -> bool:
    return layer.epsilon is not None and bool(np.float32(1) + np.float32(layer.epsilon) == 1)


def _initial_layers(model: Model) -> tuple[Sequence[BatchNorm], str, str]:
    """Return the layers with the initial statistics, the cause (key of `_CAUSES`) and a message."""
    converted = rewritten(model)
    layers = [layer for layer in model.layers if has_initial_statistics(layer)]
    layers = [layer for layer in layers if not _has_negative_zero(layer)]
    number, total = len(layers), len(model.layers)
    if converted == "surely" or not layers:
        return (), "converted", ""
    is_trained = model.source.step != 0 and (
        number < total or any(_has_initial_weights(layer) is False for layer in layers)
    )
    evidence = ""
    if not is_trained or all(map(_has_initial_weights, layers)):
        cause = "untrained"
    elif converted == "perhaps":
        cause = "converted"
    else:
        shown = trained_with(model)
        cause = "unused" if shown.is_unused else shown.trained_with.partition("-")[0]
        evidence = f"; evidence: {shown.reason}"
    part = all_of(total, "layer") if number == total else f"{number} of {total} layers"
    subject = "the only layer still has" if total == 1 else f"{part} still have"
    return layers, cause, f"{subject} the initial statistics{_CAUSES[cause]}{evidence}"


@as_rule("BN001", "never-updated", "error", "moving statistics are the initial 0 and 1")
def _never_updated(rule: Rule[Model], model: Model, _: Thresholds) -> Iterator[Finding]:
    layers, cause, message = _initial_layers(model)
    if not layers or cause in ("stored", "unused"):
        return
    is_trained = cause != "untrained"
    severity: Severity = "error" if cause == "batch" else "warning"
    if is_trained or len(layers) == len(model.layers) > 1:
        whole = severity if is_trained else "info"
        yield rule.finding(message, severity=whole, layers=len(layers))
    is_converted = cause == "converted"
    trained = "gamma and beta are not initial" if is_converted else "the network was trained"
    for layer in layers:
        is_initial = not is_trained or _has_initial_weights(layer) is True
        channels = all_of(layer.channels, "channel") + _counted(layer)
        message = f"moving mean 0 and variance 1 in {channels}"
        message += "; gamma and beta are initial as well" if is_initial else f", although {trained}"
        yield rule.finding(message, layer.name, severity="info" if is_initial else severity)


def _counted(layer: BatchNorm) -> str:
    """Return PyTorch's count of updates in parentheses, if the file stores the count."""
    count = _count_of(layer)
    return "" if count is None else f" ({_COUNT} {count.read().reshape(-1)[0]})"


def _count_of(layer: BatchNorm) -> Variable | None:
    count = layer.extra.get(_COUNT)
    return count if count is not None and math.prod(count.shape) == 1 else None


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
        f"moving mean 0, variance 1 and {proof}; gamma and beta contain the whole scale and shift",
        layers=count,
    )


@as_rule("BN017", "inference-mode", "info", "training used the initial 0 and 1")
def _inference_mode(rule: Rule[Model], model: Model, _: Thresholds) -> Iterator[Finding]:
    layers, cause, message = _initial_layers(model)
    if cause == "stored":
        yield rule.finding(message, layers=len(layers))


@as_rule("BN018", "unused-statistics", "warning", "the network does not read its statistics")
def _unused_statistics(rule: Rule[Model], model: Model, _: Thresholds) -> Iterator[Finding]:
    layers, cause, message = _initial_layers(model)
    if cause == "unused":
        yield rule.finding(message, layers=len(layers))


@as_rule("BN002", "half-updated", "warning", "only one moving statistic was updated")
def _half_updated(rule: Rule[Model], model: Model, thresholds: Thresholds) -> Iterator[Finding]:
    for layer in model.layers:
        statistics = statistics_of(layer)
        if statistics is None or not all(np.isfinite(numbers).all() for numbers in statistics):
            continue
        mean_is_initial = bool((statistics[0] == 0).all())
        variance_is_initial = bool((statistics[1] == 1).all())
        if mean_is_initial == variance_is_initial or is_collapsed(layer, thresholds):
            continue
        message = "moving mean was updated, but moving variance is exactly 1 in every channel"
        if mean_is_initial:
            message = "moving variance was updated, but moving mean is exactly 0 in every channel"
        yield rule.finding(message, layer=layer.name)


_STEP_COUNT: Final = re.compile(
    r"optimizer_weights/(.{1,200}/)?(iterations?|iter)(_\d+)?(:0)?"  # .h5 of Keras 2
    r"|(.{1,200}/)?optimizer/vars/0"  # .keras and .weights.h5
    r"|(.{1,200}/)?(iter|_?iterations)/\.ATTRIBUTES/VARIABLE_VALUE",  # checkpoints of TensorFlow 2
    re.DOTALL,
)
"""The keys under which files store the optimizer's number of steps."""

_LONGEST_KEY: Final = 300

_TRUST_IN_COUNTS: Final = 3.0
_TRUST_IN_NAMES: Final = 1.5
"""The largest ratio (smallest variance / expected remainder of the initial 1) that confirms a step
number: of the optimizer's count (first constant), or in a checkpoint's name (second constant)."""

_PYTORCH_MOMENTUM: Final = 0.9
"""PyTorch's default, as the share of the old value; its state dicts store no momentum."""

_Layers = list[tuple[BatchNorm, Numbers]]


class _Steps(NamedTuple):
    """How many updates there were, the `_TRUST_IN_...` constant, and what the count is called."""

    number: int
    trust: float
    name: str


def _steps(model: Model) -> _Steps | None:
    """Return the number of training steps; None if unknown.

    The optimizer's count, which restarts when a model is compiled again, is preferred to the number
    in a checkpoint's name, which may be an epoch.
    """
    try:
        counts = {
            float(as_float64(variable.read()).ravel()[0])  # Keras 2.0 counts in float32.
            for key, variable in model.stored.items()
            if len(key) <= _LONGEST_KEY and _STEP_COUNT.fullmatch(key) and not variable.shape
            if variable.dtype.startswith(("int", "uint", "float"))
        }
    except BnstatError:
        counts = set()
    counts.discard(0)
    if len(counts) == 1 and (number := counts.pop()) > 0 and number.is_integer():
        return _Steps(int(number), _TRUST_IN_COUNTS, "step")
    # Converted files are not numbered by steps: `face-320.onnx` is named after its image size.
    if not model.source.step or model.source.is_converted:
        return None
    return _Steps(model.source.step, _TRUST_IN_NAMES, "step")


def _steps_of(layer: BatchNorm) -> _Steps | None:
    """Return PyTorch's count of a layer's updates; None if the file does not store one."""
    count = _count_of(layer)
    if count is None or "int" not in count.dtype:
        return None
    number = int(count.read().reshape(-1)[0])
    return _Steps(number, _TRUST_IN_COUNTS, _COUNT) if number > 0 else None


def _by_steps(layers: _Layers, steps: _Steps | None) -> dict[_Steps, _Layers]:
    """Return number of updates -> layers; `steps` is the number for layers without a count."""
    fetch(layer.extra[_COUNT] for layer, _ in layers if _COUNT in layer.extra)
    groups: dict[_Steps, _Layers] = {}
    for layer, variance in layers:
        own = _steps_of(layer)
        if own is None and layer.momentum is not None:
            own = steps
        if own is not None:
            groups.setdefault(own, []).append((layer, variance))
    return groups


def _momentum_of(layer: BatchNorm) -> float | None:
    """Return the momentum, or PyTorch's default for a layer of a state dict."""
    is_unknown = layer.momentum is None and layer.evidence == "name" and _COUNT in layer.extra
    return _PYTORCH_MOMENTUM if is_unknown else layer.momentum


def _by_momentum(model: Model, thresholds: Thresholds) -> dict[float, _Layers]:
    """Return momentum -> (layer, variance) pairs, if the variances may contain the initial 1.

    The remainder of the initial 1 is at most the smallest variance of all layers with the same
    momentum and number of updates. A remainder below epsilon has no effect.
    """
    groups: dict[float, _Layers] = {}
    for layer in model.layers:
        statistics = statistics_of(layer)
        momentum = _momentum_of(layer)
        if momentum is None or not 0 < momentum < 1 or layer.trainable is False:
            continue
        if statistics is not None and not has_initial_statistics(layer):
            groups.setdefault(momentum, []).append((layer, statistics[1]))
    return {
        momentum: layers
        for momentum, layers in groups.items()
        if any(_COUNT in layer.extra for layer, _ in layers)
        or _least(layers) > min(thresholds.initial, *(epsilon_of(layer) for layer, _ in layers))
    }


def _least(layers: _Layers) -> float:
    return min(float(np.nanmin(variance, initial=math.inf)) for _, variance in layers)


@as_rule("BN003", "hardly-warmed-up", "warning", "too few steps to forget the initial 0 and 1")
def _hardly_warmed_up(rule: Rule[Model], model: Model, thresholds: Thresholds) -> Iterator[Finding]:
    groups = _by_momentum(model, thresholds)
    steps = _steps(model) if groups else None
    for momentum, layers in groups.items():
        for own_steps, counted in _by_steps(layers, steps).items():
            yield from _remainders(rule, thresholds, momentum, own_steps, counted)


def _remainders(
    rule: Rule[Model], thresholds: Thresholds, momentum: float, steps: _Steps, layers: _Layers
) -> Iterator[Finding]:
    """Yield a finding for each layer that contains too much of the initial 0 and 1."""
    share = math.exp(steps.number * math.log(momentum))
    least = _least(layers)
    # A variance is the initial 1 times the share, plus averages of variances, which are
    # never negative. A smaller variance shows that the step is not the number of updates.
    if least < share * 0.999:
        return
    for layer, variance in layers:
        numbers = variance[~np.isnan(variance)]
        median = float(np.median(numbers)) if numbers.size else 0.0
        part = share / median if median > 0 else None
        message, shown = "of the initial 0 and 1 is still in the moving statistics", share
        goal = thresholds.initial
        if share <= thresholds.initial:
            if share <= epsilon_of(layer) or part is None or part <= thresholds.initial:
                continue
            message, shown = "of the median moving variance comes from the initial 1", part
            goal *= max((median - share) / (1 - share), epsilon_of(layer))
        needed = math.ceil(math.log(goal) / math.log(momentum))
        is_assumed = layer.momentum is None
        origin = " by PyTorch's default" if is_assumed else ""
        is_confirmed = least < min(1, steps.trust * share) and not is_assumed
        yield rule.finding(
            f"{shown:.0%} {message} (momentum {momentum:g}{origin}, {steps.name} {steps.number}): "
            f"train until {steps.name} {needed} to reduce it to {thresholds.initial:.0%}, or "
            "ignore this if bnstat recalibrate estimated the statistics",
            layer=layer.name,
            severity="warning" if is_confirmed else "info",
            share=share,
            part=part,
            step=steps.number,
            momentum=momentum,
            steps_needed=needed,
        )


@as_rule("BN014", "low-momentum", "info", "statistics follow the last few batches")
def _low_momentum(rule: Rule[Model], model: Model, thresholds: Thresholds) -> Iterator[Finding]:
    for layer in model.layers:
        momentum = layer.momentum
        if momentum is not None and momentum < thresholds.momentum:
            window = f"{1 / (1 - momentum):.2g}" if momentum < 1 else "0"
            message = f"momentum {momentum:g} averages over about the last {window} batches"
            yield rule.finding(message, layer.name, momentum=momentum)
