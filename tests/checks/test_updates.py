"""Rules about the updates of moving statistics: BN001 to BN003, BN014, BN015, BN017 and BN018."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import bnstat
from bnstat.checks import Finding, Thresholds, check, find_rules, trained_with
from bnstat.checks.training_mode import Evidence
from bnstat.errors import DamagedError
from bnstat.model import ROLES, BatchNorm, Model, PrecedingBias, Source, StatisticsUse, Variable
from bnstat.output.findings import explained
from bnstat.output.terminal.overview import overview
from bnstat.output.terminal.screen import Screen
from tests.checks.cases import (
    INITIAL,
    NAN,
    ONES,
    START,
    ZEROS,
    Layer,
    array,
    but,
    find,
    model,
    norm,
    sound,
    start,
)
from tests.compare.ports import rewritten, trained
from tests.output import models

TRAINED = ", although the network was trained"
UNTRAINED = "; gamma and beta are initial as well"
ONE_CHANNEL = Layer({"moving_mean": array(0), "moving_variance": array(1), "beta": array(0.5)})


@pytest.mark.parametrize(
    ("rule", "layer", "message"),
    [
        ("BN001", sound(**START), f"moving mean 0 and variance 1 in all 8 channels{TRAINED}"),
        ("BN001", ONE_CHANNEL, f"moving mean 0 and variance 1 in its only channel{TRAINED}"),
        ("BN001", sound(**INITIAL), f"moving mean 0 and variance 1 in all 8 channels{UNTRAINED}"),
        ("BN002", sound(moving_variance=ONES),
         "moving mean was updated, but moving variance is exactly 1 in every channel"),
        ("BN002", sound(moving_mean=ZEROS),
         "moving variance was updated, but moving mean is exactly 0 in every channel"),
        ("BN014", sound(momentum=0.25),
         "momentum 0.25 averages over about the last 1.3 batches"),
    ],
)  # fmt: skip
def test_messages(rule: str, layer: Layer, message: str) -> None:
    findings = find(rule, norm(sound(7), "other"), norm(layer))
    (finding,) = (each for each in findings if each.layer is not None)
    assert (finding.layer, finding.message) == ("bn", message)
    assert finding.numbers == ({"momentum": 0.25} if rule == "BN014" else {})


def test_a_momentum_of_1_averages_over_no_batch() -> None:
    (finding,) = find("BN014", norm(sound(momentum=1.0)), thresholds=Thresholds(momentum=2.0))
    assert "over about the last 0 batches" in finding.message


def severities(*layers: BatchNorm, step: int | None = None) -> list[tuple[str | None, str]]:
    return [(each.layer, each.severity) for each in find("BN001", *layers, step=step)]


def test_an_untrained_model_is_no_problem() -> None:
    layers = [norm(Layer(INITIAL), name) for name in "ab"]
    assert severities(*layers) == [(None, "info"), ("a", "info"), ("b", "info")]
    whole, *_ = find("BN001", *layers)
    assert whole.message == (
        f"both layers still have the initial statistics{UNTRAINED}: the model was not trained"
    )


def test_a_model_at_step_0_is_untrained_whatever_its_initial_gamma() -> None:
    layers = [norm(sound(**START), "a"), norm(sound(1, **START), "b")]
    assert {severity for _, severity in severities(*layers, step=0)} == {"info"}
    assert {severity for _, severity in severities(*layers, step=1)} == {"warning"}


@pytest.mark.parametrize(
    ("weights", "severity"),
    [
        ({"gamma": ZEROS}, "info"),
        ({"gamma": ONES}, "info"),
        ({"gamma": ONES * 2}, "warning"),
        ({"gamma": sound().arrays["gamma"], "beta": ZEROS}, "info"),
        ({"gamma": ONES, "beta": array(0, 0, 0, 1, 1, 1, 1, 1)}, "warning"),
        ({}, "warning"),
    ],
)
def test_the_weights_of_a_layer_show_if_it_was_trained(weights: Any, severity: str) -> None:
    *_, (name, found) = severities(models.layer("bn", {**weights, **START}), models.usual("other"))
    assert (name, found) == ("bn", severity)


def test_a_layer_without_weights_is_untrained_if_it_is_alone() -> None:
    assert severities(models.layer("bare", START)) == [("bare", "info")]


def test_the_finding_for_the_model_is_as_serious_as_its_most_serious_layer() -> None:
    layers = [norm(Layer(INITIAL), "a"), norm(sound(**START), "b")]
    assert severities(*layers) == [(None, "warning"), ("b", "warning"), ("a", "info")]


# How the model was trained

CHANNELS = 24
RANDOM = np.random.default_rng(5)
BETAS = {name: RANDOM.normal(0, 0.3, CHANNELS).astype(np.float32) for name in "ab"}
NOISE = {name: RANDOM.normal(0, 1e-6, CHANNELS).astype(np.float32) for name in "ab"}

BATCH = StatisticsUse(updates=2, updates_run=0, mode="batch", is_read=True)
UNREAD = BATCH._replace(is_read=False)
STORED = BATCH._replace(mode="stored")
FED = BATCH._replace(mode="fed")
EITHER = BATCH._replace(mode="either")
IDLE = StatisticsUse(updates=0, updates_run=None, mode=None, is_read=True)


def stuck(name: str) -> BatchNorm:
    return models.layer(name, {"gamma": np.ones(CHANNELS), "beta": BETAS[name], **start(CHANNELS)})


def network(use: StatisticsUse | None = None, biases: dict[str, np.ndarray] | None = None) -> Model:
    """Return two layers with initial statistics, their use in a graph, and the biases before."""
    variables = {name: models.variable(name, bias) for name, bias in (biases or {}).items()}
    return models.model(
        *map(stuck, "ab"),
        find_uses=lambda: {} if use is None else dict.fromkeys("ab", use),
        find_biases=lambda: {name: PrecedingBias(each, True) for name, each in variables.items()},
    )


def judged(model: Model) -> tuple[str, str, str]:
    """Return the rule, its severity, and how the model was trained."""
    first, *_ = check(model, select=["BN001", "BN017", "BN018"])
    return first.rule, first.severity, trained_with(model).trained_with


@pytest.mark.parametrize(
    ("use", "biases", "expected"),
    [
        (None, None, ("BN001", "warning", "unknown")),
        (None, NOISE, ("BN001", "error", "batch-statistics")),
        (None, BETAS, ("BN017", "info", "stored-statistics")),
        (BATCH, None, ("BN001", "error", "batch-statistics")),
        (UNREAD, None, ("BN018", "warning", "batch-statistics")),
        (STORED, None, ("BN017", "info", "stored-statistics")),
        (FED, None, ("BN001", "error", "batch-statistics")),
        (FED._replace(updates_run=1), None, ("BN001", "warning", "unknown")),
        (EITHER, None, ("BN001", "warning", "unknown")),
        (IDLE, None, ("BN001", "warning", "unknown")),
        (EITHER, NOISE, ("BN001", "error", "batch-statistics")),
        (EITHER, BETAS, ("BN017", "info", "stored-statistics")),
        (UNREAD, NOISE, ("BN018", "warning", "batch-statistics")),
        (UNREAD, BETAS, ("BN001", "warning", "unknown")),
        (FED, BETAS, ("BN001", "warning", "unknown")),
        (STORED, NOISE, ("BN001", "warning", "unknown")),
    ],
)
def test_weights_and_graph_together(
    use: StatisticsUse | None, biases: Any, expected: tuple[str, str, str]
) -> None:
    assert judged(network(use, biases)) == expected


def test_a_contradiction_is_reported() -> None:
    assert trained_with(network(BATCH, BETAS)).reason.endswith("these contradict each other")


def test_a_graph_of_only_some_layers_decides_nothing() -> None:
    model = network(BATCH)
    model._find_uses = lambda: {"a": BATCH}
    assert judged(model) == ("BN001", "warning", "unknown")
    assert "the graph shows 1 of 2 layers" in trained_with(model).reason


def test_the_numbers_of_the_evidence() -> None:
    evidence = trained_with(network(UNREAD, NOISE))
    assert (evidence.layers, evidence.channels) == (2, 2 * CHANNELS)
    assert (evidence.graph_layers, evidence.updates) == (2, 4)
    assert (evidence.updates_run, evidence.layers_read) == (0, 0)
    assert evidence.reason.startswith(
        "the training op of the graph runs 0 of 4 updates of the moving statistics, and only the "
        "updates read them; training normalizes with the statistics of each batch; the bias "
        "before the normalization did not follow beta"
    )


def test_only_layers_with_initial_statistics_count_if_there_are_any() -> None:
    model = models.model(stuck("a"), models.usual("c"), find_uses=lambda: {"a": BATCH, "c": STORED})
    findings = check(model, select=["BN001", "BN017", "BN018"])
    assert [(each.severity, each.layer) for each in findings] == [("error", None), ("error", "a")]
    assert findings[0].message.startswith("1 of 2 layers still have the initial statistics, and")
    assert findings[0].numbers == {"layers": 1}


def test_the_evidence_is_cached() -> None:
    model = network(BATCH)
    calls = []
    model._find_uses = lambda: calls.append(1) or {}  # type: ignore[func-returns-value]
    check(model)
    trained_with(model)
    assert len(calls) == 1


def test_updated_statistics_need_no_evidence() -> None:
    def refuse() -> Any:
        raise AssertionError

    layers = [models.usual(name, seed=seed) for seed, name in enumerate("ab")]
    assert check(models.model(*layers, find_uses=refuse, find_biases=refuse)) == []


def test_a_bias_that_cannot_be_read_shows_nothing() -> None:
    def read() -> np.ndarray:
        raise DamagedError("m.h5", "the checksum is wrong")

    bias = PrecedingBias(Variable("bias", "bias", "float32", (CHANNELS,), read), True)
    model = models.model(stuck("a"), find_biases=lambda: {"a": bias})
    assert judged(model) == ("BN001", "warning", "unknown")
    assert "the checksum is wrong" in trained_with(model).reason
    model._find_uses = lambda: {"a": BATCH}
    assert isinstance(trained_with(model), Evidence)


def test_the_message_recommends_recalibration_only_with_evidence() -> None:
    whole, *_ = check(network())
    assert whole.message == (
        "both layers still have the initial statistics: if training used the statistics of each "
        "batch, inference is broken; if it used the initial ones, inference is correct; bnstat "
        "drift MODEL --data D shows which; evidence: no bias is added right before a layer with a "
        "beta"
    )
    assert whole.numbers == {"layers": 2}
    whole, *_ = check(network(BATCH))
    assert "bnstat recalibrate MODEL --data D -o COPY repairs it" in whole.message
    (whole,) = check(network(STORED))
    assert "do not recalibrate" in whole.message


def test_the_explanation_contains_three_causes() -> None:
    text = " ".join(" ".join(explained(find_rules(["BN001"]), Screen(width=80))).split())
    for words in ("(1)", "(2)", "(3)", "BN017", "BN018", "Ioffe and Szegedy 2015", "wrong answer"):
        assert words in text


# Too few steps: BN003

FAR = norm(sound(moving_variance=ONES * 50))


def test_the_share_and_the_steps_that_are_needed() -> None:
    half = 0.5**0.1
    (finding,) = find("BN003", norm(sound(momentum=half)), step=10)
    assert finding.message == (
        f"50% of the initial 0 and 1 is still in the moving statistics (momentum {half:g}, step "
        "10; 34 steps reduce it to 10%), unless they were estimated (bnstat recalibrate)"
    )
    part = 0.5 / float(np.median(sound().arrays["moving_variance"]))
    expected = {"share": 0.5, "part": part, "step": 10, "momentum": half, "steps_needed": 34}
    assert dict(finding.numbers) == pytest.approx(expected)
    assert half**34 <= 0.1 < half**33


@pytest.mark.parametrize(
    ("least", "severity"), [(1.0, "info"), (0.76, "info"), (0.74, "warning"), (NAN, "info")]
)
def test_variances_far_above_the_share_do_not_confirm_the_step(least: float, severity: str) -> None:
    layer = sound(moving_variance=array(least, 2, 2, 2, 2, 2, 2, 2), momentum=0.5)
    (finding,) = find("BN003", norm(layer), step=1)
    assert finding.severity == severity


HALF = 0.5**0.1


@pytest.mark.parametrize(
    ("layers", "step", "found"),
    [
        # A variance below the share refutes the step, for all layers with the same momentum.
        ([norm(but("moving_variance", c2=0.5 * 0.9995), momentum=HALF)], 10, ["bn"]),
        ([norm(but("moving_variance", c2=0.5 * 0.998), momentum=HALF)], 10, []),
        ([norm(but("moving_variance", c0=0.01), "a"), norm(sound(1), "b"),
          norm(sound(2, momentum=0.9), "c")], 10, ["c"]),
        ([norm(sound(moving_variance=ONES * np.float32(NAN)))], 3, ["bn"]),
        # Layers without a usable momentum, and initial layers, are skipped.
        *(([norm(sound(momentum=momentum), "a"), FAR], 3, ["bn"])
          for momentum in (0.0, 1.0, 1.5, -0.5)),
        ([norm(sound(**START), "start"), FAR], 229, ["bn"]),
        ([norm(sound(), momentum=None)], 3, []),
        ([norm(sound(), trainable=False)], 3, []),
        ([norm(sound())], None, []),
    ],
)  # fmt: skip
def test_layers_with_too_few_steps(
    layers: list[BatchNorm], step: int | None, found: list[str]
) -> None:
    assert [each.layer for each in find("BN003", *layers, step=step)] == found


def counted(counts: dict[str, Any], *numbers: float, source: Source | None = None) -> list[Finding]:
    """Return the findings of BN003 in a file that stores counts of steps."""
    stored = {key: models.variable(key, np.array(count)) for key, count in counts.items()}
    layer = norm(sound(channels=len(numbers), moving_variance=array(*numbers)))
    source = source or Source("m", "keras-h5")
    return check(model(layer, source=source, stored=stored), select=["BN003"])


@pytest.mark.parametrize(
    "key",
    [
        "optimizer/vars/0",
        "optimizer_weights/iteration:0",
        "optimizer_weights/Adam/iter:0",
        "optimizer_weights/training/Adam/iterations:0",
        "optimizer_weights/adam/iteration",
        "optimizer_weights/iterations_1:0",
        "optimizer/_iterations/.ATTRIBUTES/VARIABLE_VALUE",
        "optimizer/iter/.ATTRIBUTES/VARIABLE_VALUE",
    ],
)
def test_the_count_of_the_optimizer_is_read_in_every_format(key: str) -> None:
    (finding,) = counted({key: 20}, 0.83, 0.9, 1.2)
    assert (finding.severity, finding.numbers["step"]) == ("warning", 20)


def test_a_small_remainder_beside_smaller_variances() -> None:
    share = 0.99**246
    counts = {"optimizer/vars/0": np.float32(246)}
    (finding,) = counted(counts, share + 0.006, share + 0.012, 0.18)
    assert finding.severity == "warning"
    assert finding.numbers["part"] == pytest.approx(share / (share + 0.012))
    assert finding.message.startswith("88% of the median moving variance is left of the initial 1")


@pytest.mark.parametrize(
    ("counts", "numbers"),
    [
        ([0], (0.5, 0.6)),  # compiled again before it was saved
        ([20], (0.5, 0.9)),  # a variance below the remainder disproves the count
        ([246], (0.09, 1.2, 1.4)),  # a remainder beside variances that are larger
        ([2000], (0.99**2000, 0.99**2000)),  # a remainder that epsilon hides
        ([-5], (0.5, 0.6)),
        ([NAN], (0.5, 0.6)),
        ([[20, 20]], (0.83, 0.9)),
        ([20, 21], (0.9, 0.9)),  # two optimizers that disagree
    ],
)
def test_a_count_that_shows_nothing(counts: list[Any], numbers: tuple[float, ...]) -> None:
    keys = ("optimizer_weights/a/iter:0", "optimizer_weights/b/iter:0")
    assert counted(dict(zip(keys, counts, strict=False)), *numbers) == []


@pytest.mark.parametrize(("format_", "findings"), [("keras-h5", 1), ("onnx", 0)])
def test_the_number_in_the_name_of_a_converted_file_is_not_a_step(
    format_: str, findings: int
) -> None:
    source = Source("m-640", format_, step=640)
    assert len(counted({}, *[0.012] * 8, source=source)) == findings


def test_the_count_in_a_keras_file(tmp_path: Path) -> None:
    config = {"name": "bn", "epsilon": 1e-3, "momentum": 0.99, "axis": [1]}
    layers = [
        {"class_name": "InputLayer", "config": {"name": "x", "batch_input_shape": [None, 4]}},
        {"class_name": "BatchNormalization", "config": config},
    ]
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        network = {"class_name": "Sequential", "config": {"name": "s", "layers": layers}}
        file.attrs["model_config"] = json.dumps(network)
        group = file.create_group("model_weights/bn")
        file["model_weights"].attrs["layer_names"] = [b"bn"]
        names = [f"bn/{role}:0" for role in ROLES]
        group.attrs["weight_names"] = [name.encode() for name in names]
        for name, value in zip(names, (1.1, 0.2, 0.3, 0.85), strict=True):
            group[name] = np.full(4, value, np.float32)
        file["optimizer_weights/Adam/iter:0"] = np.int64(20)
        file["optimizer_weights"].attrs["weight_names"] = [b"Adam/iter:0"]
    (finding,) = check(bnstat.load(path), select=["BN003"])
    assert finding.numbers["step"] == 20


@pytest.mark.parametrize(("variance", "rules"), [(1.172e-36, ["BN006"]), (0.5, ["BN002"])])
def test_a_constant_input_of_0_is_no_lost_update(variance: float, rules: list[str]) -> None:
    layer = norm(sound(moving_mean=ZEROS, moving_variance=ONES * np.float64(variance)))
    findings = check(model(layer), select=["BN002", "BN006"])
    assert [each.rule for each in findings] == rules


# Layers that a converter rewrote: BN015

CONVERTER = "OnnxMLTools 1.3.0 (opset 7)"
NEVER_UPDATED = [("BN001", "warning", name) for name in (None, "a", "b")]
REWRITTEN = [("BN015", "info", None)]


def converted(*layers: BatchNorm, format_: str = "onnx", writer: str | None = CONVERTER) -> Model:
    return models.model(*layers, source=Source("m", format_, writer=writer))


def two(epsilon: float | None = 1e-9) -> list[BatchNorm]:
    return [rewritten(trained(name, seed=seed), name, epsilon) for seed, name in enumerate("ab")]


def brief(findings: list[Finding]) -> list[tuple[str, str, str | None]]:
    return [(each.rule, each.severity, each.layer) for each in findings]


def shown(model: Model) -> str:
    return "\n".join(overview(model, Screen(width=100, boxes=False)))


def test_a_rewritten_model_is_no_problem() -> None:
    (finding,) = check(converted(*two()))
    assert brief([finding]) == REWRITTEN
    assert finding.message == (
        "rewritten by a converter: both layers have moving mean 0, variance 1 and an epsilon too "
        "small to change anything; gamma and beta are scale and shift"
    )
    assert dict(finding.numbers) == {"layers": 2}
    assert shown(converted(*two())).count("a converter moved them") == 1
    assert shown(converted(*two(1e-3))).count("still at their initial 0") == 1


def test_a_mean_of_minus_0_is_0() -> None:
    layers = two()
    layers[0].array("moving_mean")[:] = -0.0
    assert brief(check(converted(*layers))) == REWRITTEN


@pytest.mark.parametrize("epsilon", [1e-3, 1e-6, None])
def test_a_mean_of_minus_0_was_computed_whatever_the_epsilon(epsilon: float | None) -> None:
    layers = two(epsilon)
    layers[1].array("moving_mean")[3] = -0.0
    (finding,) = check(converted(*layers))
    assert brief([finding]) == REWRITTEN
    assert "-0.0" in finding.message
    assert shown(converted(*layers)).count("a converter moved them") == 1


def test_a_mean_of_minus_0_is_never_initial() -> None:
    layers = two(1e-3)
    layers[0].array("moving_mean")[:] = -0.0
    findings = check(models.model(*layers))
    assert brief(findings) == [("BN001", "warning", name) for name in (None, "b")]


@pytest.mark.parametrize("epsilon", [1e-3, 1e-7, None])
def test_a_usual_epsilon_leaves_both_possibilities(epsilon: float | None) -> None:
    findings = check(converted(*two(epsilon)))
    assert brief(findings) == NEVER_UPDATED
    assert "the file does not show which" in findings[0].message


@pytest.mark.parametrize(
    "source", [{"writer": "pytorch 2.1.0 (opset 17)"}, {"format_": "tf2-checkpoint"}]
)
def test_a_file_that_no_converter_rewrites(source: dict[str, str]) -> None:
    findings = check(converted(*two(), **source))
    assert brief(findings) == NEVER_UPDATED
    assert "bnstat drift" in findings[0].message


def test_one_layer_with_statistics_shows_that_nothing_was_rewritten() -> None:
    findings = check(converted(*two(), models.usual("c", epsilon=1e-3)))
    assert brief(findings) == NEVER_UPDATED
    assert findings[0].message.startswith("2 of 3 layers")


def test_an_untrained_network_was_not_rewritten() -> None:
    random = {**INITIAL, "gamma": np.linspace(0, 1, 8, dtype=np.float32)}
    layers = [models.layer(name, random, epsilon=1e-9) for name in "ab"]
    findings = check(converted(*layers), select=["BN0"], ignore=["BN009"])
    assert {(each.rule, each.severity) for each in findings} == {("BN001", "info")}


@pytest.mark.parametrize("count", [0, 31])
def test_pytorchs_count_of_updates_is_in_the_message(count: int) -> None:
    layer = two()[0]
    layer.extra = {"num_batches_tracked": models.variable("n", np.array(count))}
    _, finding = check(converted(layer, format_="pytorch", writer=None))
    assert (finding.rule, finding.severity) == ("BN001", "warning")
    assert f"(num_batches_tracked {count})" in finding.message
