from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bnstat.compare import Difference, LayerChange, diff
from bnstat.errors import BnstatError
from bnstat.model import BatchNorm
from tests.compare.ports import arrays_of, changed, rewritten, trained
from tests.output.models import layer, model

BN = trained("bn", 16)


def judged(old: BatchNorm, new: BatchNorm, **options: Any) -> LayerChange:
    return compared(old, new, **options).layers[0]


def compared(old: BatchNorm, new: BatchNorm, **options: Any) -> Difference:
    return diff(model(old), model(new), **options)


def kinds(change: LayerChange) -> list[str]:
    assert change.verdict == "different"
    return [cause.kind for cause in change.causes]


def test_the_same() -> None:
    difference = compared(BN, trained("other", 16))
    assert difference.layers[0].verdict == "same"
    assert difference.equal
    assert difference.equivalent


def test_a_rewritten_layer_is_the_same_in_effect() -> None:
    difference = compared(BN, rewritten(BN, "BatchNormalization__1"))
    assert difference.layers[0].verdict == "same-effect"
    assert difference.layers[0].causes == ()
    assert difference.equivalent
    assert not difference.equal


def test_the_tolerance_is_of_the_effect() -> None:
    arrays = arrays_of(BN)
    near = changed(BN, {"gamma": arrays["gamma"] * np.float32(1 + 1e-5)})
    assert judged(BN, near).verdict == "different"
    assert judged(BN, near, tolerance=1e-4).verdict == "same-effect"
    assert judged(BN, near, tolerance=1e-6).verdict == "different"


def test_terms_that_cancel_are_measured_by_their_size() -> None:
    start = {
        "gamma": np.full(4, 3, np.float32),
        "beta": np.full(4, 1000, np.float32),
        "moving_mean": np.full(4, 1000 / 3, np.float32),
        "moving_variance": np.full(4, 1, np.float32),
    }
    old = layer("bn", start, epsilon=1e-7)
    assert judged(old, rewritten(old, "bn", 1e-12)).verdict == "same-effect"


def test_no_gamma_is_a_gamma_of_ones() -> None:
    arrays = arrays_of(BN)
    del arrays["gamma"]
    ones = {**arrays, "gamma": np.ones(16, np.float32)}
    without, having = layer("bn", arrays), layer("bn", ones)
    assert judged(without, having).verdict == "same-effect"
    assert judged(without, layer("bn", {**ones, "beta": 2 * ones["beta"]})).verdict == "different"


def test_what_no_epsilon_can_be_known_of_is_not_called_the_same() -> None:
    old = layer("bn", arrays_of(BN))
    change = judged(old, rewritten(BN, "bn"))
    assert kinds(change) == ["epsilon-unknown"]
    assert change.told == "new"
    assert judged(old, rewritten(BN, "bn"), epsilon=1e-3).verdict == "same-effect"


def test_a_scale_of_0_is_that_at_any_epsilon() -> None:
    arrays = {**arrays_of(BN), "gamma": np.zeros(16, np.float32)}
    other = {**arrays, "moving_variance": 2 * arrays["moving_variance"]}
    for told in (None, 1e-3):
        assert judged(layer("bn", arrays), layer("bn", other, epsilon=told)).verdict == (
            "same-effect"
        )
    assert judged(layer("bn", arrays_of(BN)), layer("bn", other)).verdict == "different"


def test_what_agrees_at_one_epsilon_may_differ_at_another() -> None:
    def scaled(gamma: float, variance: float) -> BatchNorm:
        zeros = np.zeros(4, np.float32)
        statistics = {"moving_mean": zeros, "moving_variance": zeros + np.float32(variance)}
        return layer("bn", {"gamma": zeros + np.float32(gamma), "beta": zeros, **statistics})

    # At epsilon 1 both scale by 1.
    assert judged(scaled(2, 3), scaled(3, 8)).verdict == "different"
    assert judged(scaled(2, 3), scaled(3, 8), epsilon=1.0).verdict == "same-effect"


def test_another_momentum_is_a_difference_of_layers_with_statistics() -> None:
    moving = changed(BN, {}, momentum=0.9)
    for momentum, verdict in ((0.9, "same"), (0.99, "different")):
        assert judged(moving, changed(BN, {}, momentum=momentum)).verdict == verdict
    untold = [layer("bn", arrays_of(BN), momentum=momentum) for momentum in (0.9, 0.99)]
    assert kinds(judged(*untold)) == ["momentum"]
    folded = rewritten(BN, "bn")
    assert folded.momentum is None
    at_rest = layer("bn", arrays_of(folded), epsilon=folded.epsilon, momentum=0.99)
    assert judged(moving, at_rest).verdict == "same-effect"


def test_values_that_are_the_same_but_for_rounding_are_no_cause() -> None:
    array = np.array(BN.array("gamma"))
    array[3] = np.nextafter(array[3], np.float32(9))
    assert kinds(judged(BN, changed(BN, {"gamma": array}, epsilon=1e-5))) == ["epsilon"]


def test_values_and_settings_that_differ_are_both_told() -> None:
    array = np.array(BN.array("gamma"))
    array[3] += np.float32(1)
    new = changed(BN, {"gamma": array}, momentum=0.9, epsilon=1e-5)
    change = judged(changed(BN, {}, momentum=0.99), new)
    assert kinds(change) == ["channels", "epsilon", "momentum"]
    assert kinds(judged(BN, rewritten(changed(BN, {"gamma": array}), "bn"))) == ["channels"]


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["tolerance", "epsilon"])
def test_tolerance_and_epsilon_are_numbers_from_0_on(name: str, value: float) -> None:
    with pytest.raises(BnstatError, match="number of at least 0"):
        compared(BN, BN, **{name: value})


def test_nan_has_no_effect_that_could_be_the_same() -> None:
    broken = changed(BN, {"beta": np.full(16, np.nan, np.float32)})
    assert judged(broken, broken).verdict == "same"
    assert judged(broken, rewritten(broken, "bn")).verdict == "different"


class TestCauses:
    @pytest.mark.parametrize("is_rewritten", [False, True])
    def test_epsilon(self, is_rewritten: bool) -> None:
        other = changed(BN, {}, epsilon=1e-5)
        change = judged(BN, rewritten(other, "bn") if is_rewritten else other)
        assert kinds(change) == ["epsilon"]
        assert "0.001" in change.causes[0].text
        assert "1e-05" in change.causes[0].text

    def test_an_epsilon_that_changes_nothing(self) -> None:
        large = changed(BN, {"moving_variance": np.full(16, 1e6, np.float32)})
        assert judged(large, changed(large, {}, epsilon=1e-5)).verdict == "same-effect"

    def test_momentum(self) -> None:
        old = changed(BN, {}, momentum=0.99)
        assert kinds(judged(old, changed(BN, {}, momentum=0.01))) == ["momentum-meaning"]
        assert kinds(judged(old, changed(BN, {}, momentum=0.9))) == ["momentum"]

    @pytest.mark.parametrize("is_rewritten", [False, True])
    @pytest.mark.parametrize("turned", [False, True])
    def test_mean_and_variance_swapped(self, is_rewritten: bool, turned: bool) -> None:
        arrays = arrays_of(BN)
        arrays["moving_mean"] = np.abs(arrays["moving_mean"]) + np.float32(0.1)
        old = changed(BN, arrays)
        mean, variance = arrays["moving_mean"], arrays["moving_variance"]
        new = changed(BN, {"moving_mean": variance, "moving_variance": mean})
        pair = [old, rewritten(new, "bn") if is_rewritten else new]
        change = judged(*pair[::-1] if turned else pair)
        assert kinds(change) == ["swapped"]
        assert change.causes[0].text == "moving mean and moving variance are swapped"

    def test_gamma_and_beta_swapped(self) -> None:
        arrays = arrays_of(BN)
        new = changed(BN, {"gamma": arrays["beta"], "beta": arrays["gamma"]})
        assert kinds(judged(BN, new)) == ["swapped"]

    @pytest.mark.parametrize("is_rewritten", [False, True])
    @pytest.mark.parametrize("samples", [8, 32, 196])
    def test_the_unbiased_variance(self, samples: int, is_rewritten: bool) -> None:
        factor = np.float32(samples / (samples - 1))
        variance = BN.array("moving_variance") * factor
        new = changed(BN, {"moving_variance": variance})
        change = judged(BN, rewritten(new, "bn") if is_rewritten else new)
        assert kinds(change) == ["unbiased-variance"]
        assert str(samples) in change.causes[0].text
        assert change.causes[0].text.endswith("biased -> unbiased")
        assert judged(new, BN).causes[0].text.endswith("unbiased -> biased")

    def test_a_factor_of_no_number_of_samples(self) -> None:
        variance = BN.array("moving_variance") * np.float32(1.37)
        assert kinds(judged(BN, changed(BN, {"moving_variance": variance}))) == [
            "rescaled-variance"
        ]

    def test_the_deviation_for_the_variance(self) -> None:
        new = changed(BN, {"moving_variance": np.sqrt(BN.array("moving_variance"))})
        assert kinds(judged(BN, new)) == ["deviation"]
        assert kinds(judged(new, BN)) == ["deviation"]

    @pytest.mark.parametrize("role", ["gamma", "beta", "moving_mean", "moving_variance"])
    def test_one_channel(self, role: str) -> None:
        array = np.array(BN.array(role))
        array[3] += np.float32(1e-3)
        new = changed(BN, {role: array})
        change = judged(BN, new)
        assert kinds(change) == ["channels"]
        assert change.causes[0].text.startswith("1 of 16 channels differ: channel 3 (")
        assert kinds(judged(BN, rewritten(new, "bn"))) == ["channels"]

    def test_many_channels_are_no_cause(self) -> None:
        array = np.array(BN.array("gamma"))
        array[::2] += np.float32(1e-3)
        assert kinds(judged(BN, changed(BN, {"gamma": array}))) == []

    @pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
    def test_rounded(self, dtype: type[np.generic]) -> None:
        rounded = {role: array.astype(dtype) for role, array in arrays_of(BN).items()}
        new = changed(BN, rounded)
        assert kinds(judged(BN, new)) == ["rounded"]
        assert np.dtype(dtype).name in judged(new, BN).causes[0].text
        assert judged(BN, new, tolerance=0.03).verdict == "same-effect"

    def test_channels_in_another_order(self) -> None:
        order = np.random.default_rng(0).permutation(16)
        new = changed(BN, {role: array[order] for role, array in arrays_of(BN).items()})
        assert kinds(judged(BN, new)) == ["order"]

    def test_none_of_another_layer_even_where_a_setting_differs(self) -> None:
        assert kinds(judged(BN, trained("bn", 16, seed=5, epsilon=1e-5))) == []


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


def test_a_tie_is_said() -> None:
    olds = [trained("a0", seed=1), trained("a1", seed=1), trained("a2", seed=2)]
    news = [trained("b0", seed=1), trained("b1", seed=1), trained("b2", seed=2)]
    assert diff(model(*olds), model(*news)).ties == ("b0", "b1")
