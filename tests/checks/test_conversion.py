"""BN015: layers that a converter rewrote, and BN001 for layers that were never updated."""

from __future__ import annotations

import numpy as np
import pytest

from bnstat.checks import Finding, check
from bnstat.model import BatchNorm, Model, Source
from bnstat.output.terminal.overview import overview
from bnstat.output.terminal.screen import Screen
from tests.output import models

CONVERTER = "OnnxMLTools 1.3.0 (opset 7)"
NEVER_UPDATED = [("BN001", "warning", name) for name in (None, "a", "b")]
REWRITTEN = [("BN015", "info", None)]


def rewritten(layer: BatchNorm, epsilon: float | None = 1e-9) -> BatchNorm:
    """Return a layer with the same output, as converters write it."""
    scale, shift = layer.scale_and_shift(1e-3)
    zero, one = np.zeros_like(scale), np.ones_like(scale)
    roles = {"gamma": scale, "beta": shift, "moving_mean": zero, "moving_variance": one}
    return models.layer(layer.name, roles, epsilon=epsilon)


def model(*layers: BatchNorm, format_: str = "onnx", writer: str | None = CONVERTER) -> Model:
    return models.model(*layers, source=Source("m", format_, writer=writer))


def two(epsilon: float | None = 1e-9) -> list[BatchNorm]:
    return [rewritten(models.usual(name, seed=seed), epsilon) for seed, name in enumerate("ab")]


def brief(findings: list[Finding]) -> list[tuple[str, str, str | None]]:
    return [(each.rule, each.severity, each.layer) for each in findings]


def shown(model: Model) -> str:
    return "\n".join(overview(model, Screen(width=100, boxes=False)))


def test_a_rewritten_model_is_no_problem() -> None:
    (finding,) = check(model(*two()))
    assert brief([finding]) == REWRITTEN
    assert finding.message == (
        "rewritten by a converter: both layers have moving mean 0, variance 1 and an epsilon too "
        "small to change anything; gamma and beta are scale and shift"
    )
    assert dict(finding.numbers) == {"layers": 2}
    assert shown(model(*two())).count("a converter moved them") == 1
    assert shown(model(*two(1e-3))).count("still at their initial 0") == 1


def test_a_mean_of_minus_0_is_0() -> None:
    layers = two()
    layers[0].array("moving_mean")[:] = -0.0
    assert brief(check(model(*layers))) == REWRITTEN


@pytest.mark.parametrize("epsilon", [1e-3, 1e-6, None])
def test_a_mean_of_minus_0_was_computed_whatever_the_epsilon(epsilon: float | None) -> None:
    layers = two(epsilon)
    layers[1].array("moving_mean")[3] = -0.0
    (finding,) = check(model(*layers))
    assert brief([finding]) == REWRITTEN
    assert "-0.0" in finding.message
    assert shown(model(*layers)).count("a converter moved them") == 1


def test_a_mean_of_minus_0_is_never_initial() -> None:
    layers = two(1e-3)
    layers[0].array("moving_mean")[:] = -0.0
    findings = check(models.model(*layers))
    assert brief(findings) == [("BN001", "warning", name) for name in (None, "b")]


@pytest.mark.parametrize("epsilon", [1e-3, 1e-7, None])
def test_a_usual_epsilon_leaves_both_possibilities(epsilon: float | None) -> None:
    findings = check(model(*two(epsilon)))
    assert brief(findings) == NEVER_UPDATED
    assert "the file does not show which" in findings[0].message


@pytest.mark.parametrize(
    "source", [{"writer": "pytorch 2.1.0 (opset 17)"}, {"format_": "tf2-checkpoint"}]
)
def test_a_file_that_no_converter_rewrites(source: dict[str, str]) -> None:
    findings = check(model(*two(), **source))
    assert brief(findings) == NEVER_UPDATED
    assert "bnstat drift" in findings[0].message


def test_one_layer_with_statistics_shows_that_nothing_was_rewritten() -> None:
    findings = check(model(*two(), models.usual("c", epsilon=1e-3)))
    assert brief(findings) == NEVER_UPDATED
    assert findings[0].message.startswith("2 of 3 layers")


def test_an_untrained_network_was_not_rewritten() -> None:
    start = {"moving_mean": np.zeros(8, np.float32), "moving_variance": np.ones(8, np.float32)}
    random = {"gamma": np.linspace(0, 1, 8, dtype=np.float32), "beta": np.zeros(8, np.float32)}
    layers = [models.layer(name, {**random, **start}, epsilon=1e-9) for name in "ab"]
    findings = check(model(*layers), select=["BN0"], ignore=["BN009"])
    assert {(each.rule, each.severity) for each in findings} == {("BN001", "info")}


@pytest.mark.parametrize("count", [0, 31])
def test_pytorchs_count_of_updates_is_in_the_message(count: int) -> None:
    layer = two()[0]
    layer.extra = {"num_batches_tracked": models.variable("n", np.array(count))}
    _, finding = check(model(layer, format_="pytorch", writer=None))
    assert (finding.rule, finding.severity) == ("BN001", "warning")
    assert f"(num_batches_tracked {count})" in finding.message
