"""Rules about which statistics a layer has: missing, of unequal shapes, another layer's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

import numpy as np

from bnstat.checks.conversion import is_converted
from bnstat.checks.rule import Finding, Rule, Thresholds, at_start, numbers_of, statistics_of
from bnstat.model import ROLES, BatchNorm, Model, squeezed

_STATISTICS: Final = ("moving_mean", "moving_variance")


def _find_missing(rule: Rule[Model], model: Model, thresholds: Thresholds) -> Iterator[Finding]:
    for layer in (*model.incomplete, *model.layers):
        missing = [role for role in _STATISTICS if role not in layer.variables]
        if missing and layer.uses_batch_statistics:
            yield rule.finding(
                "exported in training mode: no statistics are stored or needed",
                layer=layer.name,
                severity="info",
            )
        elif missing and not layer.undecided:
            titles = " and ".join(role.replace("_", " ") for role in missing)
            yield rule.finding(
                f"{titles} {'are' if len(missing) > 1 else 'is'} not in the file",
                layer=layer.name,
                severity="warning" if layer.evidence == "name" else "error",
            )


MISSING_STATISTICS: Final[Rule[Model]] = Rule(
    code="BN011",
    name="missing-statistics",
    title="moving statistics are not in the file",
    severity="error",
    what="The layer is batch norm, by its config, the object graph, the graph or its scope's "
    "name, but its moving mean or variance is not in the file. A warning, where nothing but the "
    "name says that it is batch norm. Information only, where the graph normalizes each batch by "
    "the statistics of that batch and no variable stores these: such a network runs as it was "
    "exported, but the output for one sample depends on the others in its batch.",
    why="A program that loads the file gets freshly initialized statistics, 0 and 1, usually "
    "without a warning, and inference does not normalize.",
    example="A checkpoint with bn/gamma and bn/beta, but no bn/moving_mean.",
    mend={
        "TF1": "tf.train.Saver(tf.global_variables()), not tf.trainable_variables(): moving "
        "statistics are not trainable.",
        "Keras 2": "Save the model or all of its weights, not model.trainable_weights.",
        "Keras 3": "Save as .keras or .weights.h5: tf.train.Checkpoint(model) leaves out layers "
        "that the model holds in Python lists and dicts.",
    },
    confidence="Certain that they are not there. That it is batch norm is certain but for layers "
    "of which only a name speaks, such as conv1/BatchNorm or bn1.",
    threshold="None.",
    find=_find_missing,
)


def _find_unequal_shapes(
    rule: Rule[Model], model: Model, thresholds: Thresholds
) -> Iterator[Finding]:
    for layer in (*model.incomplete, *model.layers):
        shapes = {role: layer.variables[role].shape for role in ROLES if role in layer.variables}
        if len(set(map(squeezed, shapes.values()))) > 1:
            listed = ", ".join(
                f"{role.replace('_', ' ')} {list(shape)}" for role, shape in shapes.items()
            )
            yield rule.finding(
                f"its variables are of different shapes: {listed}{_collision(layer, model)}",
                layer=layer.name,
            )


def _collision(layer: BatchNorm, model: Model) -> str:
    """A suggestion, if the layer has the variables of two layers whose shapes the model knows."""
    shapes = {squeezed(variable.shape) for variable in layer.variables.values()}
    others = {squeezed(other.shape) for other in model.layers if other is not layer}
    if len(shapes) != 2 or not shapes <= others:
        return ""
    return "; other layers have either shape: two layers may have been saved under one name"


UNEQUAL_SHAPES: Final[Rule[Model]] = Rule(
    code="BN012",
    name="unequal-shapes",
    title="variables of different shapes",
    severity="error",
    what="The layer's gamma, beta, moving mean and moving variance are not of one shape "
    "(dimensions of 1 aside).",
    why="The layer cannot be computed as it is stored: variables of two layers were mixed up "
    "because their names collided, or one was pruned and the others were not.",
    example="gamma [48], beta [48], moving mean [64], moving variance [64].",
    mend={
        "TF1": "Prune all four together; compare with the checkpoint before: bnstat diff OLD NEW.",
        "Keras 2": "As for TF1.",
        "Keras 3": "As for TF1.",
    },
    confidence="Certain about the shapes.",
    threshold="None.",
    find=_find_unequal_shapes,
)


def _find_copied(rule: Rule[Model], model: Model, thresholds: Thresholds) -> Iterator[Finding]:
    first: dict[bytes, BatchNorm] = {}
    for layer in model.layers:
        statistics = statistics_of(layer)
        if statistics is None or at_start(layer) or not statistics[0].any():
            continue
        digest = hashlib.blake2b(digest_size=16)
        for numbers in statistics:
            digest.update(numbers.tobytes())
        original = first.setdefault(digest.digest(), layer)
        if original is layer:
            continue
        same = all(_equal(layer, original, role) for role in ("gamma", "beta"))
        yield rule.finding(
            f"moving mean and variance are exact copies of those of {original.name!r}"
            + (", and so are gamma and beta" if same else ", but gamma or beta is not"),
            layer=layer.name,
            severity="info" if same or not _must_differ(layer, original, model) else "warning",
        )


def _must_differ(one: BatchNorm, other: BatchNorm, model: Model) -> bool:
    """Return True if the statistics of two layers cannot be equal by right.

    A graph that both are in decides: layers of one input have the same statistics. Without a
    graph only a converter is suspected of having copied them.
    """
    shared = {graph for graph, _ in one.inputs} & {graph for graph, _ in other.inputs}
    if shared:
        return one.inputs.isdisjoint(other.inputs)
    return is_converted(model.source)


def _equal(one: BatchNorm, other: BatchNorm, role: str) -> bool:
    a, b = numbers_of(one, role), numbers_of(other, role)
    return a is b if a is None or b is None else np.array_equal(a, b, equal_nan=True)


COPIED_STATISTICS: Final[Rule[Model]] = Rule(
    code="BN013",
    name="copied-statistics",
    title="moving statistics are another layer's",
    severity="warning",
    what="The moving mean and variance are, bit for bit, those of another layer, while gamma or "
    "beta is not. Information only, where gamma and beta are copies as well: one layer stored "
    "twice, or a copy of a network (a target network, a second tower). Information as well, where "
    "the graph shows that both layers normalize the same tensor, and in a file without a graph "
    "that no converter wrote.",
    why="Two layers do not see the same activations: a conversion wrote one layer's statistics "
    "into another.",
    example="moving mean and variance are exact copies of those of 'block1/bn', but gamma or "
    "beta is not.",
    mend={
        "TF1": "Look at the map from names to names that the conversion used; bnstat diff "
        "ORIGINAL CONVERTED shows which layers went astray.",
        "Keras 2": "As for TF1. Numbered names (batch_normalization_10) do not sort as strings.",
        "Keras 3": "As for Keras 2.",
    },
    confidence="Certain about the copy. Two layers that normalize the very same tensor, such as "
    "two heads of a network, are right to have the same statistics. If the file does not show "
    "that they do, leave them out with --ignore BN013.",
    threshold="None: equality of every element. Statistics of the start and means of exactly 0 "
    "do not count.",
    find=_find_copied,
)


def _find_undecided(rule: Rule[Model], model: Model, thresholds: Thresholds) -> Iterator[Finding]:
    for layer in (*model.incomplete, *model.layers):
        if not layer.undecided:
            continue
        number = len(layer.undecided)
        what = f"{number} variable{'s' if number > 1 else ''} of {list(layer.shape)}"
        is_norm = layer.variables or layer.evidence != "name"
        told = "" if is_norm else "; it may be batch norm or not"
        yield rule.finding(f"nothing tells the role of {what}{told}", layer=layer.name)


UNDECIDED: Final[Rule[Model]] = Rule(
    code="BN016",
    name="undecided",
    title="roles that the file does not decide",
    severity="info",
    what="The file numbers the layer's variables and does not name their roles: the layer may be "
    "batch norm without gamma or beta, or one of its variables may be either.",
    why="What is not decided is not checked by the other rules, or not whole.",
    example="A .weights.h5 alone with a layer called norm that has three vectors of one length.",
    mend={
        "TF1": "Files of TensorFlow 1 name their variables; for other names pass --pattern "
        "ROLE=REGEX.",
        "Keras 2": "Give the model's architecture, as model.to_json() writes it: --config FILE.",
        "Keras 3": "As for Keras 2; the config.json of a .keras will do as well. Or check the "
        ".keras itself.",
    },
    confidence="Certain that the file does not decide. Of Keras's own layers only batch norm has "
    "three vectors of one length, but a layer of your own may have them too.",
    threshold="None.",
    find=_find_undecided,
)
