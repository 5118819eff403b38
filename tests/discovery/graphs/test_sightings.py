"""Layers of whole graphs: names of variables, lookalikes, hostile graphs and old files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bnstat.discovery.graphs.norms import from_graphs
from bnstat.model import ROLES
from tests.builders.effort import bounded
from tests.discovery.graphs.models import (
    CHANNELS,
    Op,
    by_hand,
    four,
    images,
    layer,
    make_graph,
    names,
    open_model,
    sightings,
    sightings_of,
    stored,
    tf,
    v1,
    variable,
)

# Lookalikes


def test_layer_group_and_instance_norm_are_not_found(saved: Callable[..., Path]) -> None:
    def build() -> None:
        x = images()
        for scope, axes in (("layer_norm", [3]), ("instance_norm", [1, 2])):
            gamma, beta, _, _ = four(scope)
            mean, variance = tf.nn.moments(x, axes, keepdims=True)
            x = tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-5)
        gamma, beta, _, _ = four("fused_layer_norm")
        rows = tf.reshape(x, [1, -1, CHANNELS, 1])
        ones, zeros = tf.ones([CHANNELS]), tf.zeros([CHANNELS])
        rows = tf.transpose(rows, [0, 1, 3, 2])
        y, _, _ = v1.nn.fused_batch_norm(rows, ones, zeros, is_training=True)
        y * gamma + beta

    assert sightings(saved(build)) == []


def test_optimizers_that_divide_by_roots_are_not_found(tmp_path: Path) -> None:
    class Step(tf.Module):
        def __init__(self) -> None:
            self.weight = tf.Variable(tf.ones(CHANNELS), name="gamma")
            self.moment = tf.Variable(tf.ones(CHANNELS), name="moving_mean")
            self.velocity = tf.Variable(tf.ones(CHANNELS), name="moving_variance")

        @tf.function(input_signature=[tf.TensorSpec([CHANNELS])])
        def __call__(self, gradient: Any) -> Any:
            self.velocity.assign(0.9 * self.velocity + 0.1 * gradient**2)
            return self.weight.assign_sub(0.01 * gradient / tf.sqrt(self.velocity + 1e-7))

    tf.saved_model.save(Step(), str(tmp_path))
    assert sightings(tmp_path) == []


# Names of variables


def test_partitioned_variable(saved: Callable[..., Path]) -> None:
    def build() -> None:
        with v1.variable_scope("bn", partitioner=v1.fixed_size_partitioner(2)):
            gamma = variable("gamma")
        with v1.variable_scope("bn"):
            beta, mean, variance = (variable(role) for role in ROLES[1:])
        tf.nn.batch_normalization(images(), mean, variance, beta, tf.convert_to_tensor(gamma), 1e-3)

    assert names(saved(build)) == [layer("bn")]


def test_variables_saved_under_other_names(saved: Callable[..., Path]) -> None:
    def build() -> dict[str, Any]:
        gamma, beta, mean, variance = values = four("bn")
        tf.nn.batch_normalization(images(), mean, variance, beta, gamma, 1e-3)
        return {f"stored/{role}": value for role, value in zip(ROLES, values, strict=True)}

    assert names(saved(build)) == [layer("stored")]


def test_reference_variables(saved: Callable[..., Path]) -> None:
    def build() -> None:
        gamma, beta, mean, variance = four("bn", use_resource=False)
        tf.nn.batch_normalization(images(), mean, variance, beta, gamma, 1e-3)

    assert names(saved(build)) == [layer("bn")]


def test_graphs_that_disagree_on_epsilon(saved: Callable[..., Path]) -> None:
    def build() -> None:
        gamma, beta, mean, variance = four("bn")
        for epsilon in (1e-3, 1e-5):
            tf.nn.batch_normalization(images(), mean, variance, beta, gamma, epsilon)

    (found,) = sightings(saved(build))
    assert found.epsilon is None
    assert found.notes == ("its graphs use different epsilons (0.001 and 1e-05)",)


def test_layers_that_share_gamma_and_beta(saved: Callable[..., Path]) -> None:
    """Each domain has its own statistics, all share a scale and an offset."""

    def build() -> None:
        gamma, beta, mean, variance = four("one")
        _, _, other_mean, other_variance = four("two")
        x = tf.nn.batch_normalization(images(), mean, variance, beta, gamma, 1e-3)
        tf.nn.batch_normalization(x, other_mean, other_variance, beta, gamma, 1e-3)

    shared = {"gamma": "one/gamma", "beta": "one/beta"}
    assert names(saved(build)) == [layer("one"), layer("two", "gamma", "beta") | shared]


# Hostile graphs


def variables(*names: str) -> list[Op]:
    return [(name, "VariableV2", [], {}) for name in names]


COUNT = 100_000
ENDLESS: dict[str, Callable[[], list[Op]]] = {
    "a cycle": lambda: [
        *variables("v"),
        *[
            (f"n{i}", "AddV2", [f"n{(i + 1) % COUNT}", f"n{i * 7 % COUNT}"], {})
            for i in range(COUNT)
        ],
        *[(f"f{i}", "FusedBatchNorm", [f"n{i}", "v", "v", "v", "v"], {}) for i in range(100)],
    ],
    "long chains": lambda: [
        *variables("v"),
        *[(f"n{i}", "Identity", [f"n{i - 1}" if i % 90 else "v"], {}) for i in range(COUNT)],
        *[(f"f{i}", "FusedBatchNorm", ["x", *[f"n{i}"] * 4], {}) for i in range(COUNT)],
    ],
    "a variable that is moved by all": lambda: [
        *variables("m"),
        *[(f"s{i}", "Sub", ["m", f"b{i}"], {}) for i in range(COUNT // 4)],
        *[(f"u{i}", "Mul", [f"s{i}", "rate"], {}) for i in range(COUNT // 4)],
        *[(f"z{i}", "AssignSub", ["m", f"u{i}"], {}) for i in range(COUNT // 4)],
        *[(f"b{i}", "Mul", [f"b{i - 1}", f"b{i - 2}"], {}) for i in range(COUNT // 4)],
    ],
    "an op that takes everything": lambda: [
        *variables("v"),
        *[(f"n{i}", "AddN", [f"n{j}" for j in range(1000)], {}) for i in range(1000)],
        ("f", "FusedBatchNorm", ["n0", "v", "v", "v", "v"], {}),
        ("m", "Merge", ["v"] * COUNT, {}),
        *[(f"g{i}", "FusedBatchNorm", [f"n{i}", *["m"] * 4], {}) for i in range(1000)],
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENDLESS)
def test_graphs_without_end(kind: str) -> None:
    graph_def = make_graph(ENDLESS[kind]())
    with bounded():
        sightings_of(graph_def)


def test_settings_that_are_not_finite() -> None:
    inputs = ["x", "bn/gamma", "bn/beta", "bn/moving_mean", "bn/moving_variance"]
    attributes = {"epsilon": float("nan"), "exponential_avg_factor": float("inf")}
    (found,) = by_hand(*stored("bn"), ("bn/y", "FusedBatchNormV3", inputs, attributes))
    assert (found.epsilon, found.momentum, found.roles) == (None, None, layer("bn"))


# Files of old versions, and public files


def test_old_files(written: Path) -> None:
    renormed = {"moving_mean": "b/moving_mean"}  # its variance is in `moving_stddev`
    slim = [layer(scope, "gamma") for scope in ("BatchNorm", "Conv/BatchNorm")]
    expected = [layer("batch_normalization"), renormed, layer("vb"), slim[0], layer("z"), slim[1]]
    for name in ("c", "sm1"):
        assert names(written / "v1_tf2.15" / name) == expected
    found = sightings(written / "v1_tf2.15/c")
    assert [one.momentum for one in found] == [None, 0.99, 0.99, 0.999, 0.999, None]
    assert {one.epsilon for one in found} == {1e-3}
    found = sightings(written / "tf1ckpt/tf115/v2.ckpt-7")
    assert [(one.name, one.momentum) for one in found] == [
        ("Conv1/BatchNorm", 0.999),
        ("bnscale", 0.999),
        ("BatchNorm", 0.999),
        ("batch_normalization", 0.99),
        ("mybn", None),
    ]
    assert {(one.epsilon, one.axis) for one in found} == {(1e-3, 3)}


def test_real_saved_model(real: Path) -> None:
    path = real / "mlperf-tiny-kws-savedmodel"
    contents = open_model(path)
    truth = json.loads((path / "truth.json").read_text())["layers"]
    configs = {item.variables["moving_mean"]: item.config for item in contents.layers
               if item.class_name == "BatchNormalization"}  # fmt: skip
    expected = {entry["vars"]["moving_mean"]: entry["vars"] for entry in truth.values()}
    found = from_graphs(contents)
    assert [one.roles["moving_mean"] for one in found] == list(configs)
    for one in found:
        config = configs[one.roles["moving_mean"]]
        assert one.roles == expected.pop(one.roles["moving_mean"])
        assert (one.epsilon, one.axis) == (config["epsilon"], config["axis"][0])
    assert expected == {}
    trained = from_graphs(replace(contents, layers=()))
    assert {one.momentum for one in trained} == {config["momentum"] for config in configs.values()}


def test_real_models_without_batch_norm(real: Path) -> None:
    graphs = [*real.glob("neg-*/saved_model.pb"), *real.glob("neg-*/*.meta")]
    assert graphs
    for path in graphs:
        assert sightings(path) == []
