"""What graphs tell of batch norm, against the models that TensorFlow and Keras built them from."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnstat.discovery.graphs.sightings import from_graphs
from bnstat.discovery.sighting import Sighting
from bnstat.formats.contents import Contents, Reading
from bnstat.formats.locate import locate
from bnstat.formats.protobuf.protos import message_class
from bnstat.formats.tensorflow.graphs.frozen_graph import contents_of_graph
from bnstat.formats.tensorflow.graphs.graph_def import graph_of
from bnstat.model import ROLES, Source

tf = pytest.importorskip("tensorflow")
v1 = tf.compat.v1

CHANNELS = 5

Op = tuple[str, str, Sequence[str], dict[str, Any]]
"""Name, op, inputs, attributes."""


def open_model(path: Path) -> Contents:
    return locate(str(path)).default.open(Source(str(path), ""), Reading())


def sightings(path: Path) -> list[Sighting]:
    return from_graphs(open_model(path))


def names(path: Path) -> list[dict[str, str]]:
    """Role -> the variable's name, for every layer that the graphs of a model show."""
    contents = open_model(path)
    return [
        {role: contents.name_of(key) for role, key in sighting.roles.items()}
        for sighting in from_graphs(contents)
    ]


def variable(name: str, dtype: Any = "float32", shape: Sequence[int] = (CHANNELS,)) -> Any:
    return v1.get_variable(name, shape, dtype, v1.ones_initializer(), use_resource=True)


def four(scope: str, dtype: Any = "float32", shape: Sequence[int] = (CHANNELS,)) -> list[Any]:
    with v1.variable_scope(scope):
        return [variable(role, dtype, shape) for role in ROLES]


def layer(scope: str, *without: str) -> dict[str, str]:
    """What `four` creates, as `names` tells it."""
    return {role: f"{scope}/{role}" for role in ROLES if role not in without}


def images(*, channels_first: bool = False, dtype: Any = "float32") -> Any:
    shape = [None, CHANNELS, 4, 4] if channels_first else [None, 4, 4, CHANNELS]
    return v1.placeholder(dtype, shape, "x")


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Builds a TensorFlow 1 graph and saves it with its variables: a checkpoint and its `.meta`."""

    def save(build: Callable[[], Any], **saver: Any) -> Path:
        with tf.Graph().as_default(), v1.Session() as session:
            build()
            session.run(v1.global_variables_initializer())
            v1.train.Saver(**saver).save(session, str(tmp_path / "model"))
        return tmp_path / "model"

    return save


# Inference in one op


@pytest.mark.parametrize("epsilon", [1e-3, 1.1e-5, 1e-8, 0.5])
@pytest.mark.parametrize(("data_format", "axis"), [("NHWC", 3), ("NCHW", 1)])
def test_fused(saved: Callable[..., Path], epsilon: float, data_format: str, axis: int) -> None:
    def build() -> None:
        gamma, beta, mean, variance = four("net/bn")
        x = images(channels_first=data_format == "NCHW")
        with v1.name_scope("net/bn/"):
            tf.raw_ops.FusedBatchNormV3(
                x=x, scale=gamma, offset=beta, mean=mean, variance=variance, epsilon=epsilon,
                data_format=data_format, is_training=False, name="FusedBatchNormV3",
            )  # fmt: skip

    path = saved(build)
    assert names(path) == [layer("net/bn")]
    (found,) = sightings(path)
    assert (found.epsilon, found.axis, found.momentum) == (epsilon, axis, None)
    assert (found.name, found.evidence) == ("net/bn", "graph")


def test_fused_3d(saved: Callable[..., Path]) -> None:
    def build() -> None:
        gamma, beta, mean, variance = four("bn")
        x = v1.placeholder("float32", [None, 2, 4, 4, CHANNELS])
        tf.raw_ops.FusedBatchNormV3(
            x=x, scale=gamma, offset=beta, mean=mean, variance=variance, data_format="NDHWC",
            is_training=False,
        )  # fmt: skip

    (found,) = sightings(saved(build))
    assert (found.axis, found.epsilon) == (4, 1e-4)


def test_matrix_dressed_as_images(saved: Callable[..., Path]) -> None:
    def build() -> None:
        gamma, beta, mean, variance = four("bn")
        x = tf.reshape(v1.placeholder("float32", [None, CHANNELS]), [-1, 1, 1, CHANNELS])
        v1.nn.fused_batch_norm(x, gamma, beta, mean, variance, is_training=False)

    (found,) = sightings(saved(build))
    assert found.axis == -1


def test_stripped_epsilon_is_the_ops_default(tmp_path: Path) -> None:
    class Norm(tf.Module):
        def __init__(self) -> None:
            self.values = [tf.Variable(tf.ones(CHANNELS), name=role) for role in ROLES]

        @tf.function(input_signature=[tf.TensorSpec([None, 4, 4, CHANNELS])])
        def __call__(self, x: Any) -> Any:
            gamma, beta, mean, variance = self.values
            return v1.nn.fused_batch_norm(
                x, gamma, beta, mean, variance, epsilon=1e-4, is_training=False
            )[0]

    tf.saved_model.save(Norm(), str(tmp_path))
    (found,) = sightings(tmp_path)
    assert found.epsilon == 1e-4


def by_hand(*nodes: Op) -> list[Sighting]:
    """What a graph of these ops tells, which TensorFlow itself does not write."""
    return told(make_graph(nodes))


def make_graph(nodes: Sequence[Op]) -> Any:
    graph_def = message_class("GraphDef")()
    for name, op, inputs, attributes in nodes:
        node = graph_def.node.add(name=name, op=op, input=inputs)
        for attribute, value in attributes.items():
            kind = {float: "f", bool: "b", int: "i", str: "s"}[type(value)]
            setattr(node.attr[attribute], kind, value.encode() if kind == "s" else value)
    return graph_def


def told(graph_def: Any) -> list[Sighting]:
    graph = graph_of(graph_def, lambda name: name)
    return from_graphs(Contents(Source("", ""), {}, graphs=lambda: [graph]))


def stored(scope: str) -> list[Op]:
    return [(f"{scope}/{role}", "VariableV2", [], {}) for role in ROLES]


def test_oldest_op_has_its_own_order_of_inputs() -> None:
    inputs = ["x", "bn/moving_mean", "bn/moving_variance", "bn/beta", "bn/gamma"]
    (found,) = by_hand(
        *stored("bn"),
        ("x", "Placeholder", [], {}),
        ("bn/y", "BatchNormWithGlobalNormalization", inputs, {"variance_epsilon": 0.002}),
    )
    assert found.roles == layer("bn")
    assert (found.epsilon, found.axis, found.name) == (0.002, 3, "bn/y")


@pytest.mark.parametrize("op", ["_FusedConv2D", "_FusedDepthwiseConv2dNative"])
def test_convolution_with_batch_norm_in_it(op: str) -> None:
    inputs = ["x", "w", "bn/gamma", "bn/beta", "bn/moving_mean", "bn/moving_variance"]
    nodes = [*stored("bn"), ("w", "VariableV2", [], {}), ("x", "Placeholder", [], {})]
    (found,) = by_hand(*nodes, ("y", op, inputs, {"num_args": 4, "epsilon": 0.002}))
    assert (found.roles, found.epsilon) == (layer("bn"), 0.002)
    assert by_hand(*nodes, ("y", op, inputs[:3], {"num_args": 1})) == []


# Inference, spelled out

SPELLINGS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "tf.nn": (lambda x, g, b, m, v, e: tf.nn.batch_normalization(x, m, v, b, g, e), ()),
    "tf.nn, no gamma": (
        lambda x, g, b, m, v, e: tf.nn.batch_normalization(x, m, v, b, None, e),
        ("gamma",),
    ),
    "tf.nn, no beta": (
        lambda x, g, b, m, v, e: tf.nn.batch_normalization(x, m, v, None, g, e),
        ("beta",),
    ),
    "tf.nn, neither": (
        lambda x, g, b, m, v, e: tf.nn.batch_normalization(x, m, v, None, None, e),
        ("gamma", "beta"),
    ),
    "quotient": (lambda x, g, b, m, v, e: g * (x - m) / tf.sqrt(v + e) + b, ()),
    "product": (lambda x, g, b, m, v, e: (x - m) * tf.math.rsqrt(v + e) * g + b, ()),
    "gamma last": (lambda x, g, b, m, v, e: b + g * ((x - m) / tf.sqrt(e + v)), ()),
    "inverse": (lambda x, g, b, m, v, e: g * (x - m) * (1.0 / tf.sqrt(v + e)) + b, ()),
    "reciprocal": (
        lambda x, g, b, m, v, e: g * (x - m) * tf.math.reciprocal(tf.sqrt(v + e)) + b,
        (),
    ),
    "one scale": (lambda x, g, b, m, v, e: _one_scale(x, g, b, m, v, e), ()),
    "beta before mean": (
        lambda x, g, b, m, v, e: _rsqrt(v, e, lambda r: x * r * g + b - m * r * g),
        (),
    ),
    "plain": (lambda x, g, b, m, v, e: (x - m) / tf.sqrt(v + e), ("gamma", "beta")),
    "only gamma": (lambda x, g, b, m, v, e: g * (x - m) / tf.sqrt(v + e), ("beta",)),
    "only beta": (lambda x, g, b, m, v, e: (x - m) / tf.sqrt(v + e) + b, ("gamma",)),
    "bias_add": (
        lambda x, g, b, m, v, e: tf.nn.bias_add((x - m) * tf.math.rsqrt(v + e) * g, b),
        (),
    ),
    "identities": (
        lambda x, g, b, m, v, e: tf.nn.batch_normalization(
            tf.identity(x), tf.stop_gradient(m), tf.identity(v), tf.identity(b),
            tf.ensure_shape(g, [CHANNELS]), tf.identity(e),
        ),
        (),
    ),
}  # fmt: skip


def _rsqrt(variance: Any, epsilon: float, then: Callable[[Any], Any]) -> Any:
    return then(tf.math.rsqrt(variance + epsilon))


def _one_scale(x: Any, g: Any, b: Any, m: Any, v: Any, e: float) -> Any:
    scale = g / tf.sqrt(v + e)
    return x * scale + (b - m * scale)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spelled_out(saved: Callable[..., Path], spelling: str) -> None:
    form, without = SPELLINGS[spelling]

    def build() -> None:
        x = tf.nn.relu(images())
        parameters = four("bn")
        with v1.name_scope("bn/"):
            y = form(x, *parameters, 1.1e-5)
        four("other")
        tf.nn.relu(y + x)

    path = saved(build)
    assert names(path) == [layer("bn", *without)]
    (found,) = sightings(path)
    assert (found.epsilon, found.axis, found.name) == (1.1e-5, None, "bn")


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("epsilon", [1e-3, 0.01])
def test_epsilon_of_other_dtypes(saved: Callable[..., Path], dtype: str, epsilon: float) -> None:
    def build() -> None:
        gamma, beta, mean, variance = four("bn", dtype)
        tf.nn.batch_normalization(images(dtype=dtype), mean, variance, beta, gamma, epsilon)

    path = saved(build)
    assert names(path) == [layer("bn")]
    assert [found.epsilon for found in sightings(path)] == [epsilon]


def test_epsilon_that_float64_alone_can_hold(saved: Callable[..., Path]) -> None:
    def build() -> None:
        gamma, beta, mean, variance = four("bn", "float64")
        tf.nn.batch_normalization(
            images(dtype="float64"), mean, variance, beta, gamma, 1.0000000000000002e-3
        )

    (found,) = sightings(saved(build))
    assert found.epsilon == 1.0000000000000002e-3


def test_axis_of_reshaped_parameters(saved: Callable[..., Path]) -> None:
    def build() -> None:
        parameters = [tf.reshape(value, [1, CHANNELS, 1, 1]) for value in four("bn")]
        gamma, beta, mean, variance = parameters
        x = images(channels_first=True)
        tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)

    path = saved(build)
    assert names(path) == [layer("bn")]
    (found,) = sightings(path)
    assert found.axis == 1


def test_one_channel_has_no_telling_shape(saved: Callable[..., Path]) -> None:
    def build() -> None:
        values = four("bn", shape=[1])
        gamma, beta, mean, variance = (tf.reshape(value, [1, 1, 1, 1]) for value in values)
        x = v1.placeholder("float32", [None, 1, 4, 4])
        tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)

    path = saved(build)
    assert names(path) == [layer("bn")]
    (found,) = sightings(path)
    assert found.axis is None


def test_following_parameters_are_not_taken(saved: Callable[..., Path]) -> None:
    def build() -> None:
        _, _, mean, variance = four("bn")
        y = tf.nn.batch_normalization(images(), mean, variance, None, None, 1e-3)
        y * variable("scale_of_another_layer") + variable("bias_of_another_layer")
        _, _, mean, variance = four("two")
        z = (images() - mean) / tf.sqrt(variance + 1e-3)
        z * variable("scalar", shape=[])

    path = saved(build)
    assert names(path) == [layer("bn", "gamma", "beta"), layer("two", "gamma", "beta")]


# Training


def moving_average(target: Any, value: Any, momentum: float) -> Any:
    from tensorflow.python.training import moving_averages

    return moving_averages.assign_moving_average(target, value, momentum, zero_debias=False)


def keras_average(target: Any, value: Any, momentum: float) -> Any:
    """As Keras 2 updates: the rate is computed in Python."""
    return target.assign_sub((target - value) * tf.cast(1.0 - momentum, target.dtype))


def keras_3_average(target: Any, value: Any, momentum: float) -> Any:
    return target.assign(target * momentum + value * (1.0 - momentum))


AVERAGES = [moving_average, keras_average, keras_3_average]


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("momentum", [0.99, 0.9997, 0.9, 0.5])
def test_fused_training(saved: Callable[..., Path], average: Any, momentum: float) -> None:
    def build() -> None:
        gamma, beta, mean, variance = four("bn")
        _, batch_mean, batch_variance = v1.nn.fused_batch_norm(
            images(), gamma, beta, epsilon=1.1e-5, is_training=True
        )
        average(mean, batch_mean, momentum)
        average(variance, batch_variance, momentum)

    path = saved(build)
    assert names(path) == [layer("bn")]
    (found,) = sightings(path)
    assert (found.epsilon, found.momentum, found.axis) == (1.1e-5, momentum, 3)


@pytest.mark.parametrize("average", AVERAGES)
def test_training_spelled_out(saved: Callable[..., Path], average: Any) -> None:
    def build() -> None:
        gamma, beta, mean, variance = four("bn")
        x = images()
        batch_mean, batch_variance = tf.nn.moments(x, [0, 1, 2])
        tf.nn.batch_normalization(x, batch_mean, batch_variance, beta, gamma, 1.1e-5)
        average(mean, batch_mean, 0.99)
        average(variance, batch_variance, 0.99)

    path = saved(build)
    assert names(path) == [layer("bn")]
    (found,) = sightings(path)
    assert (found.epsilon, found.momentum) == (1.1e-5, 0.99)


def test_training_with_gradients(saved: Callable[..., Path]) -> None:
    def build() -> None:
        x = images()
        for index in range(4):
            gamma, beta, mean, variance = four(f"bn{index}")
            batch_mean, batch_variance = tf.nn.moments(x, [0, 1, 2])
            x = tf.nn.batch_normalization(x, batch_mean, batch_variance, beta, gamma, 1e-5)
            moving_average(mean, batch_mean, 0.9)
            moving_average(variance, batch_variance, 0.9)
        v1.train.AdamOptimizer().minimize(tf.reduce_sum(x**2))

    path = saved(build)
    assert names(path) == [layer(f"bn{index}") for index in range(4)]
    assert [found.momentum for found in sightings(path)] == [0.9] * 4


def test_training_without_updates_still_tells_epsilon(saved: Callable[..., Path]) -> None:
    def build() -> None:
        gamma, beta, _, _ = four("bn")
        v1.nn.fused_batch_norm(images(), gamma, beta, epsilon=2e-5, is_training=True)

    path = saved(build)
    assert names(path) == [layer("bn", "moving_mean", "moving_variance")]
    (found,) = sightings(path)
    assert (found.epsilon, found.momentum) == (2e-5, None)


def test_op_that_averages_by_itself(saved: Callable[..., Path]) -> None:
    def build() -> None:
        gamma, beta, mean, variance = four("bn")
        _, new_mean, new_variance = v1.nn.fused_batch_norm(
            images(), gamma, beta, mean, variance, is_training=True, exponential_avg_factor=0.01
        )
        mean.assign(new_mean)
        variance.assign(new_variance)

    path = saved(build)
    assert names(path) == [layer("bn")]
    (found,) = sightings(path)
    assert found.momentum == 0.99


@pytest.fixture(params=["v1", "v2"])
def control_flow(request: pytest.FixtureRequest) -> Any:
    """Conditionals as ops that switch and merge, and as functions."""
    (v1.disable_control_flow_v2 if request.param == "v1" else v1.enable_control_flow_v2)()
    yield request.param
    v1.enable_control_flow_v2()


def test_fused_that_can_be_switched(saved: Callable[..., Path], control_flow: str) -> None:
    def build() -> None:
        gamma, beta, mean, variance = four("bn")
        x = images()
        training = v1.placeholder("bool", [])
        _, new_mean, new_variance = tf.cond(
            training,
            lambda: v1.nn.fused_batch_norm(x, gamma, beta, epsilon=2e-3, is_training=True),
            lambda: v1.nn.fused_batch_norm(
                x, gamma, beta, mean, variance, epsilon=2e-3, is_training=False
            ),
        )
        momentum = tf.cond(training, lambda: 0.997, lambda: 1.0)
        moving_average(mean, new_mean, momentum)
        moving_average(variance, new_variance, momentum)

    path = saved(build)
    assert names(path) == [layer("bn")]
    (found,) = sightings(path)
    assert (found.epsilon, found.momentum, found.axis) == (2e-3, 0.997, 3)


def test_spelled_out_that_can_be_switched(saved: Callable[..., Path], control_flow: str) -> None:
    """As tf.contrib.layers.batch_norm spelled it out."""

    def build() -> None:
        gamma, beta, mean, variance = four("bn")
        x = images()
        training = v1.placeholder("bool", [])
        moments = tf.nn.moments(x, [0, 1, 2])
        tf.cond(
            training,
            lambda: [
                moving_average(target, value, 0.999)
                for target, value in zip((mean, variance), moments, strict=True)
            ],
            lambda: [tf.identity(mean), tf.identity(variance)],
        )
        used = tf.cond(
            training,
            lambda: [tf.identity(value) for value in moments],
            lambda: [tf.identity(mean), tf.identity(variance)],
        )
        tf.nn.batch_normalization(x, *used, beta, gamma, 1e-3)

    path = saved(build)
    assert names(path) == [layer("bn")]
    (found,) = sightings(path)
    assert (found.epsilon, found.momentum) == (1e-3, 0.999)


def test_averages_of_moments(saved: Callable[..., Path], control_flow: str) -> None:
    """Moving statistics that tf.train.ExponentialMovingAverage keeps."""

    def build() -> None:
        gamma, beta, _, _ = four("bn")
        x = images()
        average = tf.train.ExponentialMovingAverage(0.5)
        with v1.variable_scope("bn"):
            moments = tf.nn.moments(x, [0, 1, 2])

            def updated() -> list[Any]:
                with tf.control_dependencies([average.apply(moments)]):
                    return [tf.identity(value) for value in moments]

            mean, variance = tf.cond(
                v1.placeholder("bool", []),
                updated,
                lambda: [average.average(value) for value in moments],
            )
            tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)
            kept.extend(average.average_name(value) for value in moments)

    kept: list[str] = []
    path = saved(build)
    moving = dict(zip(ROLES[2:], kept, strict=True))
    assert names(path) == [layer("bn") | moving]
    assert sightings(path)[0].momentum == 0.5


def test_keras_layers_in_a_graph(saved: Callable[..., Path], control_flow: str) -> None:
    layers = pytest.importorskip("tf_keras").layers
    legacy = pytest.importorskip("tf_keras.src.legacy_tf_layers.normalization")

    def build() -> None:
        x = images()
        training = v1.placeholder("bool", [])
        for index, mode in enumerate([training, True, False]):
            settings = {"momentum": 0.5 + index / 8, "epsilon": 2e-3}
            layers.BatchNormalization(name=f"keras{index}", **settings)(x, training=mode)
            for kind, more in KINDS.items():
                name = f"{kind}{index}"
                legacy.batch_normalization(x, name=name, training=mode, **settings, **more)

    path = saved(build)
    found = dict(zip([one["moving_mean"] for one in names(path)], sightings(path), strict=True))
    for index in range(3):
        for kind in ("keras", *KINDS):
            one = found.pop(f"{kind}{index}/moving_mean")
            assert one.epsilon == 2e-3
            assert one.momentum == (None if index == 2 else 0.5 + index / 8)
            if kind != "renorm":
                assert one.roles == layer(f"{kind}{index}")
            if kind in ("keras", "plain"):
                assert one.axis == 3
    assert found == {}


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "unfused": {"fused": False},
    "rows": {"axis": 1, "fused": False},
    "renorm": {"renorm": True},
}


@pytest.mark.parametrize("version", ["keras", "tf_keras"])
def test_keras_training_function(version: str, tmp_path: Path) -> None:
    keras = pytest.importorskip(version)
    norm = keras.layers.BatchNormalization

    class Trainer(tf.Module):
        def __init__(self) -> None:
            self.model = keras.Sequential(
                [
                    keras.Input((4, 4, 3)),
                    norm(name="one", epsilon=1e-8, momentum=0.7),
                    norm(name="two", epsilon=1.1e-5, momentum=0.997, axis=1),
                    norm(name="three", synchronized=True, epsilon=3e-3, momentum=0.9),
                ]
            )
            self.values = self.model.variables

        @tf.function(input_signature=[tf.TensorSpec([None, 4, 4, 3])])
        def train(self, x: Any) -> Any:
            return self.model(x, training=True)

    tf.saved_model.save(Trainer(), str(tmp_path))
    found = sightings(tmp_path)
    settings = [(1e-8, 0.7), (1.1e-5, 0.997), (3e-3, 0.9)]
    assert [(one.epsilon, one.momentum) for one in found] == settings
    assert found[1].axis == 1
    for roles, name in zip(names(tmp_path), ["one", "two", "three"], strict=True):
        assert {role: value.split("/")[-1] for role, value in roles.items()} == {
            role: role for role in ROLES
        }
        assert all(f"{name}/" in value for value in roles.values())


# What is no batch norm


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


def test_variables_saved_under_other_names(tmp_path: Path) -> None:
    with tf.Graph().as_default(), v1.Session() as session:
        gamma, beta, mean, variance = values = four("bn")
        tf.nn.batch_normalization(images(), mean, variance, beta, gamma, 1e-3)
        session.run(v1.global_variables_initializer())
        stored = {f"stored/{role}": value for role, value in zip(ROLES, values, strict=True)}
        v1.train.Saver(stored).save(session, str(tmp_path / "model"))
    assert names(tmp_path / "model") == [layer("stored")]


def test_reference_variables(tmp_path: Path) -> None:
    with tf.Graph().as_default(), v1.Session() as session:
        with v1.variable_scope("bn", use_resource=False):
            values = [
                v1.get_variable(role, [CHANNELS], initializer=v1.ones_initializer())
                for role in ROLES
            ]
        gamma, beta, mean, variance = values
        tf.nn.batch_normalization(images(), mean, variance, beta, gamma, 1e-3)
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(tmp_path / "model"))
    assert names(tmp_path / "model") == [layer("bn")]


# Keras


def network(keras: Any) -> Any:
    """A network with branches, nesting, a shared layer, and every kind of batch norm."""
    norm = keras.layers.BatchNormalization
    inner_x = keras.Input((8, 8, CHANNELS))
    inner_y = norm(epsilon=1e-8, momentum=0.5, name="inside")(inner_x)
    inner = keras.Model(inner_x, keras.layers.ReLU()(inner_y), name="inner")
    shared = norm(epsilon=2e-3, momentum=0.75, name="shared")

    x = inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(CHANNELS, 3, padding="same", name="stem")(x)
    x = norm(epsilon=1.1e-5, momentum=0.9, name="first")(x)
    left = norm(scale=False, momentum=0.997, name="left")(keras.layers.ReLU()(x))
    left = shared(inner(left))
    right = norm(center=False, name="right")(keras.layers.Conv2D(CHANNELS, 1)(x))
    right = norm(center=False, scale=False, epsilon=1e-4, name="bare")(shared(right))
    x = keras.layers.Add()([left, right])
    x = keras.layers.LayerNormalization(name="not_batch")(x)
    x = norm(axis=1, epsilon=3e-3, name="rows")(x)
    x = norm(name="half", dtype="mixed_float16")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(2)(norm(name="last")(x))
    model = keras.Model(inputs, outputs)
    generator = np.random.default_rng(0)
    model.set_weights([generator.random(value.shape) for value in model.get_weights()])
    return model


PATHS = [
    ["first", "left", "inside", "bare", "rows", "half", "last"],
    ["first", "right", "bare"],
    ["shared", "bare"],
]
"""Layers that follow each other; the branches can be told in either order."""


def norms_of(model: Any) -> dict[str, Any]:
    """The model's batch norms by name, those of models in it among them."""
    found = {}
    for item in model.layers:
        if hasattr(item, "layers"):
            found |= norms_of(item)
        elif "BatchNormalization" in type(item).__name__:
            found[item.name] = item
    return found


def check_against(model: Any, contents: Contents, *, momentum: bool = False) -> None:
    """Every layer's roles, values and settings are those that Keras has."""
    expected = norms_of(model)
    found = from_graphs(contents)
    by_values = {}
    for sighting in found:
        values = {role: contents.variables[key].read() for role, key in sighting.roles.items()}
        by_values[values["moving_variance"].tobytes()] = (sighting, values)
    assert len(by_values) == len(found) == len(expected)
    for item in expected.values():
        sighting, values = by_values[np.asarray(item.moving_variance).tobytes()]
        stored = {role: getattr(item, role) for role in ROLES}
        stored = {role: np.asarray(value) for role, value in stored.items() if value is not None}
        assert values.keys() == stored.keys()
        for role, value in stored.items():
            assert values[role].dtype == value.dtype
            assert values[role].tobytes() == value.tobytes()
        assert sighting.epsilon == item.epsilon
        if momentum:
            assert sighting.momentum == item.momentum
        if item.name == "rows":
            assert sighting.axis == 1
        assert item.name in sighting.name
    order = [next(name for name in expected if name in sighting.name) for sighting in found]
    for path in PATHS:
        assert [name for name in order if name in path] == path


@pytest.fixture(scope="module")
def keras_3() -> Any:
    keras = pytest.importorskip("keras", "3.0")
    keras.backend.clear_session()
    return network(keras)


@pytest.fixture(scope="module")
def keras_2() -> Any:
    return network(pytest.importorskip("tf_keras"))


def test_keras_3_export(keras_3: Any, tmp_path: Path) -> None:
    keras_3.export(tmp_path, verbose=False)
    check_against(keras_3, open_model(tmp_path))


def test_keras_3_saved_model(keras_3: Any, tmp_path: Path) -> None:
    tf.saved_model.save(keras_3, str(tmp_path))
    check_against(keras_3, open_model(tmp_path))


def test_keras_2_saved_model(keras_2: Any, tmp_path: Path) -> None:
    keras_2.save(tmp_path, save_format="tf")
    contents = open_model(tmp_path)
    check_against(keras_2, contents)
    check_against(keras_2, replace(contents, layers=()), momentum=True)


def test_keras_2_export(keras_2: Any, tmp_path: Path) -> None:
    keras_2.export(tmp_path)
    check_against(keras_2, open_model(tmp_path))


@pytest.mark.parametrize("version", ["keras_2", "keras_3"])
def test_frozen(version: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model = request.getfixturevalue(version)
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    signature = tf.TensorSpec((None, 8, 8, 3))
    function = tf.function(lambda x: model(x, training=False)).get_concrete_function(signature)
    frozen = convert_variables_to_constants_v2(function).graph.as_graph_def()
    (tmp_path / "frozen.pb").write_bytes(frozen.SerializeToString())
    check_against(model, open_model(tmp_path / "frozen.pb"))


# Malice


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


@pytest.mark.parametrize("kind", ENDLESS)
def test_graphs_without_end(kind: str) -> None:
    graph_def = make_graph(ENDLESS[kind]())
    start = time.process_time()
    told(graph_def)
    assert time.process_time() - start < 5


def test_settings_that_are_no_numbers() -> None:
    inputs = ["x", "bn/gamma", "bn/beta", "bn/moving_mean", "bn/moving_variance"]
    attributes = {"epsilon": float("nan"), "exponential_avg_factor": float("inf")}
    (found,) = by_hand(*stored("bn"), ("bn/y", "FusedBatchNormV3", inputs, attributes))
    assert (found.epsilon, found.momentum, found.roles) == (None, None, layer("bn"))


# Functions that call functions


class Block(tf.Module):
    """A batch norm in a function of its own, which trains or infers."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        with self.name_scope:
            self.values = [tf.Variable(tf.ones(CHANNELS), name=role) for role in ROLES]

    @tf.function
    def infer(self, x: Any) -> Any:
        gamma, beta, mean, variance = self.values
        return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1.1e-5)

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
    """Functions in functions, in an order that their names do not tell."""

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
        (_, x) = tf.while_loop(
            lambda step, y: step < 3,
            lambda step, y: (step + 1, self.blocks[4].infer(y)),
            (0, x),
        )
        return x

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


def test_function_for_inference_alone(tmp_path: Path) -> None:
    block = Block("d")
    infer = block.infer.get_concrete_function(tf.TensorSpec([None, CHANNELS]))
    tf.saved_model.save(block, str(tmp_path), signatures=infer)
    assert names(tmp_path) == [layer("d")]
    (found,) = sightings(tmp_path)
    assert (found.momentum, found.axis) == (None, None)


def test_constants_in_functions(tmp_path: Path) -> None:
    """What converters from other frameworks write: no variables, the numbers in functions."""
    values = {role: np.arange(CHANNELS, dtype=np.float32) + i for i, role in enumerate(ROLES)}

    class Converted(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 4, 4, CHANNELS])])
        def __call__(self, x: Any) -> Any:
            gamma, beta, mean, variance = (tf.constant(value) for value in values.values())
            return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1.1e-5)

    tf.saved_model.save(Converted(), str(tmp_path))
    saved_model = message_class("SavedModel").FromString((tmp_path / "saved_model.pb").read_bytes())
    contents = contents_of_graph(saved_model.meta_graphs[0].graph_def, Source("", ""))
    (found,) = from_graphs(contents)
    assert found.epsilon == 1.1e-5
    for role, value in values.items():
        assert contents.variables[found.roles[role]].read().tobytes() == value.tobytes()


@pytest.mark.parametrize("neutral", [True, False])
def test_constants_that_stand_for_nothing(saved: Callable[..., Path], neutral: bool) -> None:
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


def test_graphs_that_disagree_on_epsilon(saved: Callable[..., Path]) -> None:
    def build() -> None:
        gamma, beta, mean, variance = four("bn")
        for epsilon in (1e-3, 1e-5):
            tf.nn.batch_normalization(images(), mean, variance, beta, gamma, epsilon)

    (found,) = sightings(saved(build))
    assert found.epsilon is None
    assert found.notes == ("its graphs use different epsilons (0.001 and 1e-05)",)


def test_layers_that_share_gamma_and_beta(saved: Callable[..., Path]) -> None:
    """Statistics of their own for each domain, one scale and offset for all."""

    def build() -> None:
        gamma, beta, mean, variance = four("one")
        _, _, other_mean, other_variance = four("two")
        x = tf.nn.batch_normalization(images(), mean, variance, beta, gamma, 1e-3)
        tf.nn.batch_normalization(x, other_mean, other_variance, beta, gamma, 1e-3)

    shared = {"gamma": "one/gamma", "beta": "one/beta"}
    assert names(saved(build)) == [layer("one"), layer("two", "gamma", "beta") | shared]


# Files that were written by old versions, and files from the wild


def test_old_files(written: Path) -> None:
    renormed = {"moving_mean": "b/moving_mean"}  # its variance is that of `moving_stddev`
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
