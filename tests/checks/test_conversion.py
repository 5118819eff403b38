"""A layer that a converter rewrote is told from one that was never updated."""

from __future__ import annotations

import numpy as np
import pytest

from bnstat.checks import Finding, check
from bnstat.model import BatchNorm, Model, Source
from bnstat.output.terminal.overview import overview
from bnstat.output.terminal.screen import Screen
from tests.output import models

CONVERTER = "OnnxMLTools 1.3.0 (opset 7)"


def rewritten(layer: BatchNorm, epsilon: float | None = 1e-9) -> BatchNorm:
    """The same function, as converters write it."""
    scale, shift = layer.scale_and_shift(1e-3)
    zero, one = np.zeros_like(scale), np.ones_like(scale)
    roles = {"gamma": scale, "beta": shift, "moving_mean": zero, "moving_variance": one}
    return models.layer(layer.name, roles, epsilon=epsilon)


def model(*layers: BatchNorm, format_: str = "onnx", writer: str | None = CONVERTER) -> Model:
    return models.model(*layers, source=Source("m", format_, writer=writer))


def two(epsilon: float | None = 1e-9) -> list[BatchNorm]:
    return [rewritten(models.usual(name, seed=seed), epsilon) for seed, name in enumerate("ab")]


def told(found: list[Finding]) -> list[tuple[str, str, str | None]]:
    return [(each.rule, each.severity, each.layer) for each in found]


def test_rewritten_by_a_converter_is_said_and_no_harm() -> None:
    (finding,) = check(model(*two()))
    assert told([finding]) == [("BN015", "info", None)]
    assert finding.message.startswith("rewritten by a converter: all 2 layers")
    assert dict(finding.numbers) == {"layers": 2}


@pytest.mark.parametrize(
    ("epsilon", "legend"), [(1e-9, "a converter moved them"), (1e-3, "still at their initial 0")]
)
def test_the_table_says_so_too(epsilon: float, legend: str) -> None:
    lines = list(overview(model(*two(epsilon)), Screen(width=100, boxes=False)))
    assert sum(legend in line for line in lines) == 1


def test_a_mean_of_minus_0_is_0() -> None:
    layers = two()
    layers[0].array("moving_mean")[:] = -0.0
    assert told(check(model(*layers))) == [("BN015", "info", None)]


@pytest.mark.parametrize("epsilon", [1e-3, 1e-6, None])
def test_a_mean_of_minus_0_was_computed_whatever_the_epsilon(epsilon: float | None) -> None:
    layers = two(epsilon)
    layers[1].array("moving_mean")[3] = -0.0
    (finding,) = check(model(*layers))
    assert told([finding]) == [("BN015", "info", None)]
    assert "-0.0" in finding.message
    lines = list(overview(model(*layers), Screen(width=100, boxes=False)))
    assert sum("a converter moved them" in line for line in lines) == 1


def test_a_mean_of_minus_0_is_never_initial() -> None:
    layers = two(1e-3)
    layers[0].array("moving_mean")[:] = -0.0
    found = check(models.model(*layers))
    assert told(found) == [("BN001", "warning", name) for name in (None, "b")]


@pytest.mark.parametrize("epsilon", [1e-3, 1e-7, None])
def test_where_nothing_tells_that_is_said(epsilon: float | None) -> None:
    found = check(model(*two(epsilon)))
    assert told(found) == [("BN001", "warning", name) for name in (None, "a", "b")]
    assert "the file does not show which" in found[0].message


def test_what_pytorch_exports_is_as_it_was_trained() -> None:
    found = check(model(*two(), writer="pytorch 2.1.0 (opset 17)"))
    assert told(found) == [("BN001", "warning", name) for name in (None, "a", "b")]
    assert "bnstat drift" in found[0].message


def test_one_layer_with_statistics_shows_that_nothing_was_rewritten() -> None:
    found = check(model(*two(), models.usual("c", epsilon=1e-3)))
    assert told(found) == [("BN001", "warning", name) for name in (None, "a", "b")]
    assert found[0].message.startswith("2 of 3 layers")


def test_a_network_that_was_not_trained_was_not_rewritten() -> None:
    start = {"moving_mean": np.zeros(8, np.float32), "moving_variance": np.ones(8, np.float32)}
    random = {"gamma": np.linspace(0, 1, 8, dtype=np.float32), "beta": np.zeros(8, np.float32)}
    layers = [models.layer(name, {**random, **start}, epsilon=1e-9) for name in "ab"]
    found = check(model(*layers), select=["BN0"], ignore=["BN009"])
    assert {(each.rule, each.severity) for each in found} == {("BN001", "info")}


def test_formats_that_no_converter_writes() -> None:
    found = check(model(*two(), format_="tf2-checkpoint"))
    assert told(found) == [("BN001", "warning", name) for name in (None, "a", "b")]
    assert "bnstat drift" in found[0].message


@pytest.mark.parametrize("count", [0, 31])
def test_pytorchs_count_of_updates_is_shown(count: int) -> None:
    layer = two()[0]
    layer.extra = {"num_batches_tracked": models.variable("n", np.array(count))}
    _, finding = check(model(layer, format_="pytorch", writer=None))
    assert (finding.rule, finding.severity) == ("BN001", "warning")
    assert f"(num_batches_tracked {count})" in finding.message
