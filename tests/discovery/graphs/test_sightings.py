"""Layers of whole graphs: lookalikes, names, functions, hostile graphs and old files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnstat.discovery.graphs.norms import from_graphs
from bnstat.formats.protobuf.protos import message_class
from bnstat.formats.tensorflow.frozen_graph import contents_of_graph
from bnstat.model import ROLES, Source
from tests.builders.effort import bounded
from tests.discovery.graphs.models import (
    CHANNELS,
    Op,
    Save,
    by_hand,
    four,
    images,
    keras_average,
    layer,
    make_graph,
    names,
    normalize,
    open_model,
    sightings,
    sightings_of,
    stored,
    tf,
    v1,
    variable,
)

# Lookalikes


def test_layer_group_and_instance_norm_are_not_found(saved: Save) -> None:
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


def test_partitioned_variable(saved: Save) -> None:
    def build() -> None:
        with v1.variable_scope("bn", partitioner=v1.fixed_size_partitioner(2)):
            gamma = tf.convert_to_tensor(variable("gamma"))
        with v1.variable_scope("bn"):
            normalize([gamma, *(variable(role) for role in ROLES[1:])])

    assert names(saved(build)) == [layer("bn")]


@pytest.mark.parametrize("use_resource", [True, False])
def test_variables_saved_under_other_names(saved: Save, use_resource: bool) -> None:
    def build() -> dict[str, Any]:
        values = four("bn", use_resource=use_resource)
        normalize(values)
        return {f"stored/{role}": value for role, value in zip(ROLES, values, strict=True)}

    assert names(saved(build)) == [layer("stored")]


def test_graphs_that_disagree_on_epsilon(saved: Save) -> None:
    def build() -> None:
        values = four("bn")
        for epsilon in (1e-3, 1e-5):
            normalize(values, epsilon=epsilon)

    (found,) = sightings(saved(build))
    assert found.epsilon is None
    assert found.notes == ("its graphs use different epsilons (0.001 and 1e-05)",)


def test_layers_that_share_gamma_and_beta(saved: Save) -> None:
    """Each domain has its own statistics, all share a scale and an offset."""

    def build() -> None:
        values = four("one")
        x = normalize(values)
        normalize([*values[:2], *four("two")[2:]], x)

    shared = {"gamma": "one/gamma", "beta": "one/beta"}
    assert names(saved(build)) == [layer("one"), layer("two", "gamma", "beta") | shared]


# Functions that call functions, and constants in place of variables


class Block(tf.Module):
    """A batch norm with one function for training and one for inference."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        with self.name_scope:
            self.values = [tf.Variable(tf.ones(CHANNELS), name=role) for role in ROLES]

    @tf.function
    def infer(self, x: Any) -> Any:
        return normalize(self.values, x, 1.1e-5)

    @tf.function
    def train(self, x: Any) -> Any:
        gamma, beta, mean, variance = self.values
        y, new_mean, new_variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x, scale=gamma, offset=beta, mean=tf.zeros([0]), variance=tf.zeros([0]),
            epsilon=1.1e-5, is_training=True,
        )  # fmt: skip
        keras_average(mean, new_mean, 0.97)
        keras_average(variance, new_variance, 0.97)
        return y


class Tower(tf.Module):
    """Functions in functions, in an order that their names do not show."""

    def __init__(self) -> None:
        super().__init__(name="tower")
        self.blocks = [Block(name) for name in ("d", "b", "c", "a", "e")]

    @tf.function
    def body(self, x: Any) -> Any:
        return self.blocks[2].infer(tf.nn.relu(self.blocks[1].infer(x)))

    @tf.function(input_signature=[tf.TensorSpec([None, 4, 4, CHANNELS])])
    def __call__(self, x: Any) -> Any:
        x = self.body(self.blocks[0].infer(x))
        x = tf.cond(tf.reduce_sum(x) > 0, lambda: self.blocks[3].infer(x), lambda: -x)
        return tf.while_loop(
            lambda step, y: step < 3, lambda step, y: (step + 1, self.blocks[4].infer(y)), (0, x)
        )[1]

    @tf.function(input_signature=[tf.TensorSpec([None, 4, 4, CHANNELS])])
    def train(self, x: Any) -> Any:
        for block in self.blocks:
            x = block.train(x)
        return x


def test_functions_that_call_functions(tmp_path: Path) -> None:
    tower = Tower()
    tf.saved_model.save(tower, str(tmp_path), signatures=tower.__call__)
    assert names(tmp_path) == [layer(name) for name in ("d", "b", "c", "a", "e")]
    for found in sightings(tmp_path):
        assert (found.epsilon, found.momentum, found.axis) == (1.1e-5, 0.97, 3)


def test_constants_in_functions(tmp_path: Path) -> None:
    """Converters from other frameworks write the numbers into functions, without variables."""
    values = {role: np.arange(CHANNELS, dtype=np.float32) + i for i, role in enumerate(ROLES)}

    class Converted(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 4, 4, CHANNELS])])
        def __call__(self, x: Any) -> Any:
            return normalize([tf.constant(value) for value in values.values()], x, 1.1e-5)

    tf.saved_model.save(Converted(), str(tmp_path))
    saved_model = message_class("SavedModel").FromString((tmp_path / "saved_model.pb").read_bytes())
    contents = contents_of_graph(saved_model.meta_graphs[0].graph_def, Source("", ""))
    (found,) = from_graphs(contents)
    assert found.epsilon == 1.1e-5
    for role, value in values.items():
        assert contents.variables[found.roles[role]].read().tobytes() == value.tobytes()


@pytest.mark.parametrize("neutral", [True, False])
def test_constants_in_place_of_gamma_and_beta(saved: Save, neutral: bool) -> None:
    """A fused op without gamma or beta gets ones or zeros; anything else is a gamma or beta."""

    def build() -> None:
        ones = tf.ones([CHANNELS]) if neutral else tf.constant([2.0] * CHANNELS)
        zeros = tf.constant([0.0 if neutral else 0.5] * CHANNELS)
        mean, variance = tf.constant([3.0] * CHANNELS), tf.constant([4.0] * CHANNELS)
        v1.nn.fused_batch_norm(images(), ones, zeros, mean, variance, is_training=False)
        variable("unused")

    meta = saved(build).with_suffix(".meta")
    frozen = meta.rename(meta.with_name("alone.meta"))
    (found,) = sightings(frozen)
    assert set(found.roles) == set(ROLES[2:] if neutral else ROLES)


# Hostile graphs


VARIABLE: Op = ("v", "VariableV2", [], {})
COUNT = 100_000
ENDLESS: dict[str, Callable[[], list[Op]]] = {
    "a cycle": lambda: [
        VARIABLE,
        *[(f"n{i}", "AddV2", [f"n{i - 1}", f"n{i * 7 % COUNT}"], {}) for i in range(1, COUNT)],
        ("n0", "Identity", [f"n{COUNT - 1}"], {}),
        *[(f"f{i}", "FusedBatchNorm", [f"n{i}", "v", "v", "v", "v"], {}) for i in range(100)],
    ],
    "long chains": lambda: [
        VARIABLE,
        *[(f"n{i}", "Identity", [f"n{i - 1}" if i % 90 else "v"], {}) for i in range(COUNT)],
        *[(f"f{i}", "FusedBatchNorm", ["x", *[f"n{i}"] * 4], {}) for i in range(COUNT)],
    ],
    "a variable that is moved by all": lambda: [
        ("m", *VARIABLE[1:]),
        *[(f"s{i}", "Sub", ["m", f"b{i}"], {}) for i in range(COUNT // 4)],
        *[(f"u{i}", "Mul", [f"s{i}", "rate"], {}) for i in range(COUNT // 4)],
        *[(f"z{i}", "AssignSub", ["m", f"u{i}"], {}) for i in range(COUNT // 4)],
        *[(f"b{i}", "Mul", [f"b{i - 1}", f"b{i - 2}"], {}) for i in range(COUNT // 4)],
    ],
    "an op that takes everything": lambda: [
        VARIABLE,
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
    momenta = {"Conv1/BatchNorm": 0.999, "bnscale": 0.999, "BatchNorm": 0.999}
    momenta |= {"batch_normalization": 0.99, "mybn": None}
    assert [(one.name, one.momentum) for one in found] == [*momenta.items()]
    assert {(one.epsilon, one.axis) for one in found} == {(1e-3, 3)}


def test_real_saved_model(real: Path) -> None:
    contents = open_model(real / "mlperf-tiny-kws-savedmodel")
    expected = {
        layer.variables["moving_mean"]: [layer.config[name] for name in ("epsilon", "momentum")]
        for layer in contents.layers
        if layer.class_name == "BatchNormalization"
    }
    found = from_graphs(replace(contents, layers=()))
    assert {one.roles["moving_mean"]: [one.epsilon, one.momentum] for one in found} == expected
