"""The verdict on two layers, and the causes of their differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bnstat.compare.diff import Difference, LayerChange, diff
from bnstat.errors import BnstatError
from bnstat.model import BatchNorm
from tests.compare.ports import arrays_of, changed, rewritten, trained
from tests.output.models import layer, model

BN = trained("bn", 16)
ARRAYS = arrays_of(BN)
VARIANCE = ARRAYS["moving_variance"]


def judged(old: BatchNorm, new: BatchNorm, **options: Any) -> LayerChange:
    return compared(old, new, **options).layers[0]


def compared(old: BatchNorm, new: BatchNorm, **options: Any) -> Difference:
    return diff(model(old), model(new), **options)


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
CANCELLING = layer(
    "bn",
    {
        "gamma": np.full(4, 3, np.float32),
        "beta": np.full(4, 1000, np.float32),
        "moving_mean": np.full(4, 1000 / 3, np.float32),
        "moving_variance": np.full(4, 1, np.float32),
    },
    epsilon=1e-7,
)
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
def test_the_verdict(
    old: BatchNorm, new: BatchNorm, options: dict[str, float], verdict: str
) -> None:
    difference = compared(old, new, **options)
    assert difference.layers[0].verdict == verdict
    assert difference.equal == (verdict == "same")
    assert difference.equivalent == (verdict != "different")


def test_an_unknown_epsilon_is_a_cause() -> None:
    change = judged(NO_EPSILON, FOLDED)
    assert kinds(change) == ["epsilon-unknown"]
    assert change.epsilons == (None, 1e-9)
    assert change.epsilon_presence == "new"


def test_several_causes() -> None:
    assert kinds(judged(BN, changed(moved("gamma"), {}, epsilon=1e-5))) == ["channels", "epsilon"]
    old, new = changed(BN, {}, momentum=0.99), changed(moved("gamma"), {}, momentum=0.9)
    assert kinds(judged(old, changed(new, {}, epsilon=1e-5))) == [
        "channels", "epsilon", "momentum",
    ]  # fmt: skip
    untold = [layer("bn", ARRAYS, momentum=momentum) for momentum in (0.9, 0.99)]
    assert kinds(judged(*untold)) == ["momentum"]
    # Values that only rounding changes are not a cause.
    hair = ARRAYS["gamma"].copy()
    hair[3] = np.nextafter(hair[3], np.float32(9))
    assert kinds(judged(BN, changed(BN, {"gamma": hair}, epsilon=1e-5))) == ["epsilon"]


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["rtol", "atol", "tolerance", "epsilon"])
def test_tolerance_and_epsilon_are_numbers_from_0_on(name: str, value: float) -> None:
    with pytest.raises(BnstatError, match="number of at least 0"):
        compared(BN, BN, **{name: value})


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
        *((BN, rewritten(moved(role), "bn"), "1 of 16 channels differ: channel 3 (")
          for role in ARRAYS),
    ],
)  # fmt: skip
def test_the_cause(old: BatchNorm, new: BatchNorm, text: str) -> None:
    change = judged(old, new)
    assert change.verdict == "different"
    (cause,) = change.causes
    assert cause.text.startswith(text)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # Many channels, or another layer even where a setting differs.
        (BN, moved("gamma", range(0, 16, 2))),
        (BN, trained("bn", 16, seed=5, epsilon=1e-5)),
        (BN, trained("bn", 8)),
        (BN, rewritten(trained("other", 8), "bn")),
        # A cause must explain all differences.
        (BN, changed(BN, {"gamma": MEAN, "moving_mean": ARRAYS["gamma"], **ELSEWHERE})),
        (BN, changed(BN, {"moving_variance": np.sqrt(VARIANCE), **ELSEWHERE})),
        (BN, changed(BN, {"moving_variance": VARIANCE * np.float32(1.37), **ELSEWHERE})),
        # A negative epsilon is not a cause, nor is another one if the scale is only rounded.
        (BN, rewritten(with_variance(VARIANCE - np.float32(0.01)), "bn")),
        (BN, rewritten(changed(BN, {"gamma": ARRAYS["gamma"] * np.float32(1 + 5e-6)}), "bn")),
        *((BN, with_variance(factor * VARIANCE)) for factor in (0, -1, -0.5)),
        *((with_variance(factor * VARIANCE), BN) for factor in (0, -1, -0.5)),
    ],
)
def test_differences_without_a_cause(old: BatchNorm, new: BatchNorm) -> None:
    assert kinds(judged(old, new)) == []


def test_missing_statistics_have_no_cause() -> None:
    for role in ("moving_mean", "moving_variance"):
        lacking = {key: array for key, array in ARRAYS.items() if key != role}
        assert kinds(judged(BN, layer("bn", lacking, epsilon=1e-3))) == []
        assert kinds(judged(layer("bn", lacking, epsilon=1e-3), BN)) == []


def test_a_dropped_layer_is_removed_and_the_others_keep_their_pairs() -> None:
    olds = [trained(f"a{number}", seed=number) for number in range(4)]
    news = [rewritten(old, f"BatchNormalization_{number}") for number, old in enumerate(olds)]
    difference = diff(model(*olds), model(*news[:1], *news[2:]))
    assert difference.removed == ("a1",)
    assert [each.old for each in difference.layers] == ["a0", "a2", "a3"]
    assert {each.match for each in difference.layers} == {"effect"}
    assert {each.verdict for each in difference.layers} == {"same-effect"}
    assert not difference.equivalent


def test_layers_in_another_order_are_paired_by_effect() -> None:
    olds = [trained(f"a{number}", seed=number) for number in range(4)]
    news = [rewritten(old, f"b_{old.name}") for old in olds[::-1]]
    difference = diff(model(*olds), model(*news))
    assert [(each.old, each.match) for each in difference.layers] == [
        ("a3", "effect"), ("a2", "effect"), ("a1", "effect"), ("a0", "effect"),
    ]  # fmt: skip


def test_ties_are_reported() -> None:
    olds = [trained("a0", seed=1), trained("a1", seed=1), trained("a2", seed=2)]
    news = [trained("b0", seed=1), trained("b1", seed=1), trained("b2", seed=2)]
    assert diff(model(*olds), model(*news)).ties == ("b0", "b1")


def text(old: BatchNorm, new: BatchNorm) -> str:
    (cause,) = judged(old, new).causes
    return cause.text


def test_a_mean_of_0_alone_does_not_make_a_layer_rewritten() -> None:
    zeros = changed(BN, {"moving_mean": np.zeros(16, np.float32)}, momentum=0.9)
    one = np.zeros(16, np.float32)
    one[3] = 1
    change = judged(zeros, changed(BN, {"moving_mean": one}, momentum=0.99))
    assert kinds(change) == ["channels", "momentum"]


class TestVariance:
    @pytest.mark.parametrize(
        ("factor", "said"),
        [
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
        ],
    )
    def test_a_factor(self, factor: float, said: str) -> None:
        variance = (VARIANCE.astype(np.float64) * factor).astype(np.float32)
        assert text(BN, with_variance(variance)) == said

    def test_a_constant_channel_has_no_factor(self) -> None:
        variance = np.array(VARIANCE)
        variance[0] = 0
        assert kinds(judged(with_variance(variance), with_variance(1.37 * variance))) == []

    def test_nor_does_one_channel_alone(self) -> None:
        one = trained("bn", 1)
        twice = changed(one, {"moving_variance": 2 * np.array(one.array("moving_variance"))})
        assert kinds(judged(one, twice)) == []


def test_a_mean_is_measured_by_the_deviation_and_nothing_else_is() -> None:
    def hair(role: str, value: float, factor: float) -> BatchNorm:
        array = np.array(ARRAYS[role])
        array[0] = value
        return changed(with_variance(np.float32(factor) * VARIANCE), {role: array})

    pair = [hair("moving_mean", value, factor) for value, factor in ((1e-9, 1), (2e-9, 1.375))]
    assert kinds(judged(*pair)) == ["rescaled-variance"]
    pair = [hair("beta", value, factor) for value, factor in ((1e-9, 1), (2e-9, 1.375))]
    assert kinds(judged(*pair)) == []


class TestChannels:
    @pytest.mark.parametrize(
        ("places", "said"),
        [
            ([3, 9], "2 of 64 channels differ: channels 3, 9"),
            ([3, 9, 11], "3 of 64 channels differ: channels 3, 9, 11"),
            ([3, 9, 11, 60], "4 of 64 channels differ: channels 3, 9, 11, ..."),
        ],
    )
    def test_several(self, places: list[int], said: str) -> None:
        assert text(trained("bn", 64), moved("gamma", places, 64)) == said

    def test_up_to_one_in_ten(self) -> None:
        assert len(judged(trained("bn", 64), moved("gamma", range(6), 64)).causes) == 1
        assert len(judged(trained("bn", 64), moved("gamma", range(7), 64)).causes) == 0
        assert len(judged(trained("bn", 8), moved("gamma", range(1), 8)).causes) == 1
        assert len(judged(trained("bn", 8), moved("gamma", range(2), 8)).causes) == 0

    def test_one(self) -> None:
        start = float(trained("bn", 64).array("beta")[5])
        end = float(moved("beta", [5], 64).array("beta")[5])
        assert text(trained("bn", 64), moved("beta", [5], 64)) == (
            f"1 of 64 channels differ: channel 5 (beta {start:.6g} -> {end:.6g})"
        )

    def test_one_in_several_roles(self) -> None:
        both = {role: arrays_of(moved(role, [5], 64))[role] for role in ("gamma", "moving_mean")}
        new = changed(trained("bn", 64), both)
        assert text(trained("bn", 64), new) == "1 of 64 channels differ: channel 5"

    def test_the_only_channel_is_the_layer(self) -> None:
        assert kinds(judged(trained("bn", 1), moved("gamma", [0], 1))) == []
