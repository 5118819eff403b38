"""Rules about how the moving statistics were updated: never, by half, hardly, too fast."""

from __future__ import annotations

import math
from collections.abc import Iterator
from math import prod
from typing import Final

import numpy as np

from bnstat.checks.conversion import has_negative_zero, rewritten, untouched
from bnstat.checks.rule import (
    Finding,
    Rule,
    Severity,
    Thresholds,
    at_start,
    statistics_of,
)
from bnstat.model import BatchNorm, Model

_REASONS: Final = {
    "no": ": the update ops never ran, and inference does not normalize at all",
    "perhaps": ", or a converter moved all into gamma and beta: nothing in the file tells which "
    "(bnstat diff with the file that it was converted from does)",
}
_UNTRAINED: Final = "; gamma and beta are initial as well: the model was not trained"
_VISIBLE: Final = 1.5
"""The least variance as a multiple of the share, up to which that share is seen in it."""
_MOVED: Final = {
    "no": ", though the network was trained",
    "perhaps": ", though gamma and beta are not initial",
}


def _counted(layer: BatchNorm) -> str:
    """What PyTorch's count of the updates says."""
    count = layer.extra.get("num_batches_tracked")
    if count is None or prod(count.shape) != 1:
        return ""
    return f" (num_batches_tracked {count.read().reshape(-1)[0]})"


def _find_never_updated(
    rule: Rule[Model], model: Model, thresholds: Thresholds
) -> Iterator[Finding]:
    converted = rewritten(model)
    if converted == "surely":
        return
    stuck = [layer for layer in model.layers if at_start(layer) and not has_negative_zero(layer)]
    trained = model.source.step != 0 and (
        len(stuck) < len(model.layers) or any(untouched(layer) is False for layer in stuck)
    )

    gravest: Severity = "error" if converted == "no" else "warning"

    def severity_of(layer: BatchNorm) -> Severity:
        return gravest if trained and not untouched(layer) else "info"

    if len(stuck) == len(model.layers) > 1:
        graver = any(severity_of(layer) == gravest for layer in stuck)
        reason = _REASONS[converted] if graver else _UNTRAINED
        yield rule.finding(
            f"all {len(stuck)} layers still hold the initial statistics{reason}",
            severity=gravest if graver else "info",
            layers=len(stuck),
        )
    for layer in stuck:
        severity = severity_of(layer)
        yield rule.finding(
            "moving mean 0 and variance 1 in "
            + ("its only channel" if layer.channels == 1 else f"all {layer.channels} channels")
            + _counted(layer)
            + ("; gamma and beta are initial as well" if severity == "info" else _MOVED[converted]),
            layer=layer.name,
            severity=severity,
        )


NEVER_UPDATED: Final[Rule[Model]] = Rule(
    code="BN001",
    name="never-updated",
    title="moving statistics are the initial 0 and 1",
    severity="error",
    what="The moving mean is exactly 0 and the moving variance exactly 1 in every channel: the "
    "values they were initialized with. Each such layer is reported, and also the whole model "
    "if it is true of all layers. Information only, if gamma and beta are initial as well "
    "(beta exactly 0 in every channel; without beta, gamma exactly 1 or 0) or if the step is "
    "0, because such a model or layer was not trained. A warning, if a converter wrote the "
    "file and may have moved the statistics into gamma and beta without leaving proof; with "
    "proof, BN015 is reported instead. PyTorch's num_batches_tracked is shown if the file "
    "stores it: 0 means never updated.",
    why="In training the layer normalizes with the statistics of the batch, so the loss falls as "
    "it should. In inference it uses the moving statistics: it subtracts 0 and divides by 1, and "
    "the network sees activations that it was never trained on.",
    example="gamma 0.98 ± 0.2, beta 0.1 ± 0.2, moving mean 0 ± 0, moving variance 1 ± 0.",
    mend={
        "TF1": "Run the update ops with the training step: `with tf.control_dependencies("
        "tf.get_collection(tf.GraphKeys.UPDATE_OPS)): train_op = optimizer.minimize(loss)`, and "
        "collect them after the whole network is built. slim: use slim.learning.create_train_op, "
        "or updates_collections=None.",
        "Keras 2": "In a loop of your own call the model as model(x, training=True); a layer "
        "called without it, or with trainable=False, runs in inference mode. In TF1 graphs run "
        "model.updates with the training step.",
        "Keras 3": "Call the model as model(x, training=True) in a train_step of your own, and "
        "with JAX's stateless_call store the non-trainable variables that it returns.",
        "Without training again": "bnstat recalibrate MODEL --data DATA -o COPY estimates the "
        "statistics from data. In a program, run a few hundred batches of training data through "
        "the network in training mode without an optimizer step, then save.",
    },
    confidence="Certain that the statistics are the initial ones. A layer that is initialized "
    "from a random gamma and has no beta looks trained when it is not.",
    threshold="None: exact equality in every channel.",
    find=_find_never_updated,
)


def _find_half_updated(
    rule: Rule[Model], model: Model, thresholds: Thresholds
) -> Iterator[Finding]:
    for layer in model.layers:
        statistics = statistics_of(layer)
        if statistics is None or not all(np.isfinite(each).all() for each in statistics):
            continue
        mean, variance = statistics
        mean_at_start, variance_at_start = bool((mean == 0).all()), bool((variance == 1).all())
        if mean_at_start == variance_at_start:
            continue
        if variance_at_start:
            message = "moving mean moved, but moving variance is exactly 1 in every channel"
        else:
            message = "moving variance moved, but moving mean is exactly 0 in every channel"
        yield rule.finding(message, layer=layer.name)


HALF_UPDATED: Final[Rule[Model]] = Rule(
    code="BN002",
    name="half-updated",
    title="one moving statistic moved, the other not",
    severity="warning",
    what="One of the two moving statistics left its initial value and the other did not: the "
    "moving variance is exactly 1 in every channel although the mean moved, or the mean exactly "
    "0 although the variance moved.",
    why="Both are updated by the same batch. One that does not change was lost: one of two update "
    "ops was run, a conversion filled in ones or zeros for what it did not find. Where only the "
    "mean is 0 the layer's input may be 0 throughout: the branch before it is dead.",
    example="moving mean 0.3 ± 1.2, moving variance 1 ± 0.",
    mend={
        "TF1": "Run all of tf.GraphKeys.UPDATE_OPS; each layer has two of them.",
        "Keras 2": "Compare with the checkpoint it was converted from: bnstat diff OLD NEW.",
        "Keras 3": "Compare with the checkpoint it was converted from: bnstat diff OLD NEW.",
    },
    confidence="High: float averages of real activations are not exactly 0 or 1 in every channel.",
    threshold="None: exact equality in every channel.",
    find=_find_half_updated,
)


def _find_hardly_warmed_up(
    rule: Rule[Model], model: Model, thresholds: Thresholds
) -> Iterator[Finding]:
    step = model.source.step
    if not step:
        return
    by_momentum: dict[float, list[tuple[BatchNorm, float]]] = {}
    for layer in model.layers:
        statistics = statistics_of(layer)
        if layer.momentum is None or not 0 < layer.momentum < 1 or layer.trainable is False:
            continue
        if statistics is None or at_start(layer):
            continue
        least = float(np.nanmin(statistics[1], initial=math.inf))
        by_momentum.setdefault(layer.momentum, []).append((layer, least))
    for momentum, layers in by_momentum.items():
        share = math.exp(step * math.log(momentum))
        least = min(least for _, least in layers)
        # A variance is the initial 1 times the share, plus averages of variances, which are
        # never negative. One below the share shows that the step does not count the updates.
        if share <= thresholds.initial or least < share * 0.999:
            continue
        needed = math.ceil(math.log(thresholds.initial) / math.log(momentum))
        for layer, _ in layers:
            yield rule.finding(
                f"{share:.0%} of the initial 0 and 1 is still in the moving statistics "
                f"(momentum {momentum:g}, step {step}; {needed} steps bring it to "
                f"{thresholds.initial:.0%})",
                layer=layer.name,
                severity="warning" if least < min(1, _VISIBLE * share) else "info",
                share=share,
                step=step,
                momentum=momentum,
                steps_needed=needed,
            )


HARDLY_WARMED_UP: Final[Rule[Model]] = Rule(
    code="BN003",
    name="hardly-warmed-up",
    title="too few steps to forget the initial 0 and 1",
    severity="warning",
    what="With the momentum m and the step n known, m^n of the initial values 0 and 1 is still "
    "in the moving statistics, so that no variance is below it. Information only, where the least "
    "of the model's variances is above 1, or above one and a half times that share: then nothing "
    "but the checkpoint's name speaks for n being the number of updates.",
    why="The statistics are a mixture of the activations' own and of the initial 0 and 1. With a "
    "true variance of 0.01 and 10 % of the initial 1 left in it, the layer divides by a variance "
    "ten times too large.",
    example="momentum 0.999, step 700: half of the moving variance is the initial 1.",
    mend={
        "TF1": "Train longer, or lower momentum (decay) to 0.9 or 0.99; slim and contrib: "
        "zero_debias_moving_mean=True.",
        "Keras 2": "Train longer, or BatchNormalization(momentum=0.9).",
        "Keras 3": "Train longer, or BatchNormalization(momentum=0.9).",
        "Without training again": "Correct it: mean / (1 - m^n) and "
        "(variance - m^n) / (1 - m^n), or run more batches in training mode without an optimizer.",
    },
    confidence="Exact where the step counts the updates of this layer since its initialization. "
    "Checkpoints are also numbered by epoch or by save: a moving variance below m^n in any layer "
    "of the same momentum disproves the step, and nothing is reported. Layers that started from "
    "pretrained statistics, or whose statistics were estimated, as by bnstat recalibrate, have "
    "no initial 0 and 1 in them; but their variances are seldom all above m^n and one just above "
    "it, as where a channel of little variance rests on what is left of the 1.",
    threshold="`initial`, 0.1 by default: the debiasing term of Adam (Kingma and Ba 2015, "
    "section 3) and of zero_debias in tf.train.ExponentialMovingAverage is this share; a tenth "
    "changes 1 / sqrt(variance) by some 5 % at most, for any true variance above 0.5.",
    find=_find_hardly_warmed_up,
)


def _find_low_momentum(
    rule: Rule[Model], model: Model, thresholds: Thresholds
) -> Iterator[Finding]:
    for layer in model.layers:
        momentum = layer.momentum
        if momentum is not None and momentum < thresholds.momentum:
            window = f"{1 / (1 - momentum):.2g}" if momentum < 1 else "0"
            yield rule.finding(
                f"momentum {momentum:g} averages over the last {window} batches or so",
                layer=layer.name,
                momentum=momentum,
            )


LOW_MOMENTUM: Final[Rule[Model]] = Rule(
    code="BN014",
    name="low-momentum",
    title="statistics follow the last few batches",
    severity="info",
    what="The layer's momentum is so low that its moving statistics follow the last few batches.",
    why="TensorFlow's momentum is the share of the old value that is kept: 0.99 averages over "
    "some 100 batches. PyTorch's is the share of the new one: its 0.1 is 0.9 here. A 0.1 copied "
    "from PyTorch makes inference depend on the last batch of the training.",
    example="momentum 0.1: 90 % of the moving mean is the last batch's mean.",
    mend={
        "TF1": "tf.layers.batch_normalization(momentum=0.9); slim: decay=0.9.",
        "Keras 2": "BatchNormalization(momentum=0.9).",
        "Keras 3": "BatchNormalization(momentum=0.9).",
    },
    confidence="Certain about the number; some networks mean it.",
    threshold="`momentum`, 0.5 by default: below it the last batch weighs more than all before. "
    "The libraries' defaults are 0.99 (Keras, tf.layers) and 0.999 (slim, Sonnet 1).",
    find=_find_low_momentum,
)
