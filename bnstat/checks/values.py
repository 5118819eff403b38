"""Rules about the stored values: not finite, negative, too small, too large."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bnstat.checks.rule import (
    SMALLEST_DEFAULT_EPSILON,
    Finding,
    Rule,
    Thresholds,
    epsilon_of,
    numbers_of,
    of_channels,
    scale_of,
)
from bnstat.model import ROLES, BatchNorm, Model

_DECAYED: Final = 1e-6
"""The largest |gamma| of a layer whose gamma decayed to 0."""


def _find_not_finite(rule: Rule[Model], model: Model, _: Thresholds) -> Iterator[Finding]:
    for layer in model.layers:
        for role in ROLES:
            numbers = numbers_of(layer, role)
            if numbers is None or np.isfinite(numbers).all():
                continue
            bad = ~np.isfinite(numbers)
            nan = int(np.isnan(numbers).sum())
            infinite = int(bad.sum()) - nan
            kinds = [kind for kind, count in (("NaN", nan), ("infinite", infinite)) if count]
            yield rule.finding(
                f"{role.replace('_', ' ')} is {' or '.join(kinds)} in {of_channels(bad)}",
                layer=layer.name,
                channels=bad,
                nan=nan,
                infinite=infinite,
            )


NOT_FINITE: Final = Rule(
    code="BN004",
    name="not-finite",
    title="a value is NaN or infinite",
    severity="error",
    what="A gamma, beta, moving mean or moving variance is NaN or infinite.",
    why="Every output of that channel is NaN, and one NaN channel usually makes the whole output "
    "of the network NaN. If only the variance is infinite, the channel outputs the constant beta.",
    example="moving variance is NaN in 3 of 64 channels.",
    fixes={
        "any library": "Go back to the last finite checkpoint; bnstat history shows which it is. A "
        "moving average never recovers from a NaN: find the batch that caused it, and lower the "
        "learning rate or clip gradients.",
        "Keras 2": "tf.debugging.enable_check_numerics() finds the op that produces a NaN; "
        "tf.keras.callbacks.TerminateOnNaN checks the loss only. With float16, keep batch norm in "
        "float32.",
        "Keras 3": "With mixed precision, use a LossScaleOptimizer.",
    },
    confidence="Certain.",
    find=_find_not_finite,
)


def _variances(model: Model) -> Iterator[tuple[BatchNorm, NDArray[np.float64]]]:
    """Yield each layer that has a moving variance, with the variance."""
    for layer in model.layers:
        variance = numbers_of(layer, "moving_variance")
        if variance is not None:
            yield layer, variance


def _find_negative(rule: Rule[Model], model: Model, _: Thresholds) -> Iterator[Finding]:
    for layer, variance in _variances(model):
        if not (negative := variance < 0).any():
            continue
        least = float(variance[negative].min())
        epsilon = epsilon_of(layer)
        is_saved = least + epsilon > 0
        if not is_saved:
            effect = "variance + epsilon is not positive, so its square root is NaN"
        elif layer.epsilon is None:
            effect = f"epsilon is not stored; it must be above {-least:.3g}"
        else:
            effect = f"variance + epsilon ({epsilon:g}) is still positive"
        mean = numbers_of(layer, "moving_mean")
        if mean is not None and mean.size > 1 and negative.mean() > 0.2 and (mean >= 0).all():
            effect += "; no moving mean is negative: mean and variance may be swapped"
        yield rule.finding(
            f"moving variance is negative in {of_channels(negative)}, down to {least:.3g}; "
            + effect,
            layer=layer.name,
            channels=negative,
            severity="warning" if is_saved else "error",
            least=least,
            epsilon=layer.epsilon,
        )


NEGATIVE_VARIANCE: Final = Rule(
    code="BN005",
    name="negative-variance",
    title="a moving variance is below 0",
    severity="error",
    what="A moving variance is below 0. The severity is warning if variance + epsilon is still "
    "positive in every channel.",
    why="An average of variances is never negative. Inference takes the square root of variance + "
    "epsilon: if the sum is negative, the channel is NaN; if it is barely positive, the channel's "
    "scale is huge.",
    example="moving variance is negative in 2 of 64 channels, down to -0.0031.",
    fixes={
        "any library": "Possible causes: a conversion that swapped mean and variance, weights "
        "that were averaged or extrapolated over checkpoints, or an optimizer that trained the "
        "moving statistics as variables.",
        "Keras": "layer.set_weights takes gamma, beta, moving mean and moving variance in this "
        "order. Without scale or center, the list is shorter.",
    },
    confidence="Certain. If the file does not store epsilon, 0.001 is assumed. This is the "
    "largest default of any library, so that an error is an error with every default.",
    threshold="0.",
    find=_find_negative,
)


def is_collapsed(layer: BatchNorm, thresholds: Thresholds) -> bool:
    """Return True if, by the moving variance, every channel of a layer is constant."""
    variance = numbers_of(layer, "moving_variance")
    if variance is None or not variance.size:
        return False
    return bool(_collapsed_channels(variance, _collapsed_limit(layer, thresholds)).all())


def _collapsed_limit(layer: BatchNorm, thresholds: Thresholds) -> float:
    return thresholds.collapsed * epsilon_of(layer, SMALLEST_DEFAULT_EPSILON)


def _collapsed_channels(variance: NDArray[np.float64], limit: float) -> NDArray[np.bool_]:
    return (variance >= 0) & (variance <= limit)


def _find_collapsed(rule: Rule[Model], model: Model, thresholds: Thresholds) -> Iterator[Finding]:
    dead = [layer for layer in model.layers if is_collapsed(layer, thresholds)]
    if len(dead) > 1:
        yield rule.finding(_dead_part(model, dead), layers=len(dead))
    for layer, variance in _variances(model):
        limit = _collapsed_limit(layer, thresholds)
        collapsed = _collapsed_channels(variance, limit)
        if not collapsed.any():
            continue
        zero = int((variance == 0).sum())
        is_dead = bool(collapsed.all())
        yield rule.finding(
            f"moving variance is at most {limit:.2g} in {of_channels(collapsed)}"
            + (f", exactly 0 in {zero}" if zero else "")
            + ("; the layer's output does not depend on its input" if is_dead else ""),
            layer=layer.name,
            channels=collapsed,
            severity="warning" if is_dead else "info",
            zero=zero,
            below=limit,
        )


def _dead_part(model: Model, dead: Sequence[BatchNorm]) -> str:
    part = f"the output of {len(dead)} of {len(model.layers)} layers does not depend on the input"
    gammas = [numbers_of(layer, "gamma") for layer in dead]
    decayed = sum(
        bool(np.abs(gamma).max() <= _DECAYED)
        for gamma in gammas
        if gamma is not None and gamma.size
    )
    if not decayed:
        return part
    return f"{part}; in {decayed} of them every |gamma| is below {_DECAYED:g}: weight decay?"


COLLAPSED_VARIANCE: Final = Rule(
    code="BN006",
    name="collapsed-variance",
    title="the moving variance of channels is near 0",
    severity="warning",
    what="The moving variance is 0 or almost 0: the channel was constant over the training data. "
    "The severity is info unless this is true of every channel of the layer. If it is true of "
    "several layers, one more finding reports their number.",
    why="The channel outputs a constant, about beta, so its filters can be pruned. Other data that "
    "does change the channel is amplified by gamma / sqrt(epsilon), which is about 30 to 300.",
    example="moving variance is at most 1e-07 in 234 of 256 channels, exactly 0 in 8.",
    fixes={
        "any library": "The usual causes are dead ReLUs and weight decay that shrank the filters "
        "to 0: lower the learning rate or the decay, or prune these channels. If all gammas are "
        "near 0 as well, exclude gamma from the weight decay.",
    },
    confidence="Certain that the channel was constant in the last batches. This is common in "
    "healthy networks, hence info.",
    threshold="`collapsed`, 0.0001 by default, as a multiple of epsilon (of 1e-5, the smallest "
    "default of any library, if the file does not store it): below it, the standard deviation of "
    "the normalized channel, sqrt(variance / (variance + epsilon)), is under 1 %.",
    find=_find_collapsed,
)


def _find_exploding(rule: Rule[Model], model: Model, thresholds: Thresholds) -> Iterator[Finding]:
    for layer in model.layers:
        scale = scale_of(layer)
        if scale is None:
            continue
        scale = np.where(np.isfinite(scale), np.abs(scale), 0)  # other rules report NaN
        if not (exploding := scale > thresholds.scale).any():
            continue
        bound = "at least " if layer.epsilon is None else ""
        yield rule.finding(
            f"|gamma| / sqrt(variance + epsilon) is above {thresholds.scale:g} in "
            f"{of_channels(exploding)}, up to {bound}{scale.max():.3g}",
            layer=layer.name,
            channels=exploding,
            largest=float(scale.max()),
            epsilon=layer.epsilon,
        )


EXPLODING_SCALE: Final = Rule(
    code="BN007",
    name="exploding-scale",
    title="|gamma| / sqrt(variance + epsilon) is huge",
    severity="warning",
    what="In inference, the layer multiplies the channel by "
    "|gamma| / sqrt(variance + epsilon), and this factor is huge.",
    why="The factor amplifies everything in that channel: rounding errors, a shift of the data, "
    "the quantization step. If the layer is folded into the weights before it, this channel alone "
    "sets the range of a quantized tensor. In float16, the activations overflow.",
    example="|gamma| / sqrt(variance + epsilon) is above 1000 in 1 of 32 channels, up to 5.2e+04.",
    fixes={
        "any library": "Raise epsilon to 0.001, constrain gamma or add weight decay to it, and "
        "continue training. In a finished network, prune the channel.",
        "Keras": "BatchNormalization(epsilon=1e-3, gamma_constraint=...).",
    },
    confidence="Certain if the file stores epsilon. If it does not, 0.001 is assumed. This is the "
    "largest default of any library, so that the true factor is at least as large.",
    threshold="`scale`, 1000 by default: a gamma of 1 reaches at most 1 / sqrt(epsilon), which is "
    "32 with the epsilon of Keras and 316 with the smallest default of any library, 1e-5. Data-"
    "free quantization (Nagel et al. 2019, section 3) shows what such ranges do to int8.",
    find=_find_exploding,
)


def _find_outlying(rule: Rule[Model], model: Model, thresholds: Thresholds) -> Iterator[Finding]:
    for layer, variance in _variances(model):
        finite = np.isfinite(variance)
        alive = variance[finite & (variance > _collapsed_limit(layer, thresholds))]
        if alive.size < 4:
            continue
        median = float(np.median(alive))
        outlying = finite & (variance > thresholds.outlier * median)
        if outlying.any():
            largest = float(variance[outlying].max())
            yield rule.finding(
                f"moving variance is up to {largest / median:.2g} times the layer's median in "
                f"{of_channels(outlying)} ({largest:.3g}, median {median:.3g})",
                layer=layer.name,
                channels=outlying,
                largest=largest,
                median=median,
            )


OUTLYING_VARIANCE: Final = Rule(
    code="BN008",
    name="outlying-variance",
    title="a moving variance is far above the median",
    severity="info",
    what="A channel's moving variance is far above the median of the layer. The median is taken "
    "over at least four channels that are not constant.",
    why="Normalization hides it from the next layer, but not from anything between the two: "
    "folding, per-tensor quantization, float16. It can also be left over from a single batch that "
    "exploded.",
    example="moving variance is up to 3e+06 times the layer's median in 1 of 32 channels.",
    fixes={
        "any library": "Scale the input features before the network. If a batch exploded, clip "
        "gradients and continue training until the average has forgotten it, which takes several "
        "times 1 / (1 - momentum) steps.",
        "Keras": "A Normalization layer scales the inputs.",
    },
    confidence="Certain about the number. A first layer that takes raw tabular features has such "
    "variances and is healthy, hence info.",
    threshold="`outlier`, 10000 by default: a standard deviation of 100 times the usual one. If "
    "the tensor is quantized to 256 levels, a usual channel then gets fewer than three of them.",
    find=_find_outlying,
)


def _off_channels(
    model: Model, thresholds: Thresholds
) -> Iterator[tuple[BatchNorm, NDArray[np.bool_], NDArray[np.float64]]]:
    """Yield each layer, a mask of channels with a |gamma| near 0, and every |beta|."""
    for layer in model.layers:
        gamma, beta = numbers_of(layer, "gamma"), numbers_of(layer, "beta")
        if gamma is not None and (beta is None or beta.shape == gamma.shape):
            betas = np.zeros_like(gamma) if beta is None else np.abs(beta)
            yield layer, np.abs(gamma) < thresholds.gamma, betas


def _find_near_zero(rule: Rule[Model], model: Model, thresholds: Thresholds) -> Iterator[Finding]:
    for layer, off, betas in _off_channels(model, thresholds):
        if (prunable := off & (betas < thresholds.beta)).any():
            yield rule.finding(
                f"|gamma| < {thresholds.gamma:g} and |beta| < {thresholds.beta:g} in "
                f"{of_channels(prunable)}: can be pruned",
                layer=layer.name,
                channels=prunable,
            )


NEAR_ZERO_GAMMA: Final = Rule(
    code="BN009",
    name="near-zero-gamma",
    title="channels are off: gamma is near 0",
    severity="info",
    what="|gamma| is near 0 and |beta| is small: the channel outputs almost nothing.",
    why="A pruner removes such a channel with its filters at no cost. Many of them show that the "
    "network is wider than necessary.",
    example="|gamma| < 0.001 and |beta| < 0.1 in 7 of 128 channels: can be pruned.",
    fixes={
        "any library": "Nothing is broken. To prune the channel, remove its filters from the layer "
        "before and its input weights from the layer after.",
    },
    confidence="Certain about the numbers. A residual branch whose gamma was initialized to 0 "
    "and that was not trained looks the same.",
    threshold="`gamma`, 0.001 by default: the threshold in the README of Google's MorphNet "
    "(google-research/morph-net, gamma_threshold=1e-3). Network slimming (Liu et al. 2017) takes "
    "a percentile over the whole network instead: pass it as --threshold gamma=VALUE.",
    find=_find_near_zero,
)


def _find_constant(rule: Rule[Model], model: Model, thresholds: Thresholds) -> Iterator[Finding]:
    for layer, off, betas in _off_channels(model, thresholds):
        if (constant := off & (betas >= thresholds.beta)).any():
            largest = float(betas[constant].max())
            yield rule.finding(
                f"|gamma| < {thresholds.gamma:g} in {of_channels(constant)}, but |beta| up to "
                f"{largest:.3g}: pruning changes the output",
                layer=layer.name,
                channels=constant,
                largest_beta=largest,
            )


CONSTANT_OUTPUT: Final = Rule(
    code="BN010",
    name="constant-output",
    title="gamma is near 0, but beta is not",
    severity="info",
    what="|gamma| is near 0, but |beta| is not: the channel outputs the constant beta.",
    why="A pruner that considers gamma alone removes the channel, and with it a constant that the "
    "next layer depends on. Accuracy drops at once.",
    example="|gamma| < 0.001 in 3 of 128 channels, but |beta| up to 0.7: pruning changes the "
    "output.",
    fixes={
        "any library": "Before pruning, add activation(beta) times the next layer's weights to "
        "that layer's bias, or subtract it from the moving mean of the batch norm after it.",
    },
    confidence="Certain about the numbers. A ReLU cuts a negative beta to 0, so that the channel "
    "can be pruned.",
    threshold="`gamma` as for BN009, and `beta`, 0.1 by default: a tenth of the standard deviation "
    "of a normalized channel. The effect was reported for network slimming in "
    "liuzhuang13/slimming#5.",
    find=_find_constant,
)
