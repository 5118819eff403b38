"""Rules about the stored variables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bnstat.checks import Thresholds, check
from bnstat.model import BatchNorm, Source
from tests.checks.cases import ONES, START, ZEROS, both, but, find, norm, sound, variances, without
from tests.output import models

# Rule, layer, message of its only finding (None: no finding), and numbers of the finding.
MESSAGES = [
    ("BN004", norm(but("moving_mean", c3=np.nan, c5=np.inf)),
     "moving mean is NaN or infinite in 2 of 8 channels", {"nan": 1, "infinite": 1}),
    ("BN004", norm(but("gamma", c3=np.nan, c5=np.nan)),
     "gamma is NaN in 2 of 8 channels", {"nan": 2, "infinite": 0}),
    ("BN004", norm(but("beta", c3=-np.inf)),
     "beta is infinite in 1 of 8 channels", {"nan": 0, "infinite": 1}),
    ("BN004", norm(variances(np.nan)),
     "moving variance is NaN in its only channel", {"nan": 1, "infinite": 0}),
    ("BN005", norm(but("moving_variance", c1=-0.5)),
     "moving variance is negative in 1 of 8 channels, down to -0.5; variance + epsilon is not "
     "positive, so its square root is NaN", {"least": -0.5, "epsilon": 1e-3}),
    ("BN005", norm(but("moving_variance", c1=-(2.0**-12), c2=-(2.0**-13))),
     "moving variance is negative in 2 of 8 channels, down to -0.000244; variance + epsilon "
     "(0.001) is still positive", {"least": -(2.0**-12), "epsilon": 1e-3}),
    ("BN006", norm(but("moving_variance", c0=0.0, c1=1e-8)),
     "moving variance is at most 1e-07 in 2 of 8 channels, exactly 0 in 1",
     {"zero": 1, "below": 1e-4 * 1e-3}),
    ("BN006", norm(but("moving_variance", c0=1e-8)),
     "moving variance is at most 1e-07 in 1 of 8 channels", {"zero": 0, "below": 1e-4 * 1e-3}),
    ("BN006", norm(sound(moving_variance=ZEROS)),
     "moving variance is at most 1e-07 in all 8 channels, exactly 0 in 8; the layer's output "
     "does not depend on its input", {"zero": 8, "below": 1e-4 * 1e-3}),
    ("BN007", norm(sound(gamma=ONES * 2048, moving_variance=ONES * 0.25, epsilon=0.0)),
     "|gamma| / sqrt(variance + epsilon) is above 1000 in all 8 channels, up to 4.1e+03",
     {"largest": 4096.0, "epsilon": 0.0}),
    ("BN008", norm(variances(2, 2, 1e6, 2)),
     "moving variance is up to 5e+05 times the layer's median in 1 of 4 channels (1e+06, "
     "median 2)", {"largest": 1e6, "median": 2.0}),
    ("BN009", norm(both(c2=(0.0, 0.05), c3=(0.0005, 0.05))),
     "|gamma| < 0.001 and |beta| < 0.1 in 2 of 8 channels: can be pruned", {}),
    ("BN010", norm(both(c2=(0.0, -0.5), c3=(-0.0005, 0.25))),
     "|gamma| < 0.001 in 2 of 8 channels, but |beta| up to 0.5: pruning changes the output",
     {"largest_beta": 0.5}),
]  # fmt: skip
BROKEN = "variance + epsilon is not positive, so its square root is NaN"
SWAPPED = "; no moving mean is negative: mean and variance may be swapped"
# As `MESSAGES`, with only the end of the message.
ENDS = [
    # Epsilon decides how serious a negative variance is.
    *(("BN005", norm(but("moving_variance", c1=least), epsilon=epsilon), end, {"epsilon": epsilon})
      for least, epsilon, end in (
          (-(2.0**-12), None, "; epsilon is not stored; it must be above 0.000244"),
          (-0.0009, None, "above 0.0009"), (-0.001, None, BROKEN), (-1.0, None, BROKEN),
          (-0.5, 1.0, "still positive"), (-0.25, 0.25, BROKEN))),
    *(("BN005", norm(variances(*variance, mean=np.float32(mean))), end, {})
      for variance, mean, end in (
          ([-1, -1, 1, 1, 1], [0, 1, 2, 3, 4], SWAPPED), ([-1, 1], [0, 1], SWAPPED),
          ([-1, 1, 1, 1, 1], [0, 1, 2, 3, 4], BROKEN), ([-1], [1], BROKEN),
          ([-1, -1, 1, 1, 1], [0, 1, 2, 3, -0.5], BROKEN))),
    ("BN005", norm(without(variances(-1, -1), "moving_mean")), BROKEN, {}),
    ("BN007", norm(sound(gamma=ONES * 2000, moving_variance=ZEROS), epsilon=16.0), None, {}),
    ("BN007", norm(sound(gamma=ONES * 2000, moving_variance=ZEROS), epsilon=3.0),
     "up to 1.15e+03", {}),
    # If epsilon is not stored, the scale is a lower bound.
    ("BN007", norm(sound(gamma=ONES * 31, moving_variance=ZEROS), epsilon=None), None, {}),
    ("BN007", norm(sound(gamma=ONES * 32, moving_variance=ZEROS), epsilon=None),
     "up to at least 1.01e+03", {}),
    ("BN007", models.layer("bn", {**START, "moving_variance": ONES / 2**22}, epsilon=0.0),
     "up to 2.05e+03", {}),
    # A scale that is not finite is left to other rules.
    ("BN007", norm(variances(np.nan, -5, np.inf, 1e-9)), None, {}),
    # The median needs four channels that are finite and not constant.
    *(("BN008", norm(variances(*numbers)), end, {}) for numbers, end in (
        ((0.01, 0.01, 0.01, 99), None), ((100, 100, 100, 9e5), None),
        ((0.01, 0.01, 0.01, 101), "(101, median 0.01)"), ((1, 1, 1, 1e6), "(1e+06, median 1)"),
        ((1, 1, 1e6), None), ((1, 1, 0, 1e6), None), ((1, 1, np.inf, 1e6), None),
        ((1, 1, np.nan, 1e6), None))),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "layer", "message", "numbers"), [*MESSAGES, *ENDS])
def test_messages(rule: str, layer: BatchNorm, message: str | None, numbers: Any) -> None:
    findings = find(rule, norm(sound(7), "other"), layer)
    assert len(findings) == (message is not None)
    for finding in findings:
        assert finding.layer == "bn"
        assert finding.message.endswith(message or "")
        if any(message is row[2] for row in MESSAGES):
            assert finding.message == message
            assert finding.numbers.keys() == numbers.keys()
        if rule == "BN005":
            assert (finding.severity == "error") == (BROKEN in finding.message)
        for name, number in numbers.items():
            assert finding.numbers[name] == (number and pytest.approx(number))


@pytest.mark.parametrize(
    ("gammas", "message"),
    [
        ((1e-7, 1e-8), "the output of 2 of 3 layers does not depend on the input; in 2 of them "
         "every |gamma| is below 1e-06: weight decay?"),
        ((0.5, 0.5), "the output of 2 of 3 layers does not depend on the input"),
    ],
)  # fmt: skip
def test_one_finding_counts_several_dead_layers(gammas: tuple[float, float], message: str) -> None:
    dead = [norm(sound(gamma=ONES * gamma, moving_variance=ONES * 1e-12)) for gamma in gammas]
    dead[1].name = "other"
    whole, *_ = find("BN006", *dead, models.usual("alive"))
    assert (whole.layer, whole.severity, whole.numbers["layers"]) == (None, "warning", 2)
    assert whole.message == message
    assert [each.layer for each in find("BN006", dead[0], models.usual("alive"))] == ["bn"]


def test_thresholds_of_gamma_and_beta_are_exclusive_bounds() -> None:
    layer = norm(both(c2=(2.0**-10, 0.25), c3=(2.0**-11, 0.25), c4=(2.0**-11, 0.125)))
    thresholds = Thresholds(gamma=2.0**-10, beta=0.25)
    (off,) = find("BN009", layer, thresholds=thresholds)
    (constant_output,) = find("BN010", layer, thresholds=thresholds)
    assert (off.channels.tolist(), constant_output.channels.tolist()) == ([4], [3])


# Missing, undecided and copied variables: BN011 to BN013, and BN016

BOTH = "moving mean and moving variance are not in the file"


def lacking(*roles: str, **fields: Any) -> BatchNorm:
    return models.layer("norm", dict.fromkeys(roles, ONES), **fields)


def undecided(count: int, **fields: Any) -> BatchNorm:
    variables = [models.variable(f"norm/vars/{number}", np.ones(4)) for number in range(count)]
    return BatchNorm("norm", {}, undecided=variables, **fields)


@pytest.mark.parametrize(
    ("layer", "rule", "severity", "message"),
    [
        (lacking("gamma", "beta", evidence="config"), "BN011", "error", BOTH),
        (lacking("moving_mean", evidence="config"), "BN011", "error",
         "moving variance is not in the file"),
        (lacking("gamma", evidence="name"), "BN011", "warning", BOTH),
        (lacking("gamma", evidence="graph", uses_batch_statistics=True), "BN011", "info",
         "exported in training mode: the layer uses batch statistics and stores none"),
        (undecided(3), "BN016", "info",
         "the roles of 3 variables of shape [4] are not stored; the layer may not be batch norm"),
        (undecided(3, evidence="config"), "BN016", "info",
         "the roles of 3 variables of shape [4] are not stored"),
        (models.usual("norm", undecided=[models.variable("v/0", np.ones(8))]), "BN016", "info",
         "the role of 1 variable of shape [8] is not stored"),
    ],
)  # fmt: skip
def test_incomplete_layers(layer: BatchNorm, rule: str, severity: str, message: str) -> None:
    (finding,) = check(models.model(models.usual("bn", seed=1), incomplete=[layer]))
    assert (finding.rule, finding.severity, finding.layer) == (rule, severity, "norm")
    assert finding.message == message


def test_unequal_shapes() -> None:
    initial = {role: values[:4] for role, values in START.items()}
    mixed = models.layer("bn", {"gamma": np.ones(3), **initial})
    shapes = "different shapes: gamma [3], moving mean [4], moving variance [4]"
    collision = "; other layers have both shapes: two layers may have been saved under one name"
    others = [models.usual("a", 3), models.usual("b", 4, seed=1)]
    for more, end in ((others[:0], shapes), (others[:1], shapes), (others, shapes + collision)):
        finding, *_ = check(models.model(mixed, *more))
        assert (finding.rule, finding.severity, finding.layer) == ("BN012", "error", "bn")
        assert finding.message.endswith(end)
    arrays = {role: values.reshape(1, 1, 1, 4) for role, values in initial.items()}
    assert find("BN012", models.layer("bn", {"gamma": np.ones(4), **arrays})) == []


@pytest.mark.parametrize(("mean", "variance"), [(ZEROS, ONES), (ZEROS, ZEROS), (ZEROS, ONES * 2)])
def test_initial_and_dead_layers_are_not_copies(mean: np.ndarray, variance: np.ndarray) -> None:
    layer = sound(moving_mean=mean, moving_variance=variance)
    assert find("BN013", norm(layer, "a"), norm(layer, "b")) == []


def test_the_message_contains_the_name_of_the_original() -> None:
    message = "has the same moving mean and variance as 'a', and the same gamma and beta"
    (finding,) = find("BN013", norm(sound(), "a"), norm(sound()))
    assert (finding.layer, finding.message) == ("bn", message)
    (finding,) = find("BN013", norm(sound(), "a"), norm(sound(beta=sound(1).arrays["beta"])))
    end = ", but different gamma or beta"
    assert finding.message == message.replace(", and the same gamma and beta", end)


OTHER_GAMMA = sound(gamma=sound(1).arrays["gamma"])
BARE = without(sound(), "gamma")


@pytest.mark.parametrize(
    ("format_", "original", "copy", "severity"),
    [
        # The graph decides how serious a copy is; without a graph, the format decides.
        ("keras-h5", norm(sound(), "a"), norm(OTHER_GAMMA), "info"),
        ("onnx", norm(sound(), "a"), norm(OTHER_GAMMA), "warning"),
        *(("onnx", norm(sound(), "a", inputs=frozenset({("", "x")})),
           norm(OTHER_GAMMA, inputs=frozenset(inputs)), severity)
          for inputs, severity in (({("", "x")}, "info"), ({("", "x"), ("", "y")}, "info"),
                                   ({("", "y")}, "warning"))),
        ("saved-model", norm(sound(), "a", inputs=frozenset({("f", "x")})),
         norm(OTHER_GAMMA, inputs=frozenset({("g", "x")})), "info"),
        # A gamma that only one layer has differs.
        ("onnx", norm(sound(), "a"), norm(BARE), "warning"),
        ("onnx", norm(BARE, "a"), norm(BARE), "info"),
    ],
)  # fmt: skip
def test_how_serious_a_copy_is(format_: str, original: Any, copy: Any, severity: str) -> None:
    model = models.model(original, copy, source=Source("m", format_))
    (finding,) = check(model, select=["BN013"])
    assert (finding.layer, finding.severity) == ("bn", severity)
