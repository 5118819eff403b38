"""Rules about the updates of the moving statistics: none, one of two, too few, too fast."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bnstat.checks.conversion import has_initial_weights, has_negative_zero, rewritten
from bnstat.checks.rule import (
    Finding,
    Rule,
    Severity,
    Thresholds,
    all_of,
    epsilon_of,
    has_initial_statistics,
    statistics_of,
)
from bnstat.checks.training_mode import trained_with
from bnstat.checks.values import is_collapsed
from bnstat.errors import BnstatError
from bnstat.model import BatchNorm, Model, as_float64

_UNTRAINED: Final = "; gamma and beta are initial as well: the model was not trained"
_CONVERTED: Final = (
    ": the updates never ran, or a converter moved the statistics into gamma and beta; the file "
    "does not show which, but bnstat diff with the original file does"
)
_BATCH: Final = (
    ", and training used the statistics of each batch: inference is broken; bnstat recalibrate "
    "MODEL --data D -o COPY repairs it"
)
_UNKNOWN: Final = (
    ": if training used the statistics of each batch, inference is broken; if it used the initial "
    "ones, inference is correct; bnstat drift MODEL --data D shows which"
)


@dataclass(frozen=True, slots=True)
class _Initial:
    """The layers of a model that have the initial statistics, and the reason.

    Attributes:
        layers: the layers.
        cause: `untrained`, `converted` (perhaps), `batch` (training used the statistics of each
            batch), `unused` (like `batch`, and no graph reads the stored statistics), `stored`
            (training used the initial statistics) or `unknown`.
        evidence: one sentence on how the model was trained; may be empty.
    """

    layers: Sequence[BatchNorm]
    cause: str
    evidence: str = ""

    def of_all(self, model: Model) -> str:
        """Return how many of the model's layers have the initial statistics, in words."""
        number, total = len(self.layers), len(model.layers)
        if total == 1:
            return "the only layer still has the initial statistics"
        part = all_of(total, "layer") if number == total else f"{number} of {total} layers"
        return f"{part} still have the initial statistics"


def _initial_layers(model: Model) -> _Initial:
    converted = rewritten(model)
    layers = [
        layer
        for layer in model.layers
        if has_initial_statistics(layer) and not has_negative_zero(layer)
    ]
    if converted == "surely" or not layers:
        return _Initial((), "converted")
    is_trained = model.source.step != 0 and (
        len(layers) < len(model.layers)
        or any(has_initial_weights(layer) is False for layer in layers)
    )
    if not is_trained or all(map(has_initial_weights, layers)):
        return _Initial(layers, "untrained")
    if converted == "perhaps":
        return _Initial(layers, "converted")
    evidence = trained_with(model)
    cause = "unused" if evidence.is_unused else evidence.trained_with.partition("-")[0]
    return _Initial(layers, cause, f"; evidence: {evidence.reason}")


def _find_never_updated(rule: Rule[Model], model: Model, _: Thresholds) -> Iterator[Finding]:
    initial = _initial_layers(model)
    if not initial.layers or initial.cause in ("stored", "unused"):
        return
    is_trained = initial.cause != "untrained"
    severity: Severity = "error" if initial.cause == "batch" else "warning"
    if is_trained or len(initial.layers) == len(model.layers) > 1:
        texts = {"untrained": _UNTRAINED, "converted": _CONVERTED, "batch": _BATCH}
        yield rule.finding(
            f"{initial.of_all(model)}{texts.get(initial.cause, _UNKNOWN)}{initial.evidence}",
            severity=severity if is_trained else "info",
            layers=len(initial.layers),
        )
    trained = (
        "gamma and beta are not initial"
        if initial.cause == "converted"
        else "the network was trained"
    )
    for layer in initial.layers:
        is_initial = not is_trained or has_initial_weights(layer) is True
        yield rule.finding(
            f"moving mean 0 and variance 1 in {all_of(layer.channels, 'channel')}{_counted(layer)}"
            + ("; gamma and beta are initial as well" if is_initial else f", although {trained}"),
            layer=layer.name,
            severity="info" if is_initial else severity,
        )


def _counted(layer: BatchNorm) -> str:
    """Return PyTorch's count of updates, in parentheses, if the file stores it."""
    count = layer.extra.get("num_batches_tracked")
    if count is None or math.prod(count.shape) != 1:
        return ""
    return f" (num_batches_tracked {count.read().reshape(-1)[0]})"


NEVER_UPDATED: Final = Rule(
    code="BN001",
    name="never-updated",
    title="moving statistics are the initial 0 and 1",
    severity="error",
    what="The moving mean is exactly 0 and the moving variance exactly 1 in every channel, the "
    "values that they were initialized with. There is one finding per layer, and one for the whole "
    "model with the evidence of how it was trained. The severity is error if the evidence shows "
    "that training normalized with the statistics of each batch. It is warning if nothing shows "
    "how the model was trained, or if a converter may have moved the statistics into gamma and "
    "beta (if it certainly did, the rule is BN015). It is info if the model or layer was not "
    "trained: the step is 0, or gamma and beta are initial as well (beta exactly 0 in every "
    "channel; without beta, gamma exactly 1 or 0). If the file stores PyTorch's "
    "num_batches_tracked, the message contains it; 0 means never updated.",
    why="There are three possible causes. (1) Training normalized with the statistics of each "
    "batch, and the updates of the moving statistics never ran. In inference, the layer subtracts "
    "0 and divides by 1, and the network gets activations that it was never trained on. Inference "
    "is broken: estimate the statistics again (bnstat recalibrate) and repair the training. (2) "
    "The layers ran in inference mode during training (model(x) without training=True in a custom "
    "loop, trainable=False from the start). The trained network is what runs in inference; batch "
    "norm is only a scale and a shift, and recalibration would break the network. This is BN017. "
    "(3) The network also normalizes with batch statistics in inference (is_training=True always). "
    "It works in its own program, but a port or export that reads the stored statistics does not. "
    "This is BN018.",
    example="gamma 0.98 ± 0.2, beta 0.1 ± 0.2, moving mean 0 ± 0, moving variance 1 ± 0.",
    fixes={
        "TF1": "Run the update ops with the training step: `with tf.control_dependencies("
        "tf.get_collection(tf.GraphKeys.UPDATE_OPS)): train_op = optimizer.minimize(loss)`. "
        "Collect them after the whole network is built. In slim, use "
        "slim.learning.create_train_op or updates_collections=None.",
        "Keras 2": "In a custom loop, call the model as model(x, training=True). A layer that is "
        "called without it, or with trainable=False, runs in inference mode. In TF1 graphs, run "
        "model.updates with the training step. In a GAN, compile the discriminator after the last "
        "change of its trainable attribute: Keras 2.2 runs no updates of a network that is not "
        "trainable.",
        "Keras 3": "In a custom train_step, call the model as model(x, training=True). With JAX's "
        "stateless_call, store the non-trainable variables that it returns.",
        "without training again": "Only if training normalized with batch statistics: run bnstat "
        "recalibrate MODEL --data D -o COPY, or run a few hundred batches of training data "
        "through the network in training mode without an optimizer step, then save. If the cause "
        "is unknown, run bnstat drift MODEL --data D first, which compares both modes on data.",
    },
    confidence="Certain that the statistics are initial. The cause is determined from two kinds of "
    "evidence. The training graph, if the file contains it, shows whether the training op runs the "
    "updates and which statistics normalize. The weights show the cause if a convolution or dense "
    "layer adds a bias right before the normalization. Batch statistics cancel this bias (Ioffe "
    "and Szegedy 2015, section 3.2), so that its gradient is 0 except for rounding. With the "
    "stored 0 and 1, the bias has the same effect on the output as beta, and follows beta. In 324 "
    "trainings made for this purpose (seven optimizers, ten architectures, both modes), the "
    "weights gave the right answer for 238 of the 269 that leave a trace, no answer for the other "
    "86, and a wrong answer for none (tests/survey/train_both_modes.py). If graph and weights "
    "contradict each other or show nothing, the cause is unknown. A layer with a randomly "
    "initialized gamma and no beta looks trained even if it is not.",
    threshold="None for the statistics: exact equality in every channel. For the bias: a "
    "correlation with beta of at least 0.95 over at least 16 channels, or a size of at most 0.2 "
    "of beta's without a correlation beyond chance.",
    find=_find_never_updated,
)


def _find_inference_mode(rule: Rule[Model], model: Model, _: Thresholds) -> Iterator[Finding]:
    initial = _initial_layers(model)
    if initial.cause == "stored":
        yield rule.finding(
            f"{initial.of_all(model)}, and training used these: inference is correct; do not "
            f"recalibrate{initial.evidence}",
            layers=len(initial.layers),
        )


INFERENCE_MODE: Final = Rule(
    code="BN017",
    name="inference-mode",
    title="training used the initial 0 and 1",
    severity="info",
    what="Layers have the initial moving mean 0 and moving variance 1, and the evidence shows that "
    "training normalized with these: the layers ran in inference mode. There is one finding for "
    "the whole model, in place of BN001.",
    why="Inference runs the network that was trained, so nothing is broken. However, batch norm "
    "was only a scale and a shift, and did not normalize. Do not recalibrate: other statistics "
    "change what the network computes. In an experiment on digits, recalibration reduced the "
    "accuracy of such networks from 85.4 % to 46.4 %, and the faces of a generator became noise.",
    example="The bias before each layer equals beta (ratio of sizes 1.00, correlation 1.00), "
    "moving mean 0 ± 0, moving variance 1 ± 0.",
    fixes={
        "TF1": "Keep the statistics. If normalization was intended, build the training graph "
        "with training=True, run the update ops, and train again.",
        "Keras": "Keep the statistics. If normalization was intended, call the model as "
        "model(x, training=True) in the training loop, with trainable=True, and train again. In "
        "Keras 3, fit passes no training argument to a model whose call method has none.",
    },
    confidence="As for BN001; the message contains the evidence. If a network changed its mode "
    "shortly before the end of training, the evidence shows the mode before.",
    threshold="As for BN001.",
    find=_find_inference_mode,
)


def _find_unused(rule: Rule[Model], model: Model, _: Thresholds) -> Iterator[Finding]:
    initial = _initial_layers(model)
    if initial.cause == "unused":
        yield rule.finding(
            f"{initial.of_all(model)}, but the network in the file does not use them: it "
            "normalizes with the statistics of each batch; run bnstat recalibrate MODEL --data D "
            "-o COPY before anything reads the stored ones (a graph built for inference, an "
            f"export, a port){initial.evidence}",
            layers=len(initial.layers),
        )


UNUSED_STATISTICS: Final = Rule(
    code="BN018",
    name="unused-statistics",
    title="the network does not read its statistics",
    severity="warning",
    what="Layers have the initial moving mean 0 and moving variance 1, and only the updates in the "
    "graph read them: the network normalizes each batch with the statistics of that batch. There "
    "is one finding for the whole model, in place of BN001.",
    why="The network works as long as inference runs this graph (is_training=True always), but the "
    "output for a sample depends on the rest of its batch. Everything that reads the stored "
    "statistics computes something else: an inference graph of the same network that was built "
    "with is_training=False, an export, a port to another framework. There, the layer subtracts 0 "
    "and divides by 1.",
    example="The training op of the graph runs 0 of 54 updates of the moving statistics, and only "
    "the updates read them.",
    fixes={
        "any library": "Before porting, estimate the statistics from training data (bnstat "
        "recalibrate MODEL --data D -o COPY), or port the batch mode. To get statistics from "
        "training, run the update ops (TF1: tf.GraphKeys.UPDATE_OPS) with the training step.",
    },
    confidence="Certain about the graph in the file: every op that reads a variable is followed. A "
    "program may build another graph for inference. If that graph reads the statistics, inference "
    "is broken as BN001 describes.",
    find=_find_unused,
)


def _find_half_updated(
    rule: Rule[Model], model: Model, thresholds: Thresholds
) -> Iterator[Finding]:
    for layer in model.layers:
        statistics = statistics_of(layer)
        if statistics is None or not all(np.isfinite(numbers).all() for numbers in statistics):
            continue
        mean_is_initial = bool((statistics[0] == 0).all())
        variance_is_initial = bool((statistics[1] == 1).all())
        if mean_is_initial == variance_is_initial or is_collapsed(layer, thresholds):
            continue
        if variance_is_initial:
            message = "moving mean was updated, but moving variance is exactly 1 in every channel"
        else:
            message = "moving variance was updated, but moving mean is exactly 0 in every channel"
        yield rule.finding(message, layer=layer.name)


HALF_UPDATED: Final = Rule(
    code="BN002",
    name="half-updated",
    title="only one moving statistic was updated",
    severity="warning",
    what="One of the two moving statistics left its initial value, but the other did not: the "
    "moving variance is exactly 1 in every channel although the mean changed, or the mean is "
    "exactly 0 although the variance changed.",
    why="The same batch updates both. If one did not change, its values were lost: only one of two "
    "update ops ran, or a conversion filled in ones or zeros for values that it did not find. If "
    "only the mean is 0, the layer's input may always be 0, because the branch before it is dead. "
    "If the variances are near 0 as well, this is certain, and BN006 reports it instead.",
    example="moving mean 0.3 ± 1.2, moving variance 1 ± 0.",
    fixes={
        "TF1": "Run all ops of tf.GraphKeys.UPDATE_OPS; each layer has two of them.",
        "Keras": "Compare with the checkpoint that it was converted from: bnstat diff OLD NEW.",
    },
    confidence="High: averages of real activations are not exactly 0 or 1 in every channel.",
    threshold="None: exact equality in every channel.",
    find=_find_half_updated,
)

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
"""A step is confirmed if the smallest variance is at most this multiple of the remainder of the
initial 1. The limit depends on the source of the step: the optimizer, or a checkpoint's name."""

_Layers = list[tuple[BatchNorm, NDArray[np.float64]]]
"""Pairs of a layer and its moving variance."""


def _steps(model: Model) -> tuple[int, float] | None:
    """Return the number of training steps, and the trust in this number; None if unknown.

    The optimizer's count is preferred to the number in a checkpoint's name, which may be an epoch.
    The count restarts at 0 when a model is compiled again.
    """
    try:
        counts = {
            float(as_float64(variable.read()).ravel()[0])  # Keras 2.0 counts in float32.
            for key, variable in model.stored.items()
            if len(key) <= _LONGEST_KEY and _STEP_COUNT.fullmatch(key) and not variable.shape
        }
    except BnstatError:
        counts = set()
    counts.discard(0)
    if len(counts) == 1 and (number := counts.pop()) > 0 and number.is_integer():
        return int(number), _TRUST_IN_COUNTS
    # Converted files are not numbered by steps: `face-320.onnx` is named after its image size.
    if not model.source.step or model.source.is_converted:
        return None
    return model.source.step, _TRUST_IN_NAMES


def _by_momentum(model: Model, thresholds: Thresholds) -> dict[float, _Layers]:
    """Return momentum -> layers in which a remainder of the initial 1 matters.

    The remainder is at most the smallest variance of all layers with equal momentum. A remainder
    below epsilon has no effect.
    """
    groups: dict[float, _Layers] = {}
    for layer in model.layers:
        statistics = statistics_of(layer)
        if layer.momentum is None or not 0 < layer.momentum < 1 or layer.trainable is False:
            continue
        if statistics is not None and not has_initial_statistics(layer):
            groups.setdefault(layer.momentum, []).append((layer, statistics[1]))
    return {
        momentum: layers
        for momentum, layers in groups.items()
        if _least(layers) > min(thresholds.initial, *(epsilon_of(layer) for layer, _ in layers))
    }


def _least(layers: _Layers) -> float:
    return min(float(np.nanmin(variance, initial=math.inf)) for _, variance in layers)


def _find_hardly_warmed_up(
    rule: Rule[Model], model: Model, thresholds: Thresholds
) -> Iterator[Finding]:
    groups = _by_momentum(model, thresholds)
    steps = _steps(model) if groups else None
    if steps is None:
        return
    step, trust = steps
    for momentum, layers in groups.items():
        share = math.exp(step * math.log(momentum))
        least = _least(layers)
        # A variance is the initial 1 times the share, plus averages of variances, which are
        # never negative. A smaller variance shows that the step is not the number of updates.
        if least < share * 0.999:
            continue
        for layer, variance in layers:
            numbers = variance[~np.isnan(variance)]
            median = float(np.median(numbers)) if numbers.size else 0.0
            part = share / median if median > 0 else None
            message, shown = "of the initial 0 and 1 is still in the moving statistics", share
            goal = thresholds.initial
            if share <= thresholds.initial:
                if share <= epsilon_of(layer) or part is None or part <= thresholds.initial:
                    continue
                message, shown = "of the median moving variance is left of the initial 1", part
                goal *= max((median - share) / (1 - share), epsilon_of(layer))
            needed = math.ceil(math.log(goal) / math.log(momentum))
            yield rule.finding(
                f"{shown:.0%} {message} (momentum {momentum:g}, step {step}; {needed} steps "
                f"reduce it to {thresholds.initial:.0%}), unless they were estimated (bnstat "
                "recalibrate)",
                layer=layer.name,
                severity="warning" if least < min(1, trust * share) else "info",
                share=share,
                part=part,
                step=step,
                momentum=momentum,
                steps_needed=needed,
            )


HARDLY_WARMED_UP: Final = Rule(
    code="BN003",
    name="hardly-warmed-up",
    title="too few steps to forget the initial 0 and 1",
    severity="warning",
    what="After n steps with momentum m, a share of m^n of the initial values 0 and 1 is still in "
    "the moving statistics, and no variance is below m^n. The rule reports a large m^n, and an m^n "
    "above epsilon that is a large part of the layer's median variance. The step is the count that "
    "the optimizer stores in the file (iterations), otherwise the number in the checkpoint's name. "
    "The severity is info if the smallest variance of the model is above 1, or above 1.5 times m^n "
    "(3 times if the optimizer counted): then nothing else confirms that n is the number of "
    "updates.",
    why="The statistics are a mixture of the activations' statistics and the initial 0 and 1. With "
    "a true variance of 0.01 and 10 % of the initial 1 left, the layer divides by a variance that "
    "is ten times too large.",
    example="momentum 0.999, step 700: half of the moving variance is the initial 1.",
    fixes={
        "TF1": "Train longer, or lower momentum (decay) to 0.9 or 0.99. In slim and contrib: "
        "zero_debias_moving_mean=True.",
        "Keras": "Train longer, or use BatchNormalization(momentum=0.9).",
        "without training again": "Correct the statistics: mean / (1 - m^n) and "
        "(variance - m^n) / (1 - m^n). Or run more batches in training mode without an optimizer.",
    },
    confidence="Exact if the step is the number of updates of this layer since its initialization. "
    "Checkpoints are also numbered by epoch or by save, and a model that is compiled again counts "
    "from 0. A moving variance below m^n in any layer with the same momentum disproves the step, "
    "and nothing is reported. Layers that started from pretrained statistics, or whose statistics "
    "were estimated (for example by bnstat recalibrate), contain no initial 0 and 1. However, it "
    "is rare that all of their variances are above m^n and one is just above it. This is typical "
    "of a channel with a small variance that still contains the rest of the initial 1.",
    threshold="`initial`, 0.1 by default, for m^n and for its part of the median variance. This "
    "share is the debiasing term of Adam (Kingma and Ba 2015, section 3) and of zero_debias in "
    "tf.train.ExponentialMovingAverage. A tenth changes 1 / sqrt(variance) by at most about 5 % "
    "for any true variance above 0.5.",
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
                f"momentum {momentum:g} averages over about the last {window} batches",
                layer=layer.name,
                momentum=momentum,
            )


LOW_MOMENTUM: Final = Rule(
    code="BN014",
    name="low-momentum",
    title="statistics follow the last few batches",
    severity="info",
    what="The layer's momentum is so low that its moving statistics follow the last few batches.",
    why="In TensorFlow, momentum is the share of the old value that is kept: 0.99 averages over "
    "about 100 batches. In PyTorch, it is the share of the new value: PyTorch's 0.1 is 0.9 here. "
    "If 0.1 is copied from PyTorch, inference depends on the last batch of the training.",
    example="momentum 0.1: 90 % of the moving mean is the mean of the last batch.",
    fixes={
        "TF1": "tf.layers.batch_normalization(momentum=0.9); slim: decay=0.9.",
        "Keras": "BatchNormalization(momentum=0.9).",
    },
    confidence="Certain about the number; in some networks it is intended.",
    threshold="`momentum`, 0.5 by default: below it, the last batch weighs more than all batches "
    "before. The libraries' defaults are 0.99 (Keras, tf.layers) and 0.999 (slim, Sonnet 1).",
    find=_find_low_momentum,
)
