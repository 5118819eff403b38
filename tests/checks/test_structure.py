"""Rules about the variables of a layer: BN011 to BN013, and BN016."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bnstat.checks import check
from bnstat.model import BatchNorm, Source
from tests.checks.cases import ONES, ZEROS, find, norm, sound, start, without
from tests.output import models

BOTH = "moving mean and moving variance are not in the file"


@pytest.mark.parametrize(
    ("roles", "fields", "severity", "message"),
    [
        (("gamma", "beta"), {"evidence": "config"}, "error", BOTH),
        (("moving_mean",), {"evidence": "config"}, "error",
         "moving variance is not in the file"),
        (("gamma",), {"evidence": "name"}, "warning", BOTH),
        (("gamma",), {"evidence": "graph", "uses_batch_statistics": True}, "info",
         "exported in training mode: the layer uses batch statistics and stores none"),
    ],
)  # fmt: skip
def test_missing_statistics(
    roles: tuple[str, ...], fields: dict[str, Any], severity: str, message: str
) -> None:
    layer = models.layer("bn", dict.fromkeys(roles, ONES), **fields)
    (finding,) = check(models.model(incomplete=[layer]))
    assert (finding.rule, finding.severity, finding.layer) == ("BN011", severity, "bn")
    assert finding.message == message


def undecided(count: int, **fields: Any) -> BatchNorm:
    variables = [models.variable(f"norm/vars/{number}", np.ones(4)) for number in range(count)]
    return BatchNorm("norm", {}, undecided=variables, **fields)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (undecided(3), "the roles of 3 variables of shape [4] are not stored; the layer may not be "
         "batch norm"),
        (undecided(3, evidence="config"), "the roles of 3 variables of shape [4] are not stored"),
        (models.usual("norm", undecided=[models.variable("v/0", np.ones(8))]),
         "the role of 1 variable of shape [8] is not stored"),
    ],
)  # fmt: skip
def test_undecided_layers(layer: BatchNorm, message: str) -> None:
    (finding,) = check(models.model(models.usual("bn", seed=1), incomplete=[layer]))
    assert (finding.rule, finding.severity, finding.layer) == ("BN016", "info", "norm")
    assert finding.message == message


def test_unequal_shapes() -> None:
    mixed = models.layer("bn", {"gamma": np.ones(3), **start(4)})
    shapes = "different shapes: gamma [3], moving mean [4], moving variance [4]"
    collision = "; other layers have both shapes: two layers may have been saved under one name"
    others = [models.usual("a", 3), models.usual("b", 4, seed=1)]
    for more, end in ((others[:0], shapes), (others[:1], shapes), (others, shapes + collision)):
        finding, *_ = check(models.model(mixed, *more))
        assert (finding.rule, finding.severity, finding.layer) == ("BN012", "error", "bn")
        assert finding.message.endswith(end)
    arrays = {role: array.reshape(1, 1, 1, 4) for role, array in start(4).items()}
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
    end = ", but another gamma or beta"
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
def test_how_serious_a_copy_is(
    format_: str, original: BatchNorm, copy: BatchNorm, severity: str
) -> None:
    model = models.model(original, copy, source=Source("m", format_))
    (finding,) = check(model, select=["BN013"])
    assert (finding.layer, finding.severity) == ("bn", severity)
