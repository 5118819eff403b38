"""Rules about which variables a layer has: missing, of unequal shapes, copied, undecided."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from bnstat.checks.rule import (
    Finding,
    Rule,
    Thresholds,
    as_rule,
    count,
    has_initial_statistics,
    numbers_of,
    statistics_of,
)
from bnstat.model import ROLES, BatchNorm, Model, squeezed


@as_rule("BN011", "missing-statistics", "error", "moving statistics are not in the file")
def _missing_statistics(rule: Rule[Model], model: Model, _: Thresholds) -> Iterator[Finding]:
    for layer in (*model.incomplete, *model.layers):
        missing = [
            role.replace("_", " ")
            for role in ("moving_mean", "moving_variance")
            if role not in layer.variables
        ]
        if missing and layer.uses_batch_statistics:
            yield rule.finding(
                "exported in training mode: the layer uses batch statistics and stores none",
                layer=layer.name,
                severity="info",
            )
        elif missing and not layer.undecided:
            yield rule.finding(
                f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not in the file",
                layer=layer.name,
                severity="warning" if layer.evidence == "name" else "error",
            )


@as_rule("BN012", "unequal-shapes", "error", "variables have different shapes")
def _unequal_shapes(rule: Rule[Model], model: Model, _: Thresholds) -> Iterator[Finding]:
    for layer in (*model.incomplete, *model.layers):
        shapes = {role: layer.variables[role].shape for role in ROLES if role in layer.variables}
        if len(set(map(squeezed, shapes.values()))) > 1:
            listed = ", ".join(f"{role.replace('_', ' ')} {list(shapes[role])}" for role in shapes)
            yield rule.finding(
                f"its variables have different shapes: {listed}{_collision(layer, model)}",
                layer=layer.name,
            )


def _collision(layer: BatchNorm, model: Model) -> str:
    """Return a note, or an empty string, on two other layers with the layer's two shapes."""
    shapes = {squeezed(variable.shape) for variable in layer.variables.values()}
    others = {squeezed(other.shape) for other in model.layers if other is not layer}
    if len(shapes) != 2 or not shapes <= others:
        return ""
    return "; other layers have both shapes: two layers may have been saved under one name"


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
        yield rule.finding(
            f"has the same moving mean and variance as {original.name!r}"
            + (", and the same gamma and beta" if is_same else ", but another gamma or beta"),
            layer=layer.name,
            severity="info" if is_same or not _must_differ(layer, original, model) else "warning",
        )


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
        number = len(layer.undecided)
        message = (
            f"{'the role' if number == 1 else 'the roles'} of {count(number, 'variable')} of shape "
            f"{list(layer.shape)} {'is' if number == 1 else 'are'} not stored"
        )
        if not layer.variables and layer.evidence == "name":
            message += "; the layer may not be batch norm"
        yield rule.finding(message, layer=layer.name)
