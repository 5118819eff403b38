"""Rules about gammas near 0: channels that a pruner removes, or had better not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bnstat.checks.rule import Finding, Rule, Thresholds, numbers_of, of_channels
from bnstat.model import BatchNorm, Model


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
