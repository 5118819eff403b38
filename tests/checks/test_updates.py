"""Rules about the updates of moving statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bnstat.checks import Finding, Thresholds, check, trained_with
from bnstat.checks.training_mode import Evidence
from bnstat.errors import DamagedError
from bnstat.model import ROLES, BatchNorm, Model, PrecedingBias, Source, StatisticsUse, Variable
from bnstat.output.terminal.overview import overview
from bnstat.output.terminal.screen import Screen
from tests.checks.cases import INITIAL, ONES, START, ZEROS, Layer, but, find, model, norm, sound
from tests.compare.ports import rewritten, trained
from tests.output import models

TRAINED = ", although the network was trained"
UNTRAINED = "; gamma and beta are initial as well"
ONE_CHANNEL = Layer({"moving_mean": ZEROS[:1], "moving_variance": ONES[:1], "beta": ONES[:1] / 2})


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


def norms(first: Layer, second: Layer) -> list[BatchNorm]:
    return [norm(first, "a"), norm(second, "b")]


def with_weights(**weights: np.ndarray) -> list[BatchNorm]:
    return [models.layer("b", {**weights, **START}), models.usual("other")]


@pytest.mark.parametrize(
    ("layers", "step", "severities"),
    [
        # The model's finding is as serious as its most serious layer.
        (norms(Layer(INITIAL), Layer(INITIAL)), None, {None: "info", "a": "info", "b": "info"}),
        (norms(Layer(INITIAL), sound(**START)), None,
         {None: "warning", "a": "info", "b": "warning"}),
        # At step 0, the weights are initial, whatever they are.
        (norms(sound(**START), sound(1, **START)), 0, dict.fromkeys((None, "a", "b"), "info")),
        (norms(sound(**START), sound(1, **START)), 1, dict.fromkeys((None, "a", "b"), "warning")),
        # A layer without weights is untrained if it is alone.
        ([models.layer("b", START)], None, {"b": "info"}),
        (with_weights(), None, {None: "warning", "b": "warning"}),
        (with_weights(gamma=ZEROS), None, {"b": "info"}),
        (with_weights(gamma=ONES), None, {"b": "info"}),
        (with_weights(gamma=ONES * 2), None, {None: "warning", "b": "warning"}),
        (with_weights(gamma=sound().arrays["gamma"], beta=ZEROS), None, {"b": "info"}),
        (with_weights(gamma=ONES, beta=np.float32([0] * 3 + [1] * 5)), None,
         {None: "warning", "b": "warning"}),
    ],
)  # fmt: skip
def test_the_weights_and_the_step_show_if_a_layer_was_trained(
    layers: Any, step: Any, severities: Any
) -> None:
    findings = find("BN001", *layers, step=step)
    assert {each.layer: each.severity for each in findings} == severities


def test_the_message_about_an_untrained_model() -> None:
    whole, *_ = find("BN001", *norms(Layer(INITIAL), Layer(INITIAL)))
    assert whole.message == (
        f"both layers still have the initial statistics{UNTRAINED}: these layers were not trained"
    )


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
    zeros, ones = np.zeros(CHANNELS, np.float32), np.ones(CHANNELS, np.float32)
    return models.layer(name, dict(zip(ROLES, (ones, BETAS[name], zeros, ones), strict=True)))


def network(use: StatisticsUse | None = None, biases: dict[str, np.ndarray] | None = None) -> Model:
    """Return two layers with initial statistics, their use in a graph, and the biases before."""
    variables = {name: models.variable(name, bias) for name, bias in (biases or {}).items()}
    biases_before = {name: PrecedingBias(each, True) for name, each in variables.items()}
    uses = {} if use is None else dict.fromkeys("ab", use)
    layers = map(stuck, "ab")
    return models.model(*layers, find_uses=lambda: uses, find_biases=lambda: biases_before)


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
def test_weights_and_graph_together(use: Any, biases: Any, expected: tuple[str, str, str]) -> None:
    assert judged(network(use, biases)) == expected


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
    assert trained_with(network(BATCH, BETAS)).reason.endswith("these contradict each other")


def test_only_layers_with_initial_statistics_count_if_there_are_any() -> None:
    model = models.model(stuck("a"), models.usual("c"), find_uses=lambda: {"a": BATCH, "c": STORED})
    findings = check(model, select=["BN001", "BN017", "BN018"])
    assert [(each.severity, each.layer) for each in findings] == [("error", None), ("error", "a")]
    assert findings[0].message.startswith("1 of 2 layers still have the initial statistics, and")
    assert findings[0].numbers == {"layers": 1}


def test_evidence_is_cached_and_not_needed_for_updated_statistics() -> None:
    calls: list[int] = []
    model = network(BATCH)
    model._find_uses = lambda: calls.append(1) or {}  # type: ignore[func-returns-value]
    check(model)
    trained_with(model)
    assert len(calls) == 1
    layers = [models.usual(name, seed=seed) for seed, name in enumerate("ab")]
    assert check(models.model(*layers, find_uses=pytest.fail, find_biases=pytest.fail)) == []


def test_a_bias_that_cannot_be_read_shows_nothing() -> None:
    def read() -> np.ndarray:
        raise DamagedError("m.h5", "the checksum is wrong")

    bias = PrecedingBias(Variable("bias", "bias", "float32", (CHANNELS,), read), True)
    model = models.model(stuck("a"), find_biases=lambda: {"a": bias})
    assert judged(model) == ("BN001", "warning", "unknown")
    assert "the checksum is wrong" in trained_with(model).reason
    model._find_uses = lambda: {"a": BATCH}
    assert isinstance(trained_with(model), Evidence)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (None, "both layers still have the initial statistics: if training used the statistics of "
         "each batch, inference is broken; if it used the initial ones, inference is correct; "
         "bnstat drift MODEL --data D shows which; evidence: no bias is added right before a layer "
         "with a beta"),
        (BATCH, "bnstat recalibrate MODEL --data D -o COPY repairs it"),
        (STORED, "do not recalibrate"),
    ],
)  # fmt: skip
def test_the_message_recommends_recalibration_only_with_evidence(use: Any, message: str) -> None:
    whole, *_ = check(network(use))
    assert message in whole.message
    assert whole.numbers == {"layers": 2}


# Too few steps: BN003

FAR = norm(sound(moving_variance=ONES * 50))
HALF, INFO = 0.5**0.1, {"bn": "info"}


def test_the_share_and_the_steps_that_are_needed() -> None:
    (finding,) = find("BN003", norm(sound(momentum=HALF)), step=10)
    assert finding.message == (
        f"50% of the initial 0 and 1 is still in the moving statistics (momentum {HALF:g}, step "
        "10): train until step 34 to reduce it to 10%, or ignore this if bnstat recalibrate "
        "estimated the statistics"
    )
    part = 0.5 / float(np.median(sound().arrays["moving_variance"]))
    expected = {"share": 0.5, "part": part, "step": 10, "momentum": HALF, "steps_needed": 34}
    assert dict(finding.numbers) == pytest.approx(expected)
    assert HALF**34 <= 0.1 < HALF**33


@pytest.mark.parametrize(
    ("layers", "step", "found"),
    [
        # A variance below the share refutes the step, for all layers with the same momentum.
        ([norm(but("moving_variance", c2=0.5 * 0.9995), momentum=HALF)], 10, {"bn": "warning"}),
        ([norm(but("moving_variance", c2=0.5 * 0.998), momentum=HALF)], 10, {}),
        ([norm(but("moving_variance", c0=0.01), "a"), norm(sound(1), "b"),
          norm(sound(2, momentum=0.9), "c")], 10, {"c": "info"}),
        # Variances far above the share do not confirm the step.
        *(([norm(sound(moving_variance=np.float32([least] + [2] * 7), momentum=0.5))], 1, found)
          for least, found in ((1, INFO), (0.76, INFO), (0.74, {"bn": "warning"}), (np.nan, INFO))),
        ([norm(sound(moving_variance=ONES * np.float32(np.nan)))], 3, INFO),
        # Layers without a usable momentum, and initial layers, are skipped.
        *(([norm(sound(momentum=momentum), "a"), FAR], 3, INFO)
          for momentum in (0.0, 1.0, 1.5, -0.5)),
        ([norm(sound(**START), "start"), FAR], 229, INFO),
        ([norm(sound(), momentum=None)], 3, {}),
        ([norm(sound(), trainable=False)], 3, {}),
        ([norm(sound())], None, {}),
    ],
)  # fmt: skip
def test_layers_with_too_few_steps(layers: list[BatchNorm], step: int, found: Any) -> None:
    assert {each.layer: each.severity for each in find("BN003", *layers, step=step)} == found


def tracked(number: Any, name: str = "bn", least: float = 0.6, **fields: Any) -> BatchNorm:
    """Return a layer of PyTorch with the count of its updates and the smallest variance."""
    layer = norm(sound(moving_variance=np.float32([least] + [2] * 7)), name, **fields)
    layer.extra = {"num_batches_tracked": models.variable("n", np.array(number))}
    return layer


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        # 0.9**5 is 0.59.
        ([tracked(5, momentum=0.9)], {"bn": "warning"}),
        ([tracked(5, momentum=None, evidence="name")], INFO),
        # A whole model stores None if the statistics are averages over all batches.
        ([tracked(5, momentum=None, evidence="config")], {}),
        ([tracked(4, momentum=None, evidence="name")], {}),
        # Each layer has its own count.
        ([tracked(5, momentum=0.9), tracked(900, "b", 1e-9, momentum=0.9)],
         {"bn": "warning"}),
        *(([tracked(number, momentum=None, evidence="name")], {})
          for number in (0, -1, 5.0, [5, 5], True)),
    ],
)  # fmt: skip
def test_counts_of_pytorch(layers: list[BatchNorm], found: Any) -> None:
    # The step of the whole model is an epoch.
    findings = find("BN003", *layers, step=1)
    assert {each.layer: each.severity for each in findings} == found
    assert all("num_batches_tracked 5): train" in each.message for each in findings)


def test_an_assumed_momentum_is_called_a_default() -> None:
    (finding,) = find("BN003", tracked(5, momentum=None, evidence="name"))
    assert "(momentum 0.9 by PyTorch's default, num_batches_tracked 5)" in finding.message


def counted(counts: dict[str, Any], *numbers: float, source: Source | None = None) -> list[Finding]:
    """Return the findings of BN003 in a file that stores counts of steps."""
    stored = {key: models.variable(key, np.array(count)) for key, count in counts.items()}
    layer = norm(sound(channels=len(numbers), moving_variance=np.float32(numbers)))
    source = source or Source("m", "keras-h5")
    return check(model(layer, source=source, stored=stored), select=["BN003"])


SCOPES = ("iteration:0", "Adam/iter:0", "training/Adam/iterations:0", "iterations_1:0")
KEYS = [
    *(f"optimizer_weights/{scope}" for scope in SCOPES),
    *(f"optimizer/{name}/.ATTRIBUTES/VARIABLE_VALUE" for name in ("_iterations", "iter")),
    *("optimizer_weights/adam/iteration", "optimizer/vars/0"),
]
FIRST, SECOND = KEYS[1:3]


@pytest.mark.parametrize(
    ("counts", "numbers", "step"),
    [
        # the count of the optimizer, in every format
        *(({key: 20}, (0.83, 0.9, 1.2), 20) for key in KEYS),
        ({FIRST: 0}, (0.5, 0.6), None),  # compiled again before it was saved
        ({FIRST: 20}, (0.5, 0.9), None),  # a variance below the remainder disproves the count
        ({FIRST: 246}, (0.09, 1.2, 1.4), None),  # a remainder beside variances that are larger
        ({FIRST: 2000}, (0.99**2000, 0.99**2000), None),  # a remainder that epsilon hides
        ({FIRST: -5}, (0.5, 0.6), None),
        ({FIRST: 20 + 0j}, (0.83, 0.9), None),
        ({FIRST: np.nan}, (0.5, 0.6), None),
        ({FIRST: [20, 20]}, (0.83, 0.9), None),
        ({FIRST: 20, SECOND: 21}, (0.9, 0.9), None),  # two optimizers that disagree
    ],
)
def test_counts_of_steps(counts: Any, numbers: tuple[float, ...], step: int | None) -> None:
    findings = counted(counts, *numbers)
    assert {each.numbers["step"] for each in findings} == ({step} if step else set())
    assert all(each.severity == "warning" for each in findings)


def test_the_number_in_the_name_of_a_converted_file_is_not_a_step() -> None:
    for format_, count in (("keras-h5", 1), ("onnx", 0)):
        source = Source("m-640", format_, step=640)
        assert len(counted({}, *[0.012] * 8, source=source)) == count


def test_a_small_remainder_beside_smaller_variances() -> None:
    share = 0.99**246
    counts = {"optimizer/vars/0": np.float32(246)}
    (finding,) = counted(counts, share + 0.006, share + 0.012, 0.18)
    assert finding.severity == "warning"
    assert finding.numbers["part"] == pytest.approx(share / (share + 0.012))
    assert finding.message.startswith("88% of the median moving variance comes from the initial 1")


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


def two(epsilon: float | None = 1e-9, minus_zero: slice = slice(0)) -> list[BatchNorm]:
    """Return two rewritten layers; some means of the second one are -0.0."""
    layers = [rewritten(trained(name, seed=seed), name, epsilon) for seed, name in enumerate("ab")]
    layers[1].array("moving_mean")[minus_zero] = -0.0
    return layers


@pytest.mark.parametrize(
    ("model", "findings", "message"),
    [
        (converted(*two()), REWRITTEN,
         "rewritten by a converter: both layers have moving mean 0, variance 1 and an epsilon too "
         "small to change anything; gamma and beta contain the whole scale and shift"),
        (converted(*two(minus_zero=slice(8))), REWRITTEN, "an epsilon too small"),
        # A mean of -0.0 was computed, whatever the epsilon.
        *((converted(*two(epsilon, minus_zero=slice(3, 4))), REWRITTEN, "a mean of -0.0")
          for epsilon in (1e-3, 1e-6, None)),
        (models.model(*two(1e-3, minus_zero=slice(8))), NEVER_UPDATED[:2], "1 of 2 layers"),
        *((converted(*two(epsilon)), NEVER_UPDATED, "the file does not show which")
          for epsilon in (1e-3, 1e-7, None)),
        # Some writers keep statistics, and checkpoints are not converted.
        (converted(*two(), writer="pytorch 2.1.0 (opset 17)"), NEVER_UPDATED, "bnstat drift"),
        (converted(*two(), format_="tf2-checkpoint"), NEVER_UPDATED, "bnstat drift"),
        (converted(*two(), models.usual("c", epsilon=1e-3)), NEVER_UPDATED, "2 of 3 layers"),
    ],
)  # fmt: skip
def test_rewritten_and_never_updated_models(model: Model, findings: Any, message: str) -> None:
    found = check(model)
    assert [(each.rule, each.severity, each.layer) for each in found] == findings
    assert message in found[0].message
    is_rewritten = findings == REWRITTEN
    assert found[0].numbers == ({"layers": 2} if is_rewritten else found[0].numbers)
    shown = "\n".join(overview(model, Screen(width=100, boxes=False)))
    assert ("a converter moved them" in shown) == is_rewritten


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
