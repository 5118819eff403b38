"""Rules about which variables a layer has: missing, of unequal shapes, copied, undecided."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

import numpy as np

from bnstat.checks.rule import (
    Finding,
    Rule,
    Thresholds,
    count,
    has_initial_statistics,
    numbers_of,
    statistics_of,
)
from bnstat.model import ROLES, BatchNorm, Model, squeezed


def _find_missing(rule: Rule[Model], model: Model, _: Thresholds) -> Iterator[Finding]:
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


MISSING_STATISTICS: Final = Rule(
    code="BN011",
    name="missing-statistics",
    title="moving statistics are not in the file",
    severity="error",
    what="The layer is batch norm according to its configuration, the object graph, the "
    "computation graph or the name of its scope, but its moving mean or variance is not in the "
    "file. The severity is warning if only the name shows that it is batch norm. It is info if the "
    "graph normalizes each batch with the statistics of that batch, and no variable stores them: "
    "such a network runs as it was exported, but the output for a sample depends on the others in "
    "its batch.",
    why="A program that loads the file gets the initial statistics, 0 and 1, usually without a "
    "warning, and inference does not normalize.",
    example="A checkpoint with bn/gamma and bn/beta, but no bn/moving_mean.",
    fixes={
        "TF1": "Use tf.train.Saver(tf.global_variables()), not tf.trainable_variables(): moving "
        "statistics are not trainable.",
        "Keras 2": "Save the model or all of its weights, not model.trainable_weights.",
        "Keras 3": "Save as .keras or .weights.h5: tf.train.Checkpoint(model) omits layers that "
        "the model holds in Python lists and dicts.",
    },
    confidence="Certain that they are missing. Also certain that the layer is batch norm, except "
    "if the only evidence is a name such as conv1/BatchNorm or bn1.",
    find=_find_missing,
)


def _find_unequal_shapes(rule: Rule[Model], model: Model, _: Thresholds) -> Iterator[Finding]:
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


UNEQUAL_SHAPES: Final = Rule(
    code="BN012",
    name="unequal-shapes",
    title="variables have different shapes",
    severity="error",
    what="The layer's gamma, beta, moving mean and moving variance do not have the same shape, "
    "apart from dimensions of size 1.",
    why="The layer cannot be computed from these variables. Either the variables of two layers "
    "were mixed up because their names collided, or one variable was pruned and the others were "
    "not.",
    example="gamma [48], beta [48], moving mean [64], moving variance [64].",
    fixes={
        "any library": "Prune all four together. Compare with an earlier checkpoint: bnstat diff "
        "OLD NEW.",
    },
    confidence="Certain about the shapes.",
    find=_find_unequal_shapes,
)


def _find_copied(rule: Rule[Model], model: Model, _: Thresholds) -> Iterator[Finding]:
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


COPIED_STATISTICS: Final = Rule(
    code="BN013",
    name="copied-statistics",
    title="moving statistics of another layer",
    severity="warning",
    what="The moving mean and variance are copies of another layer's, bit by bit, while gamma or "
    "beta differs. The severity is info if gamma and beta are identical as well: one "
    "layer that is stored twice, or a copy of a network (a target network, a second tower). It is "
    "also info if the graph shows that both layers normalize the same tensor, and in a file "
    "without a graph that no converter wrote.",
    why="Two layers do not get the same activations: a conversion wrote the statistics of one "
    "layer into another.",
    example="has the same moving mean and variance as 'block1/bn', but another gamma or beta.",
    fixes={
        "any library": "Check the mapping of names that the conversion used; bnstat diff ORIGINAL "
        "CONVERTED shows which layers are wrong.",
        "Keras": "Sort numbered names by number: as strings, batch_normalization_10 comes before "
        "batch_normalization_2.",
    },
    confidence="Certain about the copy. Two layers that normalize the same tensor, such as two "
    "heads of a network, correctly have the same statistics. If the file does not show that they "
    "do, skip this rule with --ignore BN013.",
    threshold="None: equality of every element. Initial statistics and means of exactly 0 do not "
    "count.",
    find=_find_copied,
)


def _find_undecided(rule: Rule[Model], model: Model, _: Thresholds) -> Iterator[Finding]:
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


UNDECIDED: Final = Rule(
    code="BN016",
    name="undecided",
    title="the file does not record some roles",
    severity="info",
    what="The file numbers the layer's variables and does not name their roles: the layer may be "
    "batch norm without gamma or beta, or one of its variables may be either.",
    why="The other rules do not check such variables.",
    example="A .weights.h5 alone with a layer called norm that has three vectors of one length.",
    fixes={
        "TF1": "Files of TensorFlow 1 name their variables. For unusual names, pass --pattern "
        "ROLE=REGEX.",
        "Keras": "Pass the model's architecture, as model.to_json() returns it, or the config.json "
        "of a .keras file: --config FILE. Or check the .keras file itself.",
    },
    confidence="Certain that the file does not record the roles. Of Keras's own layers, only batch "
    "norm has three vectors of one length, but a custom layer may have them too.",
    find=_find_undecided,
)
