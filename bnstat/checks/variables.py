"""Rules about stored variables: missing variables, unequal shapes, copies, unusual values."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bnstat.checks.rule import (
    SMALLEST_DEFAULT_EPSILON,
    Finding,
    Numbers,
    Rule,
    Severity,
    Thresholds,
    as_rule,
    epsilon_of,
    has_initial_statistics,
    numbers_of,
    of_channels,
    scale_of,
    statistics_of,
)
from bnstat.model import ROLES, BatchNorm, Model, squeezed
from bnstat.text import count

_DECAYED: Final = 1e-6  # if every |gamma| of a layer is at most this, weight decay is suspected


@as_rule("BN004", "not-finite", "error", "a value is NaN or infinite")
def _not_finite(rule: Rule[Model], model: Model, _: Thresholds) -> Iterator[Finding]:
    for layer in model.layers:
        for role in ROLES:
            numbers = numbers_of(layer, role)
            if numbers is None or np.isfinite(numbers).all():
                continue
            bad = ~np.isfinite(numbers)
            nan = int(np.isnan(numbers).sum())
            infinite = int(bad.sum()) - nan
            kinds = [kind for kind, count in (("NaN", nan), ("infinite", infinite)) if count]
            message = f"{role.replace('_', ' ')} is {' or '.join(kinds)} in {of_channels(bad)}"
            yield rule.finding(message, layer.name, bad, nan=nan, infinite=infinite)


def _variances(model: Model) -> Iterator[tuple[BatchNorm, Numbers]]:
    """Yield each layer that has a moving variance, and the variance as a flat array."""
    for layer in model.layers:
        variance = numbers_of(layer, "moving_variance")
        if variance is not None:
            yield layer, variance


@as_rule("BN005", "negative-variance", "error", "a moving variance is below 0")
def _negative_variance(rule: Rule[Model], model: Model, _: Thresholds) -> Iterator[Finding]:
    for layer, variance in _variances(model):
        if not (negative := variance < 0).any():
            continue
        least = float(variance[negative].min())
        epsilon = epsilon_of(layer)
        severity: Severity = "warning" if least + epsilon > 0 else "error"
        message = f"moving variance is negative in {of_channels(negative)}, down to {least:.3g}; "
        if severity == "error":
            message += "variance + epsilon is not positive, so its square root is NaN"
        elif layer.epsilon is None:
            message += f"epsilon is not stored; it must be above {-least:.3g}"
        else:
            message += f"variance + epsilon ({epsilon:g}) is still positive"
        mean = numbers_of(layer, "moving_mean")
        if mean is not None and mean.size > 1 and negative.mean() > 0.2 and (mean >= 0).all():
            message += "; no moving mean is negative: mean and variance may be swapped"
        yield rule.finding(
            message, layer.name, negative, severity=severity, least=least, epsilon=layer.epsilon
        )


def is_collapsed(layer: BatchNorm, thresholds: Thresholds) -> bool:
    """Return True if the variance of every channel is near 0, by `thresholds.collapsed`."""
    variance = numbers_of(layer, "moving_variance")
    if variance is None or not variance.size:
        return False
    return bool(variance.min() >= 0 and variance.max() <= _collapsed_limit(layer, thresholds))


def _collapsed_limit(layer: BatchNorm, thresholds: Thresholds) -> float:
    return thresholds.collapsed * epsilon_of(layer, SMALLEST_DEFAULT_EPSILON)


@as_rule("BN006", "collapsed-variance", "warning", "the moving variance of channels is near 0")
def _collapsed(rule: Rule[Model], model: Model, thresholds: Thresholds) -> Iterator[Finding]:
    dead = [layer for layer in model.layers if is_collapsed(layer, thresholds)]
    if len(dead) > 1:
        gammas = (numbers_of(layer, "gamma") for layer in dead)
        sizes = [np.abs(gamma).max() for gamma in gammas if gamma is not None and gamma.size]
        part = f"{len(dead)} of {len(model.layers)} layers"
        message = f"the output of {part} does not depend on the input"
        if decayed := sum(size <= _DECAYED for size in sizes):
            message += f"; in {decayed} of them every |gamma| is below {_DECAYED:g}: weight decay?"
        yield rule.finding(message, layers=len(dead))
    for layer, variance in _variances(model):
        limit = _collapsed_limit(layer, thresholds)
        collapsed = (variance >= 0) & (variance <= limit)
        if not collapsed.any():
            continue
        message = f"moving variance is at most {limit:.2g} in {of_channels(collapsed)}"
        severity: Severity = "info"
        if zero := int((variance == 0).sum()):
            message += f", exactly 0 in {zero}"
        if collapsed.all():
            severity = "warning"
            message += "; the layer's output does not depend on its input"
        yield rule.finding(
            message, layer.name, collapsed, severity=severity, zero=zero, below=limit
        )


@as_rule("BN007", "exploding-scale", "warning", "|gamma| / sqrt(variance + epsilon) is huge")
def _exploding_scale(rule: Rule[Model], model: Model, thresholds: Thresholds) -> Iterator[Finding]:
    for layer in model.layers:
        scale = scale_of(layer)
        if scale is None:
            continue
        scale = np.where(np.isfinite(scale), np.abs(scale), 0)  # other rules report NaN
        if not (exploding := scale > thresholds.scale).any():
            continue
        bound = "at least " if layer.epsilon is None else ""
        largest = float(scale.max())
        above = f"above {thresholds.scale:g} in {of_channels(exploding)}"
        message = f"|gamma| / sqrt(variance + epsilon) is {above}, up to {bound}{largest:.3g}"
        yield rule.finding(message, layer.name, exploding, largest=largest, epsilon=layer.epsilon)


@as_rule("BN008", "outlying-variance", "info", "a moving variance is far above the median")
def _outlying(rule: Rule[Model], model: Model, thresholds: Thresholds) -> Iterator[Finding]:
    for layer, variance in _variances(model):
        finite = np.isfinite(variance)
        alive = variance[finite & (variance > _collapsed_limit(layer, thresholds))]
        if alive.size < 4:
            continue
        median = float(np.median(alive))
        outlying = finite & (variance > thresholds.outlier * median)
        if outlying.any():
            largest = float(variance[outlying].max())
            where = f"{of_channels(outlying)} ({largest:.3g}, median {median:.3g})"
            times = f"{largest / median:.2g} times the layer's median"
            message = f"moving variance is up to {times} in {where}"
            yield rule.finding(message, layer.name, outlying, largest=largest, median=median)


def _off_channels(
    model: Model, thresholds: Thresholds
) -> Iterator[tuple[BatchNorm, NDArray[np.bool_], Numbers]]:
    """Yield (layer, mask of channels with |gamma| near 0, |beta|) for each layer with a gamma."""
    for layer in model.layers:
        gamma, beta = numbers_of(layer, "gamma"), numbers_of(layer, "beta")
        if gamma is not None and (beta is None or beta.shape == gamma.shape):
            betas = np.zeros_like(gamma) if beta is None else np.abs(beta)
            yield layer, np.abs(gamma) < thresholds.gamma, betas


@as_rule("BN009", "near-zero-gamma", "info", "channels are off: gamma is near 0")
def _near_zero_gamma(rule: Rule[Model], model: Model, thresholds: Thresholds) -> Iterator[Finding]:
    for layer, off, betas in _off_channels(model, thresholds):
        if (prunable := off & (betas < thresholds.beta)).any():
            limits = f"|gamma| < {thresholds.gamma:g} and |beta| < {thresholds.beta:g}"
            message = f"{limits} in {of_channels(prunable)}: can be pruned"
            yield rule.finding(message, layer.name, prunable)


@as_rule("BN010", "constant-output", "info", "gamma is near 0, but beta is not")
def _constant_output(rule: Rule[Model], model: Model, thresholds: Thresholds) -> Iterator[Finding]:
    for layer, off, betas in _off_channels(model, thresholds):
        if (constant := off & (betas >= thresholds.beta)).any():
            largest = float(betas[constant].max())
            off_in = f"|gamma| < {thresholds.gamma:g} in {of_channels(constant)}"
            message = f"{off_in}, but |beta| up to {largest:.3g}: pruning changes the output"
            yield rule.finding(message, layer.name, constant, largest_beta=largest)


@as_rule("BN011", "missing-statistics", "error", "moving statistics are not in the file")
def _missing_statistics(rule: Rule[Model], model: Model, _: Thresholds) -> Iterator[Finding]:
    for layer in (*model.incomplete, *model.layers):
        missing = [role.replace("_", " ") for role in ROLES[2:] if role not in layer.variables]
        if missing and layer.uses_batch_statistics:
            message = "exported in training mode: the layer uses batch statistics and stores none"
            yield rule.finding(message, layer.name, severity="info")
        elif missing and not layer.undecided:
            are_missing = "are not in the file" if len(missing) > 1 else "is not in the file"
            severity: Severity = "warning" if layer.evidence == "name" else "error"
            message = f"{' and '.join(missing)} {are_missing}"
            yield rule.finding(message, layer.name, severity=severity)


@as_rule("BN012", "unequal-shapes", "error", "variables have different shapes")
def _unequal_shapes(rule: Rule[Model], model: Model, _: Thresholds) -> Iterator[Finding]:
    for layer in (*model.incomplete, *model.layers):
        shapes = {role: layer.variables[role].shape for role in ROLES if role in layer.variables}
        different = set(map(squeezed, shapes.values()))
        if len(different) > 1:
            listed = ", ".join(f"{role.replace('_', ' ')} {list(shapes[role])}" for role in shapes)
            message = f"its variables have different shapes: {listed}"
            others = {squeezed(other.shape) for other in model.layers if other is not layer}
            if len(different) == 2 and different <= others:
                message += "; other layers have both shapes: two layers may have been saved under "
                message += "one name"
            yield rule.finding(message, layer=layer.name)


@as_rule("BN013", "copied-statistics", "warning", "moving statistics of another layer")
def _copied_statistics(rule: Rule[Model], model: Model, _: Thresholds) -> Iterator[Finding]:
    originals: dict[bytes, BatchNorm] = {}
    for layer in model.layers:
        statistics = statistics_of(layer)
        if statistics is None or has_initial_statistics(layer) or not statistics[0].any():
            continue
        content = b"".join(numbers.tobytes() for numbers in statistics)
        digest = hashlib.blake2b(content, digest_size=16).digest()
        original = originals.setdefault(digest, layer)
        if original is layer:
            continue
        is_same = all(_is_equal(layer, original, role) for role in ("gamma", "beta"))
        is_fine = is_same or not _must_differ(layer, original, model)
        message = f"has the same moving mean and variance as {original.name!r}, "
        message += "and the same gamma and beta" if is_same else "but different gamma or beta"
        yield rule.finding(message, layer.name, severity="info" if is_fine else "warning")


def _must_differ(layer: BatchNorm, original: BatchNorm, model: Model) -> bool:
    """Return True if equal statistics of two layers show that the model is wrong.

    If a graph contains both layers, only layers with the same input may have equal statistics.
    Without a graph, only converted models are judged wrong.
    """
    shared = {graph for graph, _ in layer.inputs} & {graph for graph, _ in original.inputs}
    if shared:
        return layer.inputs.isdisjoint(original.inputs)
    return model.source.is_converted


def _is_equal(layer: BatchNorm, original: BatchNorm, role: str) -> bool:
    a, b = numbers_of(layer, role), numbers_of(original, role)
    return a is b if a is None or b is None else np.array_equal(a, b, equal_nan=True)


@as_rule("BN016", "undecided", "info", "the file does not record some roles")
def _undecided(rule: Rule[Model], model: Model, _: Thresholds) -> Iterator[Finding]:
    for layer in (*model.incomplete, *model.layers):
        if not layer.undecided:
            continue
        variables = f"{count(len(layer.undecided), 'variable')} of shape {list(layer.shape)}"
        message = f"the roles of {variables} are not stored"
        if len(layer.undecided) == 1:
            message = f"the role of {variables} is not stored"
        if not layer.variables and layer.evidence == "name":
            message += "; the layer may not be batch norm"
        yield rule.finding(message, layer=layer.name)
