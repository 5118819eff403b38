"""Rules about how the moving statistics were updated: never, by half, hardly, too fast."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bnstat.checks.conversion import has_negative_zero, is_converted, rewritten, untouched
from bnstat.checks.rule import (
    LARGEST_DEFAULT_EPSILON,
    Finding,
    Rule,
    Severity,
    Thresholds,
    at_start,
    statistics_of,
)
from bnstat.checks.training_mode import trained_with
from bnstat.checks.values import is_collapsed
from bnstat.errors import BnstatError
from bnstat.model import BatchNorm, Model, as_float64

_CONVERTED: Final = (
    ": the updates of the moving statistics never ran, or a converter moved all into gamma and "
    "beta: nothing in the file shows which (bnstat diff with the file that it was converted from "
    "does)"
)
_UNTRAINED: Final = "; gamma and beta are initial as well: the model was not trained"
_BROKEN: Final = (
    ", and training normalized with the statistics of each batch: inference with the stored ones "
    "is broken, and bnstat recalibrate MODEL --data D -o COPY repairs it"
)
_UNDECIDED: Final = (
    ": either training normalized with the statistics of each batch and inference is broken, or "
    "it normalized with these and inference is what was trained; bnstat drift MODEL --data D "
    "decides"
)
_TRUST_IN_NAMES: Final = 1.5
_TRUST_IN_COUNTS: Final = 3.0
"""The least variance as a multiple of the initial share, up to which that share is seen in it:
for a step in a checkpoint's name, and for one that the optimizer counted."""

_STEP_COUNT: Final = re.compile(
    r"optimizer_weights/(.{1,200}/)?(iterations?|iter)(_\d+)?(:0)?"  # .h5 of Keras 2
    r"|(.{1,200}/)?optimizer/vars/0"  # .keras and .weights.h5
    r"|(.{1,200}/)?(iter|_?iterations)/\.ATTRIBUTES/VARIABLE_VALUE",  # checkpoints of TensorFlow 2
    re.DOTALL,
)
"""The keys under which files store how many steps the optimizer made."""

_LONGEST_KEY: Final = 300


def _counted(layer: BatchNorm) -> str:
    """What PyTorch's count of the updates says."""
    count = layer.extra.get("num_batches_tracked")
    if count is None or prod(count.shape) != 1:
        return ""
    return f" (num_batches_tracked {count.read().reshape(-1)[0]})"


@dataclass(frozen=True, slots=True)
class _Stuck:
    """The layers of a model that have the initial statistics, and why.

    Attributes:
        layers: the layers.
        cause: how they came to be so: `untrained`, `converted` (perhaps), `batch` (trained on
            batch statistics), `unused` (the same, and no graph reads the stored ones), `stored`
            (trained with these) or `unknown`.
        evidence: one sentence on how the model was trained; empty if it was not asked for.
    """

    layers: Sequence[BatchNorm]
    cause: str
    evidence: str = ""

    def of_all(self, model: Model) -> str:
        """Return how many of the model's layers have the initial statistics, in words."""
        number, total = len(self.layers), len(model.layers)
        if total == 1:
            return "the only layer still holds"
        return f"{f'all {total}' if number == total else f'{number} of {total}'} layers still hold"


def _stuck(model: Model) -> _Stuck:
    converted = rewritten(model)
    layers = [layer for layer in model.layers if at_start(layer) and not has_negative_zero(layer)]
    if converted == "surely" or not layers:
        return _Stuck((), "converted")
    is_trained = model.source.step != 0 and (
        len(layers) < len(model.layers) or any(untouched(layer) is False for layer in layers)
    )
    if not is_trained or all(map(untouched, layers)):
        return _Stuck(layers, "untrained")
    if converted == "perhaps":
        return _Stuck(layers, "converted")
    evidence = trained_with(model)
    causes = {"batch-statistics": "batch", "stored-statistics": "stored", "unknown": "unknown"}
    cause = "unused" if evidence.is_unused else causes[evidence.trained_with]
    return _Stuck(layers, cause, f"; evidence: {evidence.reason}")


def _find_never_updated(
    rule: Rule[Model], model: Model, thresholds: Thresholds
) -> Iterator[Finding]:
    stuck = _stuck(model)
    if not stuck.layers or stuck.cause in ("stored", "unused"):
        return
    texts = {"untrained": _UNTRAINED, "converted": _CONVERTED, "batch": _BROKEN}
    gravest: Severity = "error" if stuck.cause == "batch" else "warning"
    is_grave = stuck.cause != "untrained"
    if is_grave or len(stuck.layers) == len(model.layers) > 1:
        yield rule.finding(
            f"{stuck.of_all(model)} the initial statistics"
            f"{texts.get(stuck.cause, _UNDECIDED)}{stuck.evidence}",
            severity=gravest if is_grave else "info",
            layers=len(stuck.layers),
        )
    moved = (
        ", though gamma and beta are not initial"
        if stuck.cause == "converted"
        else ", though the network was trained"
    )
    for layer in stuck.layers:
        is_initial = not is_grave or untouched(layer) is True
        yield rule.finding(
            "moving mean 0 and variance 1 in "
            + ("its only channel" if layer.channels == 1 else f"all {layer.channels} channels")
            + _counted(layer)
            + ("; gamma and beta are initial as well" if is_initial else moved),
            layer=layer.name,
            severity="info" if is_initial else gravest,
        )


NEVER_UPDATED: Final[Rule[Model]] = Rule(
    code="BN001",
    name="never-updated",
    title="moving statistics are the initial 0 and 1",
    severity="error",
    what="The moving mean is exactly 0 and the moving variance exactly 1 in every channel: the "
    "values they were initialized with. Reported of each layer, and once of the whole model with "
    "the evidence of how it was trained. An error if the evidence shows that training normalized "
    "with the statistics of each batch; a warning if nothing shows how it was trained, or if a "
    "converter may have moved the statistics into gamma and beta (BN015 if it surely did). "
    "Information only if gamma and beta are initial as well (beta exactly 0 in every channel; "
    "without beta, gamma exactly 1 or 0) or the step is 0: such a model or layer was not trained. "
    "PyTorch's num_batches_tracked is shown beside if the file stores it: 0 is never updated.",
    why="Such statistics have three causes. (1) Training normalized with the statistics of each "
    "batch and the updates of the moving ones never ran: in inference the layer subtracts 0 and "
    "divides by 1, and the network sees activations that it was never trained on. Inference is "
    "broken; estimate the statistics again (bnstat recalibrate) and repair the training. (2) The "
    "layers ran in inference mode in training as well (model(x) without training=True in a loop "
    "of your own, trainable=False from the start): what was trained is what runs, batch norm is "
    "only a scale and a shift, and recalibrating would break the network. This is BN017. (3) The "
    "network normalizes with batch statistics in inference as well (is_training=True always): it "
    "is right in its own program, and wrong in any port or export that reads the stored "
    "statistics. This is BN018.",
    example="gamma 0.98 ± 0.2, beta 0.1 ± 0.2, moving mean 0 ± 0, moving variance 1 ± 0.",
    mend={
        "TF1": "Run the update ops with the training step: `with tf.control_dependencies("
        "tf.get_collection(tf.GraphKeys.UPDATE_OPS)): train_op = optimizer.minimize(loss)`, and "
        "collect them after the whole network is built. slim: use slim.learning.create_train_op, "
        "or updates_collections=None.",
        "Keras 2": "In a loop of your own call the model as model(x, training=True); a layer "
        "called without it, or with trainable=False, runs in inference mode. In TF1 graphs run "
        "model.updates with the training step. In a GAN compile the discriminator after its last "
        "change of trainable: Keras 2.2 runs no updates of a network that is not trainable.",
        "Keras 3": "Call the model as model(x, training=True) in a train_step of your own, and "
        "with JAX's stateless_call store the non-trainable variables that it returns.",
        "Without training again": "Only if training normalized with batch statistics: bnstat "
        "recalibrate MODEL --data D -o COPY, or run a few hundred batches of training data "
        "through the network in training mode without an optimizer step, then save. If the cause "
        "is not known, bnstat drift MODEL --data D compares both modes on data first.",
    },
    confidence="Certain that the statistics are those of the start. The cause is read from two "
    "places. The training graph, if the file has it: whether the training op runs the updates, "
    "and which statistics normalize. The weights, if a convolution or dense layer adds a bias "
    "right before the normalization: batch statistics cancel this bias (Ioffe and Szegedy 2015, "
    "section 3.2), so its gradient is 0 but for rounding; with the stored 0 and 1 it enters the "
    "output as beta does, and follows beta. In 324 trainings made for the purpose (seven "
    "optimizers, ten architectures, both modes) the weights gave the right answer for 238 of the "
    "269 that leave a trace, no answer for the other 86, and a wrong answer for none "
    "(tests/survey/train_both_modes.py). If graph and weights contradict each other, or show "
    "nothing, the cause is unknown. A layer that is initialized from a random "
    "gamma and has no beta looks trained when it is not.",
    threshold="None for the statistics: exact equality in every channel. For the trace in the "
    "weights: a correlation with beta of at least 0.95 over at least 16 channels, or a size of at "
    "most 0.2 of beta's without a correlation beyond chance.",
    find=_find_never_updated,
)


def _find_inference_mode(
    rule: Rule[Model], model: Model, thresholds: Thresholds
) -> Iterator[Finding]:
    stuck = _stuck(model)
    if stuck.cause == "stored":
        yield rule.finding(
            f"{stuck.of_all(model)} the initial statistics, and training normalized with these: "
            f"inference is what was trained; do not recalibrate{stuck.evidence}",
            layers=len(stuck.layers),
        )


INFERENCE_MODE: Final[Rule[Model]] = Rule(
    code="BN017",
    name="inference-mode",
    title="training used the initial 0 and 1",
    severity="info",
    what="Layers hold the initial moving mean 0 and moving variance 1, and the evidence shows that "
    "training normalized with these as well: the layers ran in inference mode. Reported once of "
    "the whole model, in place of BN001.",
    why="Inference is what was trained, so nothing is broken. Batch norm was only a scale and a "
    "shift, though, and did not normalize. Do not recalibrate: other statistics change what the "
    "network computes. On digits, networks trained so fell from 85.4 % to 46.4 % accuracy by it, "
    "and a generator's faces became noise.",
    example="The bias before each layer equals beta (ratio of sizes 1.00, correlation 1.00), "
    "moving mean 0 ± 0, moving variance 1 ± 0.",
    mend={
        "TF1": "Leave the statistics alone. If normalization was wanted, build the training graph "
        "with training=True, run the update ops, and train again.",
        "Keras 2": "Leave the statistics alone. If normalization was wanted, call the model as "
        "model(x, training=True) in the training loop, with trainable=True, and train again.",
        "Keras 3": "As for Keras 2; a model whose call has no training argument gets none from "
        "fit either.",
    },
    confidence="The evidence is that of BN001, and the message names it. A network that changed "
    "its mode shortly before the end of training shows the mode before.",
    threshold="As for BN001.",
    find=_find_inference_mode,
)


def _find_unused_statistics(
    rule: Rule[Model], model: Model, thresholds: Thresholds
) -> Iterator[Finding]:
    stuck = _stuck(model)
    if stuck.cause == "unused":
        yield rule.finding(
            f"{stuck.of_all(model)} the initial statistics, which the network in the file does "
            "not use: it normalizes with those of each batch; bnstat recalibrate MODEL --data D "
            "-o COPY before anything reads the stored ones (a graph built for inference, an "
            f"export, a port){stuck.evidence}",
            layers=len(stuck.layers),
        )


UNUSED_STATISTICS: Final[Rule[Model]] = Rule(
    code="BN018",
    name="unused-statistics",
    title="the network does not read its statistics",
    severity="warning",
    what="Layers hold the initial moving mean 0 and moving variance 1, and in the graph beside "
    "them nothing but their updates reads them: the network normalizes each batch with the "
    "statistics of that batch. Reported once of the whole model, in place of BN001.",
    why="As long as inference runs this graph (is_training=True always), it is right, though the "
    "output for a sample depends on the rest of its batch. Whatever reads the stored statistics "
    "is wrong: an inference graph of the same network built with is_training=False, an export, a "
    "port to another framework. There the layer subtracts 0 and divides by 1.",
    example="The training op of the graph runs 0 of 54 updates of the moving statistics, and "
    "nothing but the updates reads them.",
    mend={
        "TF1": "Estimate the statistics from training data before porting (bnstat recalibrate "
        "MODEL --data D -o COPY), or port the batch mode. To have them in training, run the ops "
        "of tf.GraphKeys.UPDATE_OPS with the training step.",
        "Keras 2": "As for TF1.",
        "Keras 3": "As for TF1.",
    },
    confidence="Certain about the graph in the file: all that reads a variable is followed. A "
    "program may build another graph for inference; if that one reads the statistics, inference "
    "is broken as BN001 describes.",
    threshold="None.",
    find=_find_unused_statistics,
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
        if mean_at_start == variance_at_start or is_collapsed(layer, thresholds):
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
    "mean is 0 the layer's input may be 0 throughout: the branch before it is dead. A layer whose "
    "variances are next to 0 as well is surely so, and BN006 reports it instead.",
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


@dataclass(frozen=True, slots=True)
class _Steps:
    """The number of training steps.

    Attributes:
        number: the number.
        trust: the least variance as a multiple of the initial share up to which the number counts
            as confirmed by that variance.
    """

    number: int
    trust: float


def _steps(model: Model) -> _Steps | None:
    """Return how many steps a model was trained for, if the file stores it.

    The count of the optimizer goes before that in a checkpoint's name, which may be an epoch. It
    starts anew when a model is compiled again.
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
        return _Steps(int(number), _TRUST_IN_COUNTS)
    # Converted files are not numbered by steps: `face-320.onnx` is named after its image size.
    if not model.source.step or is_converted(model.source):
        return None
    return _Steps(model.source.step, _TRUST_IN_NAMES)


def _by_momentum(
    model: Model, thresholds: Thresholds
) -> dict[float, list[tuple[BatchNorm, NDArray[np.float64]]]]:
    """Return the layers that a rest of the initial 1 could harm, with their variances.

    No rest is larger than the least variance of the layers with the same momentum. A rest below
    epsilon does no harm.
    """
    groups: dict[float, list[tuple[BatchNorm, NDArray[np.float64]]]] = {}
    for layer in model.layers:
        statistics = statistics_of(layer)
        if layer.momentum is None or not 0 < layer.momentum < 1 or layer.trainable is False:
            continue
        if statistics is None or at_start(layer):
            continue
        groups.setdefault(layer.momentum, []).append((layer, statistics[1]))
    return {
        momentum: layers
        for momentum, layers in groups.items()
        if _least(layers) > min(thresholds.initial, *(_epsilon(layer) for layer, _ in layers))
    }


def _least(layers: Sequence[tuple[BatchNorm, NDArray[np.float64]]]) -> float:
    return min(float(np.nanmin(variance, initial=math.inf)) for _, variance in layers)


def _epsilon(layer: BatchNorm) -> float:
    return LARGEST_DEFAULT_EPSILON if layer.epsilon is None else layer.epsilon


def _find_hardly_warmed_up(
    rule: Rule[Model], model: Model, thresholds: Thresholds
) -> Iterator[Finding]:
    groups = _by_momentum(model, thresholds)
    steps = _steps(model) if groups else None
    if steps is None:
        return
    for momentum, layers in groups.items():
        share = math.exp(steps.number * math.log(momentum))
        least = _least(layers)
        # A variance is the initial 1 times the share, plus averages of variances, which are
        # never negative. One below the share shows that the steps are not those of the updates.
        if least < share * 0.999:
            continue
        for layer, variance in layers:
            numbers = variance[~np.isnan(variance)]
            median = float(np.median(numbers)) if numbers.size else 0.0
            part = share / median if median > 0 else None
            rest = "of the initial 0 and 1 is still in the moving statistics"
            shown, goal = share, thresholds.initial
            if share <= thresholds.initial:
                if share <= _epsilon(layer) or part is None or part <= thresholds.initial:
                    continue
                rest, shown = "of the median moving variance is what is left of the initial 1", part
                goal *= max((median - share) / (1 - share), _epsilon(layer))
            needed = math.ceil(math.log(goal) / math.log(momentum))
            yield rule.finding(
                f"{shown:.0%} {rest} (momentum {momentum:g}, step {steps.number}; {needed} steps "
                f"bring it to {thresholds.initial:.0%})",
                layer=layer.name,
                severity="warning" if least < min(1, steps.trust * share) else "info",
                share=share,
                part=part,
                step=steps.number,
                momentum=momentum,
                steps_needed=needed,
            )


HARDLY_WARMED_UP: Final[Rule[Model]] = Rule(
    code="BN003",
    name="hardly-warmed-up",
    title="too few steps to forget the initial 0 and 1",
    severity="warning",
    what="With the momentum m and the step n known, m^n of the initial values 0 and 1 is still "
    "in the moving statistics, so that no variance is below it. It is reported if m^n is large, or "
    "if it is a large part of the layer's median variance and more than epsilon. The step is the "
    "count that the optimizer stores in the file (iterations), else that in the checkpoint's name. "
    "Information only if the least of the model's variances is above 1, or above one and a half "
    "times m^n (three times if the optimizer counted): then nothing else shows that n is the "
    "number of updates.",
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
    "Checkpoints are also numbered by epoch or by save, and a model that is compiled again counts "
    "from 0: a moving variance below m^n in any layer of the same momentum disproves the step, "
    "and nothing is reported. Layers that started from "
    "pretrained statistics, or whose statistics were estimated, as by bnstat recalibrate, have "
    "no initial 0 and 1 in them; but their variances are seldom all above m^n and one just above "
    "it, as where a channel of little variance rests on what is left of the 1.",
    threshold="`initial`, 0.1 by default, for m^n and for its part of the median variance: the "
    "debiasing term of Adam (Kingma and Ba 2015, section 3) and of zero_debias in "
    "tf.train.ExponentialMovingAverage is this share; a tenth "
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
