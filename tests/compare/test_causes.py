"""The verdict on two layers, and the causes of their differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bnstat.compare.diff import LayerChange, diff
from bnstat.errors import BnstatError
from bnstat.model import ROLES, BatchNorm
from tests.compare.ports import arrays_of, changed, compared, rewritten, trained
from tests.output.models import layer, model

BN = trained("bn", 16)
ARRAYS = arrays_of(BN)
VARIANCE = ARRAYS["moving_variance"]


def judged(old: BatchNorm, new: BatchNorm, **options: Any) -> LayerChange:
    return compared(old, new, **options).layers[0]


def kinds(change: LayerChange) -> list[str]:
    assert change.verdict == "different"
    return [cause.kind for cause in change.causes]


def with_variance(variance: np.ndarray) -> BatchNorm:
    return changed(BN, {"moving_variance": np.asarray(variance, np.float32)})


def moved(role: str, places: Sequence[int] = (3,), channels: int = 16) -> BatchNorm:
    """Return a layer with a changed role in some channels."""
    wide = trained("bn", channels)
    array = np.array(wide.array(role))
    array[list(places)] += np.float32(1e-3)
    return changed(wide, {role: array})


def rounded(dtype: Any) -> BatchNorm:
    return changed(BN, {role: array.astype(dtype) for role, array in ARRAYS.items()})


def shuffled() -> BatchNorm:
    order = np.random.default_rng(0).permutation(16)
    return changed(BN, {role: array[order] for role, array in ARRAYS.items()})


def at_least(role: str, value: float, factor: float = 1) -> BatchNorm:
    """Return a layer whose first channel has a value, and whose variances are multiplied."""
    array = np.array(ARRAYS[role])
    array[0] = value
    return changed(with_variance(np.float32(factor) * VARIANCE), {role: array})


GAP = np.arange(16) > 0
ONE = trained("bn", 1)


ELSEWHERE = {"beta": ARRAYS["beta"] + np.float32(1)}


def scaled(gamma: float, variance: float) -> BatchNorm:
    """Return a layer that scales by `gamma / sqrt(variance + epsilon)`, without an epsilon."""
    zeros = np.zeros(4, np.float32)
    statistics = {"moving_mean": zeros, "moving_variance": zeros + np.float32(variance)}
    return layer("bn", {"gamma": zeros + np.float32(gamma), "beta": zeros, **statistics})


ONES = np.ones(16, np.float32)
NEAR = changed(BN, {"gamma": ARRAYS["gamma"] * np.float32(1 + 1e-5)})
NO_EPSILON = layer("bn", ARRAYS)
NO_GAMMA = layer("bn", {role: ARRAYS[role] for role in ARRAYS if role != "gamma"})
TERMS = (3, 1000, 1000 / 3, 1)
CANCELLING = layer("bn", dict(zip(ROLES, np.float32([TERMS] * 4).T, strict=True)), epsilon=1e-7)
OFF = {**ARRAYS, "gamma": 0 * ONES}
OFF_ELSEWHERE = {**OFF, "moving_variance": 2 * VARIANCE}
BROKEN = changed(BN, {"beta": np.nan * ONES})
MOVING = changed(BN, {}, momentum=0.9)
FOLDED = rewritten(BN, "bn")
LARGE = changed(BN, {"moving_variance": 1e6 * ONES})


@pytest.mark.parametrize(
    ("old", "new", "options", "verdict"),
    [
        (BN, trained("other", 16), {}, "same"),
        (BN, FOLDED, {}, "same-effect"),
        # The tolerance is that of the effect; terms that cancel are measured by their size.
        (BN, NEAR, {}, "different"),
        (BN, NEAR, {"tolerance": 1e-6}, "different"),
        (BN, NEAR, {"tolerance": 1e-4}, "same-effect"),
        (BN, rounded(np.float16), {"tolerance": 0.03}, "same-effect"),
        (CANCELLING, rewritten(CANCELLING, "bn", 1e-12), {}, "same-effect"),
        (LARGE, changed(LARGE, {}, epsilon=1e-5), {}, "same-effect"),
        # A missing gamma is a gamma of ones.
        (NO_GAMMA, layer("bn", {**ARRAYS, "gamma": ONES}), {}, "same-effect"),
        (NO_GAMMA, layer("bn", {**ARRAYS, "gamma": ONES, **ELSEWHERE}), {}, "different"),
        # An unknown epsilon matters, unless the effects agree at every epsilon.
        (NO_EPSILON, FOLDED, {}, "different"),
        (NO_EPSILON, FOLDED, {"epsilon": 1e-3}, "same-effect"),
        (layer("bn", OFF), layer("bn", OFF_ELSEWHERE), {}, "same-effect"),
        (layer("bn", OFF), layer("bn", OFF_ELSEWHERE, epsilon=1e-3), {}, "same-effect"),
        (NO_EPSILON, layer("bn", OFF_ELSEWHERE), {}, "different"),
        (scaled(2, 3), scaled(3, 8), {}, "different"),
        (scaled(2, 3), scaled(3, 8), {"epsilon": 1.0}, "same-effect"),
        # The momentum matters to layers that have their statistics.
        (MOVING, changed(BN, {}, momentum=0.9), {}, "same"),
        (MOVING, changed(BN, {}, momentum=0.99), {}, "different"),
        (MOVING, layer("bn", arrays_of(FOLDED), epsilon=1e-9, momentum=0.99), {}, "same-effect"),
        # An effect of NaN equals no other.
        (BROKEN, BROKEN, {}, "same"),
        (BROKEN, rewritten(BROKEN, "bn"), {}, "different"),
    ],
)  # fmt: skip
def test_the_verdict(old, new, options, verdict) -> None:
    difference = compared(old, new, **options)
    assert difference.layers[0].verdict == verdict
    assert difference.equal == (verdict == "same")
    assert difference.equivalent == (verdict != "different")


HAIR = np.array(ARRAYS["gamma"])
HAIR[3] = np.nextafter(HAIR[3], np.float32(9))
UNTOLD = layer("bn", ARRAYS, momentum=0.9)
NO_MEAN = {"moving_mean": 0 * ONES}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (BN, changed(moved("gamma"), {}, epsilon=1e-5), ["channels", "epsilon"]),
        (changed(BN, {}, momentum=0.99),
         changed(changed(moved("gamma"), {}, momentum=0.9), {}, epsilon=1e-5),
         ["channels", "epsilon", "momentum"]),
        (UNTOLD, changed(UNTOLD, {}, momentum=0.99), ["momentum"]),
        # Values that only rounding changes are not a cause.
        (BN, changed(BN, {"gamma": HAIR}, epsilon=1e-5), ["epsilon"]),
        # A mean of 0 alone does not make a layer rewritten.
        (changed(BN, NO_MEAN, momentum=0.9),
         changed(BN, {"moving_mean": np.eye(16, dtype="f4")[3]}, momentum=0.99),
         ["channels", "momentum"]),
        # A mean is compared relative to the deviation, and nothing else is.
        (at_least("moving_mean", 1e-9), at_least("moving_mean", 2e-9, 1.375),
         ["rescaled-variance"]),
        (at_least("beta", 1e-9), at_least("beta", 2e-9, 1.375), []),
        # A constant channel, or only one channel, has no factor.
        (with_variance(VARIANCE * GAP), with_variance(1.37 * VARIANCE * GAP), []),
        (ONE, changed(ONE, {"moving_variance": 2 * np.array(ONE.array("moving_variance"))}), []),
    ],
)  # fmt: skip
def test_the_kinds_of_causes(old: BatchNorm, new: BatchNorm, expected: list[str]) -> None:
    assert kinds(judged(old, new)) == expected


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["rtol", "atol", "tolerance", "epsilon"])
def test_tolerance_and_epsilon_are_numbers_from_0_on(name: str, value: float) -> None:
    with pytest.raises(BnstatError, match="number of at least 0"):
        compared(BN, BN, **{name: value})


def lacking(role: str) -> BatchNorm:
    return layer("bn", {key: ARRAYS[key] for key in ARRAYS if key != role}, epsilon=1e-3)


WIDE = trained("bn", 64)
BOTH = {role: arrays_of(moved(role, [5], 64))[role] for role in ("gamma", "moving_mean")}
START, END = (float(of.array("beta")[5]) for of in (WIDE, moved("beta", [5], 64)))
WITHOUT = [*map(lacking, ("moving_mean", "moving_variance")),
           *(with_variance(factor * VARIANCE) for factor in (0, -1, -0.5))]  # fmt: skip
POSITIVE = changed(BN, {"moving_mean": np.abs(ARRAYS["moving_mean"]) + np.float32(0.1)})
MEAN = arrays_of(POSITIVE)["moving_mean"]
INITIAL = {"moving_mean": 0 * VARIANCE, "moving_variance": VARIANCE / VARIANCE}
MOMENTUM = changed(BN, {}, momentum=0.99)
SWAPPED = {"moving_mean": VARIANCE, "moving_variance": MEAN}
UNBIASED = "the variance differs by N/(N-1), N = 32: biased -> unbiased"
MISSING = "epsilon is missing in a file (pass --epsilon)"
BARE = layer("bn", arrays_of(rewritten(BN, "bn")))


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (BN, changed(BN, {}, epsilon=1e-5), "epsilon 0.001 -> 1e-05"),
        (MOMENTUM, changed(BN, {}, momentum=0.9), "momentum 0.99 -> 0.9"),
        (MOMENTUM, changed(BN, {}, momentum=0.01),
         "momentum 0.99 -> 0.01: one is the share of the old value, the other the share of the "
         "new"),
        # The epsilon, which is needed to compare a rewritten layer, is not needed here.
        *((BN, changed(BN, INITIAL, epsilon=epsilon),
           "the new statistics are the initial 0 and 1: they were not ported, or were never "
           "updated") for epsilon in (None, 1e-3)),
        (changed(BN, INITIAL), BN,
         "the old statistics are the initial 0 and 1: they were not ported, or were never "
         "updated"),
        (POSITIVE, changed(BN, SWAPPED), "moving mean and moving variance are swapped"),
        (changed(BN, SWAPPED), POSITIVE, "moving mean and moving variance are swapped"),
        (BN, changed(BN, {"gamma": ARRAYS["beta"], "beta": ARRAYS["gamma"]}),
         "gamma and beta are swapped"),
        (BN, rounded(np.float16), "rounded to float16"),
        (BN, rounded(ml_dtypes.bfloat16), "rounded to bfloat16"),
        (rounded(ml_dtypes.bfloat16), BN, "the old one is rounded to bfloat16"),
        (BN, shuffled(), "the channels are in another order"),
        (BN, with_variance(np.sqrt(VARIANCE)), "the variance became the standard deviation"),
        (with_variance(np.sqrt(VARIANCE)), BN, "the standard deviation became the variance"),
        (BN, BARE, MISSING),
        (BARE, BN, MISSING),
        (BN, moved("gamma", [3], 16), "1 of 16 channels differ: channel 3 (gamma "),
        # The same causes, if a converter has rewritten the new layer.
        *((BN, rewritten(changed(BN, {}, epsilon=epsilon), "bn"),
           f"the scale results from epsilon {epsilon:.2g}, not 0.001")
          for epsilon in (0.1, 1e-5, 0.0)),
        (POSITIVE, rewritten(changed(BN, SWAPPED), "bn"),
         "moving mean and moving variance are swapped"),
        (rewritten(changed(BN, SWAPPED), "bn"), POSITIVE,
         "moving mean and moving variance are swapped"),
        (BN, rewritten(with_variance(VARIANCE * np.float32(32 / 31)), "bn"), UNBIASED),
        *((BN, rewritten(moved(role), "bn"), "1 of 16 channels differ: channel 3 ")
          for role in ARRAYS),
        # factors of the variance
        *((BN, with_variance(VARIANCE.astype(np.float64) * factor), text) for factor, text in (
            (2.0, "the variance is multiplied by 2"),
            (0.5, "the variance is multiplied by 0.5"),
            (4 / 3, "the variance is multiplied by 1.33333"),
            (7 / 6, "the variance is multiplied by 1.16667"),
            (8 / 7, "the variance differs by N/(N-1), N = 8: biased -> unbiased"),
            (31 / 32, "the variance differs by N/(N-1), N = 32: unbiased -> biased"),
            (1000 / 999, "the variance differs by N/(N-1), N = about 1000: biased -> unbiased"),
            (1.375, "the variance is multiplied by 1.375"),
            (0.625, "the variance is multiplied by 0.625"),
            (2.0**20, "the variance is multiplied by 1.04858e+06"),
        )),
        # some channels
        (WIDE, moved("gamma", [3, 9], 64), "2 of 64 channels differ: channels 3, 9"),
        (WIDE, moved("gamma", [3, 9, 11], 64), "3 of 64 channels differ: channels 3, 9, 11"),
        (WIDE, moved("gamma", [3, 9, 11, 60], 64),
         "4 of 64 channels differ: channels 3, 9, 11, ..."),
        (WIDE, moved("beta", [5], 64),
         f"1 of 64 channels differ: channel 5 (beta {START:.6g} -> {END:.6g})"),
        (WIDE, changed(WIDE, BOTH), "1 of 64 channels differ: channel 5"),
        # Up to one channel in ten, or one of fewer channels, but not the only channel.
        (WIDE, moved("gamma", range(6), 64), "6 of 64 channels differ: channels 0, 1, 2, ..."),
        (WIDE, moved("gamma", range(7), 64), None),
        (trained("bn", 8), moved("beta", [1], 8), "1 of 8 channels differ: channel 1 (beta "),
        (trained("bn", 8), moved("gamma", range(2), 8), None),
        (ONE, moved("gamma", [0], 1), None),
        (BN, moved("gamma", range(0, 16, 2)), None),
        # another layer, even where a setting differs
        (BN, trained("bn", 16, seed=5, epsilon=1e-5), None),
        (BN, trained("bn", 8), None),
        (BN, rewritten(trained("other", 8), "bn"), None),
        # A cause must explain all differences.
        (BN, changed(BN, {"gamma": MEAN, "moving_mean": ARRAYS["gamma"], **ELSEWHERE}), None),
        (BN, changed(BN, {"moving_variance": np.sqrt(VARIANCE), **ELSEWHERE}), None),
        (BN, changed(BN, {"moving_variance": VARIANCE * np.float32(1.37), **ELSEWHERE}), None),
        # A negative epsilon is not a cause, nor is another one if the scale is only rounded.
        (BN, rewritten(with_variance(VARIANCE - np.float32(0.01)), "bn"), None),
        (BN, rewritten(changed(BN, {"gamma": ARRAYS["gamma"] * np.float32(1 + 5e-6)}), "bn"), None),
        *((*pair, None) for other in WITHOUT for pair in ((BN, other), (other, BN))),
    ],
)  # fmt: skip
def test_the_cause(old: BatchNorm, new: BatchNorm, text: str | None) -> None:
    change = judged(old, new)
    assert change.verdict == "different"
    texts = [cause.text for cause in change.causes]
    if text is not None and text.endswith(" "):
        texts = [each[: len(text)] for each in texts]
    assert texts == ([] if text is None else [text])


def test_the_epsilons_that_are_known() -> None:
    change = judged(NO_EPSILON, FOLDED)
    assert kinds(change) == ["epsilon-unknown"]
    assert (change.epsilons, change.epsilon_presence) == ((None, 1e-9), "new")


def test_dropped_and_reordered_layers_are_paired_by_effect() -> None:
    olds = [trained(f"a{number}", seed=number) for number in range(4)]
    news = [rewritten(old, f"BatchNormalization_{number}") for number, old in enumerate(olds)]
    difference = diff(model(*olds), model(*news[:1], *news[2:]))
    assert difference.removed == ("a1",)
    assert [each.old for each in difference.layers] == ["a0", "a2", "a3"]
    assert {(each.match, each.verdict) for each in difference.layers} == {("effect", "same-effect")}
    assert not difference.equivalent
    difference = diff(model(*olds), model(*news[::-1]))
    assert [each.old for each in difference.layers] == ["a3", "a2", "a1", "a0"]
    assert {each.match for each in difference.layers} == {"effect"}


def test_ties_are_reported() -> None:
    olds = [trained("a0", seed=1), trained("a1", seed=1), trained("a2", seed=2)]
    news = [trained("b0", seed=1), trained("b1", seed=1), trained("b2", seed=2)]
    assert diff(model(*olds), model(*news)).ties == ("b0", "b1")
