"""What findings say, word for word, with the numbers that the arrays have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from bnstat.checks import Finding, Thresholds, check
from bnstat.model import BatchNorm, Model, Source
from tests.checks.cases import (
    CASES,
    INITIAL,
    ONES,
    START,
    ZEROS,
    Case,
    Layer,
    array,
    both,
    but,
    sound,
)
from tests.output import models

NAN, INFINITE = float("nan"), float("inf")


def of(layer: Layer, name: str = "bn", **fields: Any) -> BatchNorm:
    settings = {"epsilon": layer.epsilon, "momentum": layer.momentum} | fields
    return models.layer(name, layer.arrays, **settings)


def among(*layers: BatchNorm, step: int | None = None) -> Model:
    return models.model(*layers, source=Source("runs/cnn", "tf2-checkpoint", step=step))


def said(rule: str, *layers: BatchNorm, **options: Any) -> list[Finding]:
    return check(among(*layers, step=options.pop("step", None)), select=[rule], **options)


def variances(*numbers: float, mean: np.ndarray | None = None) -> Layer:
    """A layer of these variances and nothing else but means."""
    usual = sound(1).arrays["moving_mean"][: len(numbers)]
    return Layer(
        {"moving_mean": usual if mean is None else mean, "moving_variance": array(*numbers)}
    )


FAR = sound(moving_variance=ONES * 50)
ONE_CHANNEL = Layer({"moving_mean": array(0), "moving_variance": array(1), "beta": array(0.5)})


@pytest.mark.parametrize(
    ("rule", "layer", "message", "numbers"),
    [
        ("BN001", sound(**START), "moving mean 0 and variance 1 in all 8 channels, although the "
         "network was trained", {}),
        ("BN001", ONE_CHANNEL, "moving mean 0 and variance 1 in its only channel, although the "
         "network was trained", {}),
        ("BN001", sound(**INITIAL), "moving mean 0 and variance 1 in all 8 channels; gamma and "
         "beta are initial as well", {}),
        ("BN002", sound(moving_variance=ONES), "moving mean was updated, but moving variance is "
         "exactly 1 in every channel", {}),
        ("BN002", sound(moving_mean=ZEROS), "moving variance was updated, but moving mean is "
         "exactly 0 in every channel", {}),
        ("BN004", but("moving_mean", c3=NAN, c5=INFINITE), "moving mean is NaN or infinite in 2 of "
         "8 channels", {"nan": 1, "infinite": 1}),
        ("BN004", but("gamma", c3=NAN, c5=NAN), "gamma is NaN in 2 of 8 channels",
         {"nan": 2, "infinite": 0}),
        ("BN004", but("beta", c3=-INFINITE), "beta is infinite in 1 of 8 channels",
         {"nan": 0, "infinite": 1}),
        ("BN004", variances(NAN), "moving variance is NaN in its only channel",
         {"nan": 1, "infinite": 0}),
        ("BN005", but("moving_variance", c1=-0.5), "moving variance is negative in 1 of 8 "
         "channels, down to -0.5; variance + epsilon is not positive, so its square root is NaN",
         {"least": -0.5, "epsilon": 1e-3}),
        ("BN005", but("moving_variance", c1=-(2.0**-12), c2=-(2.0**-13)), "moving variance is "
         "negative in 2 of 8 channels, down to -0.000244; variance + epsilon (0.001) is still "
         "positive", {"least": -(2.0**-12), "epsilon": 1e-3}),
        ("BN006", but("moving_variance", c0=0.0, c1=1e-8), "moving variance is at most 1e-07 in 2 "
         "of 8 channels, exactly 0 in 1", {"zero": 1, "below": 1e-4 * 1e-3}),
        ("BN006", but("moving_variance", c0=1e-8), "moving variance is at most 1e-07 in 1 of 8 "
         "channels", {"zero": 0, "below": 1e-4 * 1e-3}),
        ("BN006", sound(moving_variance=ZEROS), "moving variance is at most 1e-07 in all 8 "
         "channels, exactly 0 in 8; the layer's output does not depend on its input",
         {"zero": 8, "below": 1e-4 * 1e-3}),
        ("BN007", sound(gamma=ONES * 2048, moving_variance=ONES * 0.25, epsilon=0.0), "|gamma| / "
         "sqrt(variance + epsilon) is above 1000 in all 8 channels, up to 4.1e+03",
         {"largest": 4096.0, "epsilon": 0.0}),
        ("BN008", variances(2, 2, 1e6, 2), "moving variance is up to 5e+05 times the layer's median in "
         "1 of 4 channels (1e+06, median 2)", {"largest": 1e6, "median": 2.0}),
        ("BN009", both(c2=(0.0, 0.05), c3=(0.0005, 0.05)), "|gamma| < 0.001 and |beta| < 0.1 in 2 "
         "of 8 channels: can be pruned", {}),
        ("BN010", both(c2=(0.0, -0.5), c3=(-0.0005, 0.25)), "|gamma| < 0.001 in 2 of 8 channels, "
         "but |beta| up to 0.5: pruning changes the output", {"largest_beta": 0.5}),
        ("BN014", sound(momentum=0.25), "momentum 0.25 averages over about the last 1.3 batches",
         {"momentum": 0.25}),
    ],
)  # fmt: skip
def test_messages(rule: str, layer: Layer, message: str, numbers: Mapping[str, Any]) -> None:
    (finding,) = (
        each
        for each in said(rule, of(sound(7, momentum=0.99), "other"), of(layer))
        if each.layer is not None
    )
    assert (finding.layer, finding.message) == ("bn", message)
    assert dict(finding.numbers) == pytest.approx(dict(numbers))


def test_what_is_said_of_all_layers() -> None:
    stuck, untrained = (of(sound(**START), n) for n in "ab"), (of(Layer(INITIAL), n) for n in "ab")
    first, *_ = said("BN001", *stuck)
    assert first.message == (
        "all 2 layers still have the initial statistics: if training used the statistics of each "
        "batch, inference is broken; if it used the initial ones, inference is correct; bnstat "
        "drift MODEL --data D shows which; evidence: no bias is added right before a layer with a "
        "beta"
    )
    assert dict(first.numbers) == {"layers": 2}
    first, *_ = said("BN001", *untrained)
    assert first.message == (
        "all 2 layers still have the initial statistics; gamma and beta are initial as well: the "
        "model was not trained"
    )


def test_the_words_of_a_copy() -> None:
    alike, other = sound(), sound(beta=sound(1).arrays["beta"])
    (finding,) = said("BN013", of(alike, "a"), of(alike))
    whole = "moving mean and variance are identical to those of 'a', and so are gamma and beta"
    assert finding.message == whole
    (finding,) = said("BN013", of(alike, "a"), of(other))
    assert finding.message == whole.replace(
        ", and so are gamma and beta", ", but gamma or beta differs"
    )


def test_the_step_of_a_layer_that_hardly_warmed_up() -> None:
    half = 0.5**0.1
    (finding,) = said("BN003", of(sound(momentum=half)), step=10)
    assert finding.message == (
        f"50% of the initial 0 and 1 is still in the moving statistics (momentum {half:g}, step "
        "10; 34 steps reduce it to 10%)"
    )
    part = 0.5 / float(np.median(sound().arrays["moving_variance"]))
    expected = {"share": 0.5, "part": part, "step": 10, "momentum": half, "steps_needed": 34}
    assert dict(finding.numbers) == pytest.approx(expected)
    # A variance that is the share itself, but for its rounding, does not refute the step.
    layer = of(but("moving_variance", c2=0.5 * 0.9995), momentum=half)
    assert len(said("BN003", layer, step=10)) == 1
    assert said("BN003", of(but("moving_variance", c2=0.5 * 0.998), momentum=half), step=10) == []


@pytest.mark.parametrize(
    ("least", "severity"), [(1.0, "info"), (0.76, "info"), (0.74, "warning"), (NAN, "info")]
)
def test_variances_far_above_the_share_do_not_show_what_the_step_counts(
    least: float, severity: str
) -> None:
    layer = sound(moving_variance=array(least, 2, 2, 2, 2, 2, 2, 2), momentum=0.5)
    (finding,) = said("BN003", of(layer), step=1)
    assert finding.severity == severity


def test_variances_that_are_no_numbers_do_not_either() -> None:
    assert len(said("BN003", of(sound(moving_variance=ONES * np.float32(NAN))), step=3)) == 1


@pytest.mark.parametrize("momentum", [0.0, 1.0, 1.5, -0.5])
def test_a_momentum_that_averages_nothing_has_no_steps(momentum: float) -> None:
    (finding,) = said("BN003", of(sound(momentum=momentum), "a"), of(FAR), step=3)
    assert finding.layer == "bn"


def test_a_momentum_of_1_averages_over_nothing() -> None:
    (finding,) = said("BN014", of(sound(momentum=1.0)), thresholds=Thresholds(momentum=2.0))
    assert "over about the last 0 batches" in finding.message


class TestNegativeVariance:
    def test_an_epsilon_that_is_not_told(self) -> None:
        (finding,) = said("BN005", of(but("moving_variance", c1=-(2.0**-12)), epsilon=None))
        assert finding.message.endswith("; epsilon is not stored; it must be above 0.000244")
        assert finding.numbers["epsilon"] is None
        assert (
            said("BN005", of(but("moving_variance", c1=-0.5), epsilon=1.0))[0].severity == "warning"
        )
        (finding,) = said("BN005", of(but("moving_variance", c1=-1.0), epsilon=None))
        assert finding.message.endswith(
            "; variance + epsilon is not positive, so its square root is NaN"
        )

    @pytest.mark.parametrize(
        ("variance", "mean", "swapped"),
        [
            ([-1, -1, 1, 1, 1], [0, 1, 2, 3, 4], True),
            ([-1, 1, 1, 1, 1], [0, 1, 2, 3, 4], False),
            ([-1, -1, 1, 1, 1], [0, 1, 2, 3, -0.5], False),
            ([-1, 1], [0, 1], True),
            ([-1], [1], False),
        ],
    )
    def test_suspects_a_swap(self, variance: list[float], mean: list[float], swapped: bool) -> None:
        (finding,) = said("BN005", of(variances(*variance, mean=array(*mean))))
        told = finding.message.endswith(
            "; no moving mean is negative: mean and variance may be swapped"
        )
        assert told is swapped

    def test_needs_no_mean(self) -> None:
        layer = models.layer("bn", {"moving_variance": array(-1, -1)})
        assert len(said("BN005", layer)) == 1


class TestScale:
    def test_by_the_layers_own_epsilon(self) -> None:
        layer = sound(gamma=ONES * 2000, moving_variance=ZEROS)
        assert said("BN007", of(layer, epsilon=16.0)) == []
        assert len(said("BN007", of(layer, epsilon=3.0))) == 1

    def test_what_is_no_number_is_no_scale(self) -> None:
        layer = of(variances(NAN, -5, INFINITE, 4))
        assert said("BN007", layer, thresholds=Thresholds(scale=0.9)) == []

    def test_a_layer_without_gamma_has_that_of_1(self) -> None:
        layer = models.layer("bn", {**START, "moving_variance": ONES / 2**22}, epsilon=0.0)
        (finding,) = said("BN007", layer)
        assert finding.numbers["largest"] == 2048.0


class TestOutlying:
    def test_as_a_multiple_of_the_median(self) -> None:
        assert said("BN008", of(variances(0.01, 0.01, 0.01, 99))) == []
        assert said("BN008", of(variances(100, 100, 100, 9e5))) == []
        assert len(said("BN008", of(variances(0.01, 0.01, 0.01, 101)))) == 1

    def test_of_four_channels_at_least(self) -> None:
        assert len(said("BN008", of(variances(1, 1, 1, 1e6)))) == 1
        assert said("BN008", of(variances(1, 1, 1e6))) == []
        # Constant channels, and those that are no number, do not count.
        assert said("BN008", of(variances(1, 1, 0, 1e6))) == []
        assert said("BN008", of(variances(1, 1, INFINITE, 1e6))) == []
        assert said("BN008", of(variances(1, 1, NAN, 1e6))) == []


class TestGammas:
    def test_the_lines_are_drawn_below(self) -> None:
        layer = of(both(c2=(2.0**-10, 0.25), c3=(2.0**-11, 0.25), c4=(2.0**-11, 0.125)))
        lines = Thresholds(gamma=2.0**-10, beta=0.25)
        (off,) = said("BN009", layer, thresholds=lines)
        (constant,) = said("BN010", layer, thresholds=lines)
        assert (off.channels.tolist(), constant.channels.tolist()) == ([4], [3])


@pytest.mark.parametrize(("gamma", "severity"), [(0, "info"), (1, "info"), (2, "warning")])
def test_a_gamma_alone_tells_whether_a_layer_was_trained(gamma: int, severity: str) -> None:
    layer = models.layer("bn", {"gamma": ONES * gamma, **START})
    *_, finding = said("BN001", layer, of(sound(1), "other"))
    assert finding.severity == severity


BARE = models.layer("bare", {"gamma": sound(3).arrays["gamma"]}, momentum=0.99)
ODD = [
    BARE,
    models.layer("empty", {role: array() for role in START}, momentum=0.9),
    models.layer("unequal", {"gamma": ONES, "beta": array(1, 1), **START}, trainable=False),
    of(sound(4, momentum=0.95), "quiet"),
    models.layer("mean", {"moving_mean": ONES}, momentum=0.95),
    models.layer("variance", {"moving_variance": ONES / 2}, momentum=0.95),
    models.layer("few", {"moving_mean": array(1, 2), "moving_variance": array(2, 3)}),
    of(sound(5), "frozen", trainable=False),
]


@pytest.mark.parametrize("case", [case for case in CASES if case.layer == "bn"], ids=str)
def test_layers_that_a_rule_passes_over_end_no_search(case: Case) -> None:
    layers = [of(layer, name) for name, layer in case.found.items()]
    for odd in (ODD, ODD[::-1]):
        model = among(*odd, *layers, step=case.found_step)
        found = check(model, select=[case.rule])
        assert (case.severity, list(case.channels)) in [
            (each.severity, each.channels.tolist()) for each in found if each.layer == "bn"
        ]


def test_a_layer_at_the_start_ends_no_search() -> None:
    layers = [of(sound(**START), "start"), of(FAR)]
    assert [each.layer for each in said("BN003", *layers, step=229)] == ["bn"]
    layers = [of(variances(NAN, NAN, 0, 0), "nan"), of(variances(1, 1, 1, 1e6))]
    assert [each.layer for each in said("BN008", *layers)] == ["bn"]
