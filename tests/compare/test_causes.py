"""Why layers differ: each cause word for word, and what only looks like it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from bnstat.model import BatchNorm
from tests.compare.ports import arrays_of, changed, rewritten, trained
from tests.compare.test_verdicts import judged, kinds
from tests.output.models import layer

BN = trained("bn", 16)
ARRAYS = arrays_of(BN)
VARIANCE = ARRAYS["moving_variance"]


def with_variance(variance: np.ndarray) -> BatchNorm:
    return changed(BN, {"moving_variance": np.asarray(variance, np.float32)})


def text(old: BatchNorm, new: BatchNorm) -> str:
    (cause,) = judged(old, new).causes
    return cause.text


def moved(role: str, places: Sequence[int], channels: int = 64) -> BatchNorm:
    """A layer of which one role is another in some channels."""
    wide = trained("bn", channels)
    array = np.array(wide.array(role))
    array[list(places)] += 1
    return changed(wide, {role: array})


@pytest.mark.parametrize("epsilon", [0.1, 1e-5, 0.0])
def test_an_epsilon_within_the_scale(epsilon: float) -> None:
    other = rewritten(changed(BN, {}, epsilon=epsilon), "bn")
    assert text(BN, other) == f"the scale is that of epsilon {epsilon:.2g}, not 0.001"


def test_a_negative_epsilon_is_none() -> None:
    assert kinds(judged(BN, rewritten(with_variance(VARIANCE - np.float32(0.01)), "bn"))) == []


def test_a_scale_that_is_rounded_is_of_no_other_epsilon() -> None:
    near = changed(BN, {"gamma": ARRAYS["gamma"] * np.float32(1 + 5e-6)})
    assert kinds(judged(BN, rewritten(near, "bn"))) == []


def test_a_rewritten_layer_that_tells_no_epsilon() -> None:
    bare = layer("bn", arrays_of(rewritten(BN, "bn")))
    assert text(BN, bare) == text(bare, BN) == "epsilon is missing in a file (pass --epsilon)"


def test_a_mean_of_0_alone_does_not_make_a_layer_rewritten() -> None:
    zeros = changed(BN, {"moving_mean": np.zeros(16, np.float32)}, momentum=0.9)
    one = np.zeros(16, np.float32)
    one[3] = 1
    change = judged(zeros, changed(BN, {"moving_mean": one}, momentum=0.99))
    assert kinds(change) == ["channels", "momentum"]


def test_statistics_or_channels_that_one_lacks_have_no_cause() -> None:
    for role in ("moving_mean", "moving_variance"):
        lacking = {key: array for key, array in ARRAYS.items() if key != role}
        assert kinds(judged(BN, layer("bn", lacking, epsilon=1e-3))) == []
        assert kinds(judged(layer("bn", lacking, epsilon=1e-3), BN)) == []
    assert kinds(judged(BN, trained("bn", 8))) == []
    assert kinds(judged(BN, rewritten(trained("other", 8), "bn"))) == []


ELSEWHERE = {"beta": ARRAYS["beta"] + np.float32(1)}


@pytest.mark.parametrize(
    "arrays",
    [
        {"gamma": ARRAYS["moving_mean"], "moving_mean": ARRAYS["gamma"]},
        {"moving_variance": np.sqrt(VARIANCE)},
        {"moving_variance": VARIANCE * np.float32(1.37)},
    ],
)
def test_a_cause_explains_all_or_is_none(arrays: dict[str, np.ndarray]) -> None:
    assert len(kinds(judged(BN, changed(BN, arrays)))) == 1
    assert kinds(judged(BN, changed(BN, arrays | ELSEWHERE))) == []


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

    @pytest.mark.parametrize("variance", [0 * VARIANCE, -VARIANCE, -0.5 * VARIANCE])
    def test_what_is_no_factor(self, variance: np.ndarray) -> None:
        assert kinds(judged(BN, with_variance(variance))) == []
        assert kinds(judged(with_variance(variance), BN)) == []

    def test_a_constant_channel_tells_no_factor(self) -> None:
        variance = np.array(VARIANCE)
        variance[0] = 0
        assert kinds(judged(with_variance(variance), with_variance(1.37 * variance))) == []

    def test_nor_does_one_channel_alone(self) -> None:
        one = trained("bn", 1)
        twice = changed(one, {"moving_variance": 2 * np.array(one.array("moving_variance"))})
        assert kinds(judged(one, twice)) == []

    def test_the_deviation(self) -> None:
        root = with_variance(np.sqrt(VARIANCE))
        assert text(BN, root) == "the variance became the standard deviation"
        assert text(root, BN) == "the standard deviation became the variance"


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
        assert text(trained("bn", 64), moved("gamma", places)) == said

    def test_up_to_one_in_ten(self) -> None:
        assert len(judged(trained("bn", 64), moved("gamma", range(6))).causes) == 1
        assert len(judged(trained("bn", 64), moved("gamma", range(7))).causes) == 0
        assert len(judged(trained("bn", 8), moved("gamma", range(1), 8)).causes) == 1
        assert len(judged(trained("bn", 8), moved("gamma", range(2), 8)).causes) == 0

    def test_one(self) -> None:
        start = float(trained("bn", 64).array("beta")[5])
        end = float(moved("beta", [5]).array("beta")[5])
        assert text(trained("bn", 64), moved("beta", [5])) == (
            f"1 of 64 channels differ: channel 5 (beta {start:.6g} -> {end:.6g})"
        )

    def test_one_in_several_roles(self) -> None:
        both = {role: arrays_of(moved(role, [5]))[role] for role in ("gamma", "moving_mean")}
        new = changed(trained("bn", 64), both)
        assert text(trained("bn", 64), new) == "1 of 64 channels differ: channel 5"

    def test_the_only_channel_is_the_layer(self) -> None:
        assert kinds(judged(trained("bn", 1), moved("gamma", [0], 1))) == []
