"""Rules about the numbers themselves: what inference cannot compute, or computes oddly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bnstat.checks.rule import (
    LARGEST_DEFAULT_EPSILON,
    SMALLEST_DEFAULT_EPSILON,
    Finding,
    Rule,
    Thresholds,
    numbers_of,
    of_channels,
)
from bnstat.model import ROLES, BatchNorm, Model

_TITLES: Final = {
    "gamma": "gamma",
    "beta": "beta",
    "moving_mean": "moving mean",
    "moving_variance": "moving variance",
}

_DECAYED: Final = 1e-6
"""The largest |gamma| of a layer that weight decay has brought to 0."""


def _collapsed_below(layer: BatchNorm, thresholds: Thresholds) -> float:
    epsilon = SMALLEST_DEFAULT_EPSILON if layer.epsilon is None else layer.epsilon
    return thresholds.collapsed * epsilon


def _find_not_finite(rule: Rule[Model], model: Model, thresholds: Thresholds) -> Iterator[Finding]:
    for layer in model.layers:
        for role in ROLES:
            numbers = numbers_of(layer, role)
            if numbers is None or (bad := ~np.isfinite(numbers)).sum() == 0:
                continue
            nan = int(np.isnan(numbers).sum())
            kind = {0: "infinite", int(bad.sum()): "NaN"}.get(nan, "NaN or infinite")
            yield rule.finding(
                f"{_TITLES[role]} is {kind} in {of_channels(bad)}",
                layer=layer.name,
                channels=bad,
                nan=nan,
                infinite=int(bad.sum()) - nan,
            )


NOT_FINITE: Final[Rule[Model]] = Rule(
    code="BN004",
    name="not-finite",
    title="a value is NaN or infinite",
    severity="error",
    what="A gamma, beta, moving mean or moving variance is NaN or infinite.",
    why="Every output of that channel is NaN (the constant beta, where only the variance is "
    "infinite), and one NaN channel usually makes the whole output of a network NaN.",
    example="moving variance is NaN in 3 of 64 channels.",
    mend={
        "TF1": "Go back to the last checkpoint without it (bnstat history shows which). A moving "
        "average never forgets a NaN: find the batch that made it, and lower the learning rate "
        "or clip gradients.",
        "Keras 2": "As for TF1; tf.keras.callbacks.TerminateOnNaN looks at the loss only, "
        "tf.debugging.enable_check_numerics() finds the op. In float16 keep batch norm in "
        "float32.",
        "Keras 3": "As for Keras 2; with mixed precision use a LossScaleOptimizer.",
    },
    confidence="Certain.",
    threshold="None.",
    find=_find_not_finite,
)


def _find_negative_variance(
    rule: Rule[Model], model: Model, thresholds: Thresholds
) -> Iterator[Finding]:
    for layer in model.layers:
        variance = numbers_of(layer, "moving_variance")
        if variance is None or not (negative := variance < 0).any():
            continue
        least = float(variance[negative].min())
        assumed = layer.epsilon is None
        epsilon = LARGEST_DEFAULT_EPSILON if layer.epsilon is None else layer.epsilon
        saved = least + epsilon > 0
        if not saved:
            verdict = "variance + epsilon is not positive: its root is NaN"
        elif assumed:
            verdict = f"epsilon is not in the file, and has to be above {-least:.3g}"
        else:
            verdict = f"variance + epsilon ({epsilon:g}) is still positive"
        mean = numbers_of(layer, "moving_mean")
        if mean is not None and mean.size > 1 and negative.mean() > 0.2 and (mean >= 0).all():
            verdict += "; moving mean is never negative: the two may be swapped"
        yield rule.finding(
            f"moving variance is negative in {of_channels(negative)}, down to {least:.3g}; "
            + verdict,
            layer=layer.name,
            channels=negative,
            severity="warning" if saved else "error",
            least=least,
            epsilon=layer.epsilon,
        )


NEGATIVE_VARIANCE: Final[Rule[Model]] = Rule(
    code="BN005",
    name="negative-variance",
    title="a moving variance is below 0",
    severity="error",
    what="A moving variance is below 0. A warning only, where variance + epsilon is positive in "
    "every channel all the same.",
    why="No average of variances is negative. Inference takes the root of variance + epsilon: "
    "where that is negative the channel is NaN, and where it is barely positive the channel's "
    "scale is huge.",
    example="moving variance is negative in 2 of 64 channels, down to -0.0031.",
    mend={
        "TF1": "Look for a conversion that mixed up mean and variance, for weights averaged or "
        "extrapolated over checkpoints, or for an optimizer that was given the moving statistics "
        "as trainable variables.",
        "Keras 2": "As for TF1. layer.set_weights takes gamma, beta, moving mean, moving "
        "variance in this order; without scale or center the list is shorter.",
        "Keras 3": "As for Keras 2.",
    },
    confidence="Certain. If the file does not store epsilon, 0.001 is assumed, the largest "
    "default of any library, so that an error is one with every default.",
    threshold="0.",
    find=_find_negative_variance,
)


def is_collapsed(layer: BatchNorm, thresholds: Thresholds) -> bool:
    """Return True if every moving variance of a layer is so small that its channel is constant."""
    variance = numbers_of(layer, "moving_variance")
    if variance is None or not variance.size:
        return False
    return bool(((variance >= 0) & (variance <= _collapsed_below(layer, thresholds))).all())


def _of_the_network(model: Model, dead: Sequence[BatchNorm]) -> str:
    """Return how much of a network is dead, in words."""
    part = f"nothing of the input passes {len(dead)} of {len(model.layers)} layers"
    gammas = [numbers_of(layer, "gamma") for layer in dead]
    sizes = [np.abs(gamma).max() for gamma in gammas if gamma is not None and gamma.size]
    decayed = sum(bool(size <= _DECAYED) for size in sizes)
    if not decayed:
        return part
    return f"{part}; all gammas are below {_DECAYED:g} in {decayed}: weight decay on gamma?"


def _find_collapsed(rule: Rule[Model], model: Model, thresholds: Thresholds) -> Iterator[Finding]:
    dead = [layer for layer in model.layers if is_collapsed(layer, thresholds)]
    if len(dead) > 1:
        yield rule.finding(_of_the_network(model, dead), layers=len(dead))
    for layer in model.layers:
        variance = numbers_of(layer, "moving_variance")
        if variance is None:
            continue
        below = _collapsed_below(layer, thresholds)
        collapsed = (variance >= 0) & (variance <= below)
        if not collapsed.any():
            continue
        zero = int((variance == 0).sum())
        everywhere = bool(collapsed.all())
        yield rule.finding(
            f"moving variance at most {below:.2g} in {of_channels(collapsed)}"
            + (f", 0 in {zero}" if zero else "")
            + ("; nothing of the input passes this layer" if everywhere else ""),
            layer=layer.name,
            channels=collapsed,
            severity="warning" if everywhere else "info",
            zero=zero,
            below=below,
        )


COLLAPSED_VARIANCE: Final[Rule[Model]] = Rule(
    code="BN006",
    name="collapsed-variance",
    title="the moving variance of channels is near 0",
    severity="warning",
    what="The moving variance is 0 or next to nothing: the channel was constant over the "
    "training data. Information only, unless it is so in every channel of the layer. If several "
    "layers are dead so, it is reported once how many.",
    why="The channel puts out the constant beta - gamma * (offset of the mean), so its filters "
    "can be pruned. Any input that does move it, in other data than the training's, is amplified "
    "by gamma / sqrt(epsilon), some 30 to 300 times.",
    example="moving variance at most 1e-07 in 234 of 256 channels, 0 in 8.",
    mend={
        "TF1": "Usually ReLUs that died or weight decay that shrank the filters to 0: lower the "
        "learning rate or the decay, or prune these channels. If all gammas are near 0 as well, "
        "leave gamma out of the weight decay.",
        "Keras 2": "As for TF1.",
        "Keras 3": "As for TF1.",
    },
    confidence="Certain that the channel was constant while the last batches were seen. Common "
    "in healthy networks, hence information.",
    threshold="`collapsed`, 0.0001 by default, as a share of epsilon (of 1e-5, the smallest "
    "default of any library, if the file does not store it): below it the standard deviation of "
    "the normalized channel, sqrt(variance / (variance + epsilon)), is under 1 %.",
    find=_find_collapsed,
)


def _find_exploding_scale(
    rule: Rule[Model], model: Model, thresholds: Thresholds
) -> Iterator[Finding]:
    for layer in model.layers:
        scale = _effective_scale(layer)
        if scale is None or not (exploding := scale > thresholds.scale).any():
            continue
        known = layer.epsilon is not None
        yield rule.finding(
            f"|gamma| / sqrt(variance + epsilon) > {thresholds.scale:g} in "
            f"{of_channels(exploding)}, up to {'' if known else 'at least '}{scale.max():.3g}",
            layer=layer.name,
            channels=exploding,
            largest=float(scale.max()),
            epsilon=layer.epsilon,
        )


def _effective_scale(layer: BatchNorm) -> NDArray[np.float64] | None:
    """|gamma| / sqrt(variance + epsilon); 0 where that is no number, which other rules report."""
    variance, gamma = numbers_of(layer, "moving_variance"), numbers_of(layer, "gamma")
    if variance is None or (gamma is not None and gamma.shape != variance.shape):
        return None
    epsilon = LARGEST_DEFAULT_EPSILON if layer.epsilon is None else layer.epsilon
    with np.errstate(all="ignore"):
        scale = (1.0 if gamma is None else np.abs(gamma)) / np.sqrt(variance + epsilon)
    return np.where(np.isfinite(scale), scale, 0)


EXPLODING_SCALE: Final[Rule[Model]] = Rule(
    code="BN007",
    name="exploding-scale",
    title="|gamma| / sqrt(variance + epsilon) is huge",
    severity="warning",
    what="The factor that the layer applies in inference, |gamma| / sqrt(variance + epsilon), is "
    "huge in a channel.",
    why="Whatever reaches that channel is amplified by this factor: rounding errors, a shift of "
    "the data, the quantization step. Folded into the weights before it, it decides the range of "
    "a quantized tensor alone, and in float16 the activations overflow.",
    example="|gamma| / sqrt(variance + epsilon) > 1000 in 1 of 32 channels, up to 5.2e+04.",
    mend={
        "TF1": "Raise epsilon to 0.001; constrain gamma or add weight decay to it; train on from "
        "there. For a finished network prune the channel.",
        "Keras 2": "BatchNormalization(epsilon=1e-3, gamma_constraint=...).",
        "Keras 3": "BatchNormalization(epsilon=1e-3, gamma_constraint=...).",
    },
    confidence="Certain if the file stores epsilon. If it does not, 0.001 is assumed, the "
    "largest default of any library, so that the true factor is at least as large.",
    threshold="`scale`, 1000 by default: a gamma of 1 reaches at most 1 / sqrt(epsilon), which is "
    "32 with the epsilon of Keras and 316 with the smallest default of any library, 1e-5. Data-"
    "free quantization (Nagel et al. 2019, section 3) shows what such ranges do to int8.",
    find=_find_exploding_scale,
)


def _find_outlying(rule: Rule[Model], model: Model, thresholds: Thresholds) -> Iterator[Finding]:
    for layer in model.layers:
        variance = numbers_of(layer, "moving_variance")
        if variance is None:
            continue
        alive = variance[(variance > _collapsed_below(layer, thresholds)) & np.isfinite(variance)]
        if alive.size < 4:
            continue
        median = float(np.median(alive))
        outlying = np.isfinite(variance) & (variance > thresholds.outlier * median)
        if outlying.any():
            largest = float(variance[outlying].max())
            yield rule.finding(
                f"moving variance is {largest / median:.2g} times the layer's median in "
                f"{of_channels(outlying)} ({largest:.3g} against {median:.3g})",
                layer=layer.name,
                channels=outlying,
                largest=largest,
                median=median,
            )


OUTLYING_VARIANCE: Final[Rule[Model]] = Rule(
    code="BN008",
    name="outlying-variance",
    title="a moving variance out of all proportion",
    severity="info",
    what="A channel's moving variance is out of all proportion to the variances of the layer's "
    "other channels (the median of at least four channels that are not constant).",
    why="Normalization hides it from the next layer, but not from what comes between: folding, "
    "quantization by tensor, float16. It is also the scar of a single batch that exploded.",
    example="moving variance is 3e+06 times the layer's median in 1 of 32 channels.",
    mend={
        "TF1": "Scale input features before the network; clip gradients where a batch exploded, "
        "then let the average forget it (1 / (1 - momentum) steps, some times over).",
        "Keras 2": "As for TF1; a Normalization layer scales the inputs.",
        "Keras 3": "As for Keras 2.",
    },
    confidence="Certain about the number. A first layer over raw tabular features has such "
    "variances and is sound, hence information.",
    threshold="`outlier`, 10000 by default: a standard deviation 100 times the usual one. Of the "
    "256 levels of a tensor quantized as one, a usual channel then gets fewer than three.",
    find=_find_outlying,
)


def _near_zero(
    layer: BatchNorm, thresholds: Thresholds
) -> tuple[NDArray[np.bool_], NDArray[np.float64]] | None:
    """Where |gamma| is below the threshold, and |beta| there (0 without beta)."""
    gamma, beta = numbers_of(layer, "gamma"), numbers_of(layer, "beta")
    if gamma is None or (beta is not None and beta.shape != gamma.shape):
        return None
    return np.abs(gamma) < thresholds.gamma, np.zeros_like(gamma) if beta is None else np.abs(beta)


def _find_near_zero_gamma(
    rule: Rule[Model], model: Model, thresholds: Thresholds
) -> Iterator[Finding]:
    for layer in model.layers:
        if (found := _near_zero(layer, thresholds)) is None:
            continue
        off = found[0] & (found[1] < thresholds.beta)
        if off.any():
            yield rule.finding(
                f"|gamma| < {thresholds.gamma:g} and |beta| < {thresholds.beta:g} in "
                f"{of_channels(off)}: free to prune",
                layer=layer.name,
                channels=off,
            )


NEAR_ZERO_GAMMA: Final[Rule[Model]] = Rule(
    code="BN009",
    name="near-zero-gamma",
    title="channels are off: gamma is near 0",
    severity="info",
    what="|gamma| is near 0, and |beta| small: the channel puts out next to nothing.",
    why="A pruner removes it with its filters at no cost. Many of them say that the network is "
    "wider than it needs to be.",
    example="|gamma| < 0.001 and |beta| < 0.1 in 7 of 128 channels: free to prune.",
    mend={
        "TF1": "Nothing is broken. To prune, remove the channel, its filters before and its "
        "input weights after the layer.",
        "Keras 2": "As for TF1.",
        "Keras 3": "As for TF1.",
    },
    confidence="Certain about the numbers. A residual branch whose gamma is initialized to 0 "
    "and that was not trained looks the same.",
    threshold="`gamma`, 0.001 by default: the alive threshold in the README of Google's MorphNet "
    "(google-research/morph-net, gamma_threshold=1e-3). Network slimming (Liu et al. 2017) takes "
    "a percentile over the whole network instead: give it as --threshold gamma=VALUE.",
    find=_find_near_zero_gamma,
)


def _find_constant_output(
    rule: Rule[Model], model: Model, thresholds: Thresholds
) -> Iterator[Finding]:
    for layer in model.layers:
        if (found := _near_zero(layer, thresholds)) is None:
            continue
        constant = found[0] & (found[1] >= thresholds.beta)
        if constant.any():
            largest = float(found[1][constant].max())
            yield rule.finding(
                f"|gamma| < {thresholds.gamma:g} in {of_channels(constant)}, |beta| up to "
                f"{largest:.3g}: not free to prune",
                layer=layer.name,
                channels=constant,
                largest_beta=largest,
            )


CONSTANT_OUTPUT: Final[Rule[Model]] = Rule(
    code="BN010",
    name="constant-output",
    title="gamma is near 0, but beta is not",
    severity="info",
    what="|gamma| is near 0, but |beta| is not: the channel puts out the constant beta.",
    why="A pruner that looks at gamma alone removes the channel and with it a constant that the "
    "next layer counts on; accuracy drops at once.",
    example="|gamma| < 0.001 in 3 of 128 channels, |beta| up to 0.7: not free to prune.",
    mend={
        "TF1": "Before pruning add activation(beta) times the next layer's weights to that "
        "layer's bias, or subtract it from the moving mean of the batch norm after it.",
        "Keras 2": "As for TF1.",
        "Keras 3": "As for TF1.",
    },
    confidence="Certain about the numbers. A negative beta before a ReLU is cut to 0 and can be "
    "pruned all the same.",
    threshold="`gamma` as for BN009, and `beta`, 0.1 by default: a tenth of the unit by which a "
    "normalized channel varies. The effect was reported for network slimming in "
    "liuzhuang13/slimming#5.",
    find=_find_constant_output,
)
