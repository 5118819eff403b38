"""Batch norms that graphs apply, in one op or spelled out, in inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnstat
from bnstat.model import ROLES
from tests.discovery.graphs.models import (
    CHANNELS,
    Save,
    assert_layer,
    by_hand,
    four,
    images,
    layer,
    moving_average,
    names,
    normalize,
    sightings,
    stored,
    tf,
    v1,
    variable,
)


@pytest.mark.parametrize("epsilon", [1e-3, 1.1e-5, 1e-8, 0.5])
@pytest.mark.parametrize(("data_format", "axis"), [("NHWC", 3), ("NCHW", 1)])
def test_fused(saved: Save, epsilon: float, data_format: str, axis: int) -> None:
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


def test_fused_3d_without_an_epsilon() -> None:
    inputs = ["x", *(f"bn/{role}" for role in ROLES)]
    attributes = {"data_format": "NDHWC", "is_training": False}
    (found,) = by_hand(*stored("bn"), ("bn/y", "FusedBatchNormV3", inputs, attributes))
    assert (found.axis, found.epsilon) == (4, 1e-4), "the op's default"


def test_matrix_dressed_as_images(saved: Save) -> None:
    def build() -> None:
        gamma, beta, mean, variance = four("bn")
        x = tf.reshape(v1.placeholder("float32", [None, CHANNELS]), [-1, 1, 1, CHANNELS])
        v1.nn.fused_batch_norm(x, gamma, beta, mean, variance, is_training=False)

    assert_layer(saved(build), axis=-1)


def test_oldest_op_has_its_own_order_of_inputs() -> None:
    inputs = ["x", "bn/moving_mean", "bn/moving_variance", "bn/beta", "bn/gamma"]
    op = "BatchNormWithGlobalNormalization"
    (found,) = by_hand(*stored("bn"), ("bn/y", op, inputs, {"variance_epsilon": 0.002}))
    assert found.roles == layer("bn")
    assert (found.epsilon, found.axis, found.name) == (0.002, 3, "bn/y")


@pytest.mark.parametrize("op", ["_FusedConv2D", "_FusedDepthwiseConv2dNative"])
def test_convolution_with_batch_norm_in_it(op: str) -> None:
    inputs = ["x", "w", "bn/gamma", "bn/beta", "bn/moving_mean", "bn/moving_variance"]
    nodes = [*stored("bn"), ("w", "VariableV2", [], {}), ("x", "Placeholder", [], {})]
    (found,) = by_hand(*nodes, ("y", op, inputs, {"num_args": 4, "epsilon": 0.002}))
    assert (found.roles, found.epsilon) == (layer("bn"), 0.002)
    assert by_hand(*nodes, ("y", op, inputs[:3], {"num_args": 1})) == []


# Spelled out

nn = tf.nn.batch_normalization
rsqrt = tf.math.rsqrt
Form = Callable[..., Any]

SPELLINGS: dict[str, list[Form]] = {
    "": [
        lambda x, g, b, m, v, e: nn(x, m, v, b, g, e),
        lambda x, g, b, m, v, e: g * (x - m) / tf.sqrt(v + e) + b,
        lambda x, g, b, m, v, e: (x - m) * rsqrt(v + e) * g + b,
        lambda x, g, b, m, v, e: b + g * ((x - m) / tf.sqrt(e + v)),
        lambda x, g, b, m, v, e: g * (x - m) * (1.0 / tf.sqrt(v + e)) + b,
        lambda x, g, b, m, v, e: g * (x - m) * tf.math.reciprocal(tf.sqrt(v + e)) + b,
        lambda x, g, b, m, v, e: x * (scale := g / tf.sqrt(v + e)) + (b - m * scale),
        lambda x, g, b, m, v, e: x * (root := rsqrt(v + e)) * g + b - m * root * g,
        lambda x, g, b, m, v, e: tf.nn.bias_add((x - m) * rsqrt(v + e) * g, b),
        lambda x, g, b, m, v, e: nn(
            tf.identity(x), tf.stop_gradient(m), tf.identity(v), tf.identity(b),
            tf.ensure_shape(g, [CHANNELS]), tf.identity(e),
        ),
    ],
    "gamma": [
        lambda x, g, b, m, v, e: nn(x, m, v, b, None, e),
        lambda x, g, b, m, v, e: (x - m) / tf.sqrt(v + e) + b,
    ],
    "beta": [
        lambda x, g, b, m, v, e: nn(x, m, v, None, g, e),
        lambda x, g, b, m, v, e: g * (x - m) / tf.sqrt(v + e),
    ],
    "gamma beta": [
        lambda x, g, b, m, v, e: nn(x, m, v, None, None, e),
        lambda x, g, b, m, v, e: (x - m) / tf.sqrt(v + e),
    ],
}  # fmt: skip
"""Roles that the layer lacks -> functions of the input, the variables and epsilon."""


@pytest.mark.parametrize(
    ("without", "form"), [(without, form) for without in SPELLINGS for form in SPELLINGS[without]]
)
def test_spelled_out(saved: Save, without: str, form: Form) -> None:
    def build() -> None:
        x = tf.nn.relu(images())
        parameters = four("bn")
        with v1.name_scope("bn/"):
            y = form(x, *parameters, 1.1e-5)
        four("other")
        tf.nn.relu(y + x)

    assert_layer(saved(build), without.split(), epsilon=1.1e-5, axis=None, name="bn")


@pytest.mark.parametrize("epsilon", [1e-3, 0.01, 1.0000000000000002e-3])
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_epsilon_of_other_dtypes(saved: Save, dtype: str, epsilon: float) -> None:
    def build() -> None:
        normalize(four("bn", dtype), epsilon=epsilon)

    assert_layer(saved(build), epsilon=epsilon if dtype == "float64" else round(epsilon, 3))


@pytest.mark.parametrize(("channels", "axis"), [(CHANNELS, 1), (1, None)])
def test_axis_of_reshaped_parameters(saved: Save, channels: int, axis: int | None) -> None:
    def build() -> None:
        values = [tf.reshape(each, [1, channels, 1, 1]) for each in four("bn", shape=[channels])]
        normalize(values, v1.placeholder("float32", [None, channels, 4, 4]))

    assert_layer(saved(build), axis=axis)


@pytest.mark.parametrize("size", [np.nan, np.inf])
def test_a_shape_that_is_not_finite(tmp_path: Path, size: float) -> None:
    with tf.Graph().as_default() as graph:
        vectors = [tf.constant([1.0] * CHANNELS, name=f"bn/{role}") for role in ROLES]
        values = [tf.reshape(vector, [1, CHANNELS, 1, 1]) for vector in vectors]
        normalize(values, images(channels_first=True))
    graph_def = graph.as_graph_def()
    for node in graph_def.node:
        if node.op == "Const" and node.name.endswith("/shape"):
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto([1, size, 1.0, 1.0]))
    (tmp_path / "m.pb").write_bytes(graph_def.SerializeToString())
    (found,) = sightings(tmp_path / "m.pb")
    assert found.axis == 1


def test_following_parameters_are_not_taken(saved: Save) -> None:
    def build() -> None:
        _, _, mean, variance = four("bn")
        y = tf.nn.batch_normalization(images(), mean, variance, None, None, 1e-3)
        y * variable("scale_of_another_layer") + variable("bias_of_another_layer")
        _, _, mean, variance = four("two")
        z = (images() - mean) / tf.sqrt(variance + 1e-3)
        z * variable("scalar", shape=[])

    path = saved(build)
    assert names(path) == [layer("bn", "gamma", "beta"), layer("two", "gamma", "beta")]


def test_a_frozen_layer_of_a_constant(tmp_path: Path) -> None:
    for data_format, shape in (("NHWC", [1, 1, 1, CHANNELS]), ("NCHW", [2, CHANNELS, 4, 4])):
        with tf.Graph().as_default() as graph:
            roles = enumerate(ROLES)
            values = [tf.constant([1.5 + i] * CHANNELS, name=f"bn/{role}") for i, role in roles]
            if data_format == "NCHW":
                values = [tf.reshape(value, [1, CHANNELS, 1, 1]) for value in values]
            x = tf.constant(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), name="x")
            with v1.name_scope("bn/"):
                normalize(values, x, 0.003)
        path = tmp_path / f"{data_format}.pb"
        path.write_bytes(graph.as_graph_def().SerializeToString())
        (found,) = sightings(path)
        assert (found.roles, found.epsilon) == (layer("bn"), 0.003)
        assert found.inputs == {("", "x")}


# Normalizing each batch by its own statistics


def fused(x: Any, gamma: Any, beta: Any) -> Any:
    return v1.nn.fused_batch_norm(x, gamma, beta, is_training=True)[0]


def spelled_out(x: Any, gamma: Any, beta: Any) -> Any:
    mean, variance = tf.nn.moments(x, [0, 1, 2])
    return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)


def from_sums(x: Any, gamma: Any, beta: Any, axes: Sequence[int] = (0, 1, 2)) -> Any:
    """As spelled out by the `moments` of TensorFlow before 1.3."""
    rate = tf.math.reciprocal(tf.constant(64.0))
    mean, square = (tf.reduce_sum(values, axes) * rate for values in (x, tf.square(x)))
    return tf.nn.batch_normalization(x, mean, square - tf.square(mean), beta, gamma, 1e-3)


@pytest.mark.parametrize(("scope", "prefix"), [("bn", "bn/"), ("", "")])
@pytest.mark.parametrize("apply", [fused, spelled_out, from_sums])
def test_training_mode_without_statistics(saved: Save, apply: Any, scope: str, prefix: str) -> None:
    def build() -> None:
        with v1.variable_scope(scope):
            gamma, beta = variable("scale"), variable("offset")
        with v1.name_scope(prefix):
            apply(images(), gamma, beta)

    path = saved(build)
    (found,) = sightings(path)
    assert found.uses_batch_statistics
    assert (found.epsilon, found.momentum) == (1e-3, None)
    assert found.roles == {"gamma": f"{prefix}scale", "beta": f"{prefix}offset"}
    model = bnstat.load(path)
    assert not model.layers
    (lacking,) = model.incomplete
    assert lacking.name != "(root)"
    assert lacking.uses_batch_statistics


def test_sums_over_the_channels_are_not_of_a_batch(saved: Save) -> None:
    def build() -> None:
        from_sums(tf.ones((CHANNELS, CHANNELS)), variable("scale"), variable("offset"), axes=[1])

    assert sightings(saved(build)) == []


@pytest.mark.parametrize("is_moved", [True, False])
def test_the_oldest_op_in_training_mode(is_moved: bool) -> None:
    inputs = ["x", "mean", "variance", "bn/beta", "bn/gamma"]
    nodes = [*stored("bn"), ("mean", "Mean", ["x"], {}), ("variance", "Mean", ["squares"], {})]
    for role, new in zip(ROLES[2:], inputs[1:3], strict=True):
        nodes.append((f"{new}/less", "Sub", [f"bn/{role}", new], {}))
        nodes.append((f"{new}/step", "Mul", [f"{new}/less", "rate"], {}))
        nodes += [(f"{new}/moved", "AssignSub", [f"bn/{role}", f"{new}/step"], {})] * is_moved
    op = "BatchNormWithGlobalNormalization"
    (found,) = by_hand(*nodes, ("bn/y", op, inputs, {"variance_epsilon": 0.002}))
    assert found.roles == (layer("bn") if is_moved else layer("bn", *ROLES[2:]))
    assert (found.epsilon, found.uses_batch_statistics) == (0.002, not is_moved)


def test_training_mode_of_a_trainable_checkpoint(saved: Save) -> None:
    def build() -> list[Any]:
        gamma, beta, mean, variance = four("bn")
        _, *batch = v1.nn.fused_batch_norm(images(), gamma, beta, is_training=True)
        moving_average(mean, batch[0], 0.9)
        moving_average(variance, batch[1], 0.9)
        return [gamma, beta]

    assert_layer(saved(build), ROLES[2:], uses_batch_statistics=False)


def test_standardized_weights_are_not_batch_norm(saved: Save) -> None:
    def build() -> None:
        kernel = variable("kernel", shape=[3, 3, CHANNELS, CHANNELS])
        mean, variance = tf.nn.moments(kernel, [0, 1, 2])
        gain, beta = variable("gain"), variable("beta")
        standard = tf.nn.batch_normalization(kernel, mean, variance, beta, gain, 1e-4)
        tf.nn.conv2d(images(), standard, 1, "SAME")

    assert sightings(saved(build)) == []
