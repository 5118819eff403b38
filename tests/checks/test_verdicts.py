"""The verdict on initial statistics, by the evidence of weights and graphs together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import bnstat
from bnstat.checks import Evidence, Finding, check, find_rules, trained_with
from bnstat.errors import DamagedError
from bnstat.model import BatchNorm, Model, PrecedingBias, StatisticsUse, Variable
from bnstat.output.terminal.findings import explain
from bnstat.output.terminal.screen import Screen
from tests.checks.cases import sound, start
from tests.output import models

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
    """Two layers with initial statistics, what their graph shows, and the biases before them."""
    variables = {name: models.variable(name, bias) for name, bias in (biases or {}).items()}
    return models.model(
        *map(stuck, "ab"),
        find_uses=lambda: {} if use is None else dict.fromkeys("ab", use),
        find_biases=lambda: {name: PrecedingBias(each, True) for name, each in variables.items()},
    )


def verdict(model: Model) -> tuple[str, str, str]:
    """The rule, its severity, and how the model was trained."""
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
    assert verdict(network(use, biases)) == expected


def test_a_contradiction_is_named() -> None:
    assert trained_with(network(BATCH, BETAS)).reason.endswith("these contradict each other")


def test_layers_that_no_graph_shows_leave_it_open() -> None:
    model = network(BATCH)
    model._find_uses = lambda: {"a": BATCH}
    assert verdict(model) == ("BN001", "warning", "unknown")
    assert "the graph shows 1 of 2 layers" in trained_with(model).reason


def test_the_numbers_of_the_evidence() -> None:
    evidence = trained_with(network(UNREAD, NOISE))
    assert (evidence.layers, evidence.channels) == (2, 2 * CHANNELS)
    assert (evidence.graph_layers, evidence.updates) == (2, 4)
    assert (evidence.updates_run, evidence.layers_read) == (0, 0)
    assert evidence.reason.startswith(
        "the training op of the graph runs 0 of 4 updates of the moving statistics, and only the "
        "updates read them; training normalizes with the statistics of each batch; the "
        "bias before the normalization did not follow beta"
    )


def test_layers_with_updated_statistics_do_not_count_beside_initial_ones() -> None:
    healthy = models.usual("c")
    model = models.model(stuck("a"), healthy, find_uses=lambda: {"a": BATCH, "c": STORED})
    found = check(model, select=["BN001", "BN017", "BN018"])
    assert [(each.severity, each.layer) for each in found] == [("error", None), ("error", "a")]
    assert found[0].message.startswith("1 of 2 layers still have the initial statistics, and")


def test_the_evidence_is_found_once() -> None:
    model = network(BATCH)
    calls = []
    model._find_uses = lambda: calls.append(1) or {}  # type: ignore[func-returns-value]
    check(model)
    trained_with(model)
    assert len(calls) == 1


def test_healthy_statistics_need_no_evidence() -> None:
    def refuse() -> Any:
        raise AssertionError

    layers = [models.usual(name, seed=seed) for seed, name in enumerate("ab")]
    assert check(models.model(*layers, find_uses=refuse, find_biases=refuse)) == []


def test_a_bias_that_cannot_be_read_shows_nothing() -> None:
    def read() -> np.ndarray:
        raise DamagedError("m.h5", "the checksum is wrong")

    bias = PrecedingBias(Variable("bias", "bias", "float32", (CHANNELS,), read), True)
    model = models.model(stuck("a"), find_biases=lambda: {"a": bias})
    assert verdict(model) == ("BN001", "warning", "unknown")
    assert "the checksum is wrong" in trained_with(model).reason
    model._find_uses = lambda: {"a": BATCH}
    assert isinstance(trained_with(model), Evidence)


def test_no_message_promises_a_repair_without_evidence() -> None:
    whole, *_ = check(network())
    assert "recalibrate" not in whole.message
    assert "bnstat drift MODEL --data D shows which" in whole.message
    whole, *_ = check(network(BATCH))
    assert "bnstat recalibrate MODEL --data D -o COPY repairs it" in whole.message
    (whole,) = check(network(STORED))
    assert "do not recalibrate" in whole.message


def test_the_explanation_tells_three_causes() -> None:
    text = " ".join(" ".join(explain(find_rules(["BN001"]), Screen(width=80, boxes=False))).split())
    for words in ("(1)", "(2)", "(3)", "BN017", "BN018", "Ioffe and Szegedy 2015", "wrong answer"):
        assert words in text


class TestStepsOfTheOptimizer:
    """BN003 by the count of steps that the optimizer stores in the file."""

    def found(self, count: Any, *variances: float, key: str = "optimizer/vars/0") -> list[Finding]:
        stored = {key: models.variable(key, np.array(count))}
        arrays = {
            **sound(channels=len(variances)).arrays,
            "moving_variance": np.array(variances, np.float32),
        }
        layer = models.layer("bn", arrays, epsilon=1e-3, momentum=0.99)
        source = models.Source("m", "keras-h5", step=None)
        return check(models.model(layer, source=source, stored=stored), select=["BN003"])

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
    def test_it_is_read_wherever_files_store_it(self, key: str) -> None:
        (finding,) = self.found(20, 0.83, 0.9, 1.2, key=key)
        assert (finding.severity, finding.numbers["step"]) == ("warning", 20)

    def test_a_small_rest_beside_smaller_variances(self) -> None:
        share = 0.99**246
        (finding,) = self.found(np.float32(246), share + 0.006, share + 0.012, 0.18)
        assert finding.severity == "warning"
        assert finding.numbers["part"] == pytest.approx(share / (share + 0.012))
        assert finding.message.startswith("88% of the median moving variance is left of")

    @pytest.mark.parametrize(
        ("count", "variances"),
        [
            (0, (0.5, 0.6)),  # compiled again before it was saved
            (20, (0.5, 0.9)),  # a variance below the rest disproves the count
            (246, (0.09, 1.2, 1.4)),  # a rest beside variances that are larger
            (2000, (0.99**2000, 0.99**2000)),  # a rest that epsilon hides
            (-5, (0.5, 0.6)),
            (float("nan"), (0.5, 0.6)),
            ([20, 20], (0.83, 0.9)),
        ],
    )
    def test_a_count_alone_is_no_evidence(self, count: Any, variances: tuple[float, ...]) -> None:
        assert self.found(count, *variances) == []

    def test_two_optimizers_that_disagree_are_not_believed(self) -> None:
        keys = ("optimizer_weights/a/iter:0", "optimizer_weights/b/iter:0")
        stored = {key: models.variable(key, np.array(20 + n)) for n, key in enumerate(keys)}
        arrays = {**sound().arrays, "moving_variance": np.full(8, 0.9, np.float32)}
        layer = models.layer("bn", arrays, momentum=0.99)
        model = models.model(layer, source=models.Source("m", "keras-h5"), stored=stored)
        assert check(model, select=["BN003"]) == []

    def test_of_a_file(self, tmp_path: Path) -> None:
        config = {"name": "bn", "epsilon": 1e-3, "momentum": 0.99, "axis": [1]}
        layers = [
            {"class_name": "InputLayer", "config": {"name": "x", "batch_input_shape": [None, 4]}},
            {"class_name": "BatchNormalization", "config": config},
        ]
        path = tmp_path / "m.h5"
        with h5py.File(path, "w") as file:
            model = {"class_name": "Sequential", "config": {"name": "s", "layers": layers}}
            file.attrs["model_config"] = json.dumps(model)
            group = file.create_group("model_weights/bn")
            file["model_weights"].attrs["layer_names"] = [b"bn"]
            names = [f"bn/{role}:0" for role in ("gamma", "beta", "moving_mean", "moving_variance")]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, value in zip(names, (1.1, 0.2, 0.3, 0.85), strict=True):
                group[name] = np.full(4, value, np.float32)
            file["optimizer_weights/Adam/iter:0"] = np.int64(20)
            file["optimizer_weights"].attrs["weight_names"] = [b"Adam/iter:0"]
        (finding,) = check(bnstat.load(path), select=["BN003"])
        assert finding.numbers["step"] == 20


class TestDeadLayers:
    def layer(self, name: str, gamma: float, variance: float) -> BatchNorm:
        arrays = {
            **sound().arrays,
            "gamma": np.full(8, gamma, np.float32),
            "moving_variance": np.full(8, variance, np.float32),
        }
        return models.layer(name, arrays, epsilon=1e-3)

    def test_how_much_of_the_network_is_dead(self) -> None:
        layers = [self.layer("a", 1e-7, 1e-12), self.layer("b", 1e-8, 0), models.usual("c")]
        whole, *_ = check(models.model(*layers), select=["BN006"])
        assert (whole.layer, whole.severity, whole.numbers["layers"]) == (None, "warning", 2)
        assert whole.message == (
            "the output of 2 of 3 layers does not depend on the input; in 2 of them every |gamma| "
            "is below 1e-06: weight decay?"
        )

    def test_gammas_that_did_not_decay_are_not_blamed(self) -> None:
        layers = [self.layer(name, 0.5, 0) for name in "ab"]
        whole, *_ = check(models.model(*layers), select=["BN006"])
        assert whole.message == "the output of 2 of 2 layers does not depend on the input"

    def test_one_dead_layer_is_not_counted(self) -> None:
        layers = [self.layer("a", 0.5, 0), models.usual("b")]
        assert [each.layer for each in check(models.model(*layers), select=["BN006"])] == ["a"]

    @pytest.mark.parametrize(("variance", "rules"), [(1.172e-36, ["BN006"]), (0.5, ["BN002"])])
    def test_a_constant_input_of_0_lost_no_update(self, variance: float, rules: list[str]) -> None:
        layer = self.layer("a", 0.5, variance)
        layer.array("moving_mean")[:] = 0  # type: ignore[index]
        found = check(models.model(layer), select=["BN002", "BN006"])
        assert [each.rule for each in found] == rules


def test_the_number_in_the_name_of_a_converted_file_is_no_step() -> None:
    arrays = sound(moving_variance=np.full(8, 0.012, np.float32)).arrays
    layer = models.layer("bn", arrays, epsilon=1e-5, momentum=0.99)
    for format_, rules in (("keras-h5", ["BN003"]), ("onnx", [])):
        model = models.model(layer, source=models.Source("m-640", format_, step=640))
        assert [found.rule for found in check(model, select=["BN003"])] == rules
