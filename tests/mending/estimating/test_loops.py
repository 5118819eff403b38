"""Layers that normalize in a loop are left, with the reason; layers around a loop are measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras as keras_3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from bnstat import drift, recalibrate
from bnstat.errors import UnsupportedError
from tests.builders.modules import EPSILON, Net, Norm

X = np.random.default_rng(2).normal(3, 2, (50, 3)).astype(np.float32)
REASON = "in a loop (tf.while_loop, tf.map_fn or a recurrent cell), where it cannot be measured"


Form = Callable[[Norm, tf.Tensor], tf.Tensor]


def around(loop: Form) -> Net:
    """Return a network with normalizations before a loop, in it and after it."""

    def call(net: Any, x: tf.Tensor) -> tf.Tensor:
        return net.last(tf.reshape(loop(net.norm, net.first(x) + 2), [-1, 3]))

    return Net(call, "first", "norm", "last")


def a_while(norm: Norm, x: tf.Tensor) -> tf.Tensor:
    total = tf.zeros_like(x)
    for turn in tf.range(4):
        total += norm(x * tf.cast(turn, tf.float32))
    return total


def a_map(norm: Norm, x: tf.Tensor) -> tf.Tensor:
    return tf.map_fn(lambda row: norm(row[None] * row[0])[0], x)


def a_loop_in_a_loop_in_a_branch(norm: Norm, x: tf.Tensor) -> tf.Tensor:
    total = tf.zeros_like(x)
    if tf.reduce_mean(x) < 100:
        for outer in tf.range(3):
            for inner in tf.range(outer):
                if inner != 1:
                    total += norm(x + tf.cast(outer, tf.float32))
    return total


FORMS: dict[Form, Callable[[np.ndarray], np.ndarray]] = {
    a_while: lambda x: x * 6,
    a_map: lambda x: x * x[:, :1],
    a_loop_in_a_loop_in_a_branch: lambda x: x * 2 + 3,
}
"""A loop, and its result with the stored statistics of the layer in it, but for a factor."""


@pytest.mark.parametrize("exact", [False, True], ids=["one pass", "exact"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_layers_around_a_loop_are_measured(form: Form, exact: bool, tmp_path: Path) -> None:
    path = around(form).save(tmp_path / "model")
    result = recalibrate(path, X, exact=exact, batch_size=50)
    assert result.left.keys() == {"norm"}
    assert REASON in result.left["norm"]
    first, last = result.layers
    x = X.astype(np.float64)
    entering = FORMS[form]((x - x.mean(0)) / np.sqrt(x.var(0) + EPSILON) + 2) / np.sqrt(1 + EPSILON)
    np.testing.assert_allclose(first.mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(last.mean, entering.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(last.variance, entering.var(0), rtol=1e-4)
    assert last.remains < 1e-5 or not exact
    if not exact:
        live = drift(around(form), {"x": X})
        assert [*live.left.values()] == [*result.left.values()]
        assert len(live.layers) == 2


def save_graph_mode(path: Path, where: str) -> None:
    """Save a loop of TensorFlow 1, with a normalization in its body, its condition or both."""
    v1 = tf.compat.v1
    v1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, [None, 3], name="x")
            names = ("gamma", "beta", "moving_mean", "moving_variance")
            with v1.variable_scope("bn", use_resource=False):
                gamma, beta, mean, variance = (
                    v1.get_variable(name, [3], initializer=v1.ones_initializer()) for name in names
                )
            inverse = tf.math.rsqrt(variance + EPSILON) * gamma

            def norm(value: tf.Tensor) -> tf.Tensor:
                if where == "partly":  # the scale and the shift are computed before the loop
                    return value * inverse + (beta - mean * inverse)
                return tf.nn.batch_normalization(value, mean, variance, beta, gamma, EPSILON)

            def scaled(turn: tf.Tensor) -> tf.Tensor:
                return norm(x * tf.cast(turn, tf.float32))

            def condition(turn: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
                if where != "condition":
                    return turn < 3
                return tf.logical_and(turn < 3, tf.reduce_sum(scaled(turn)) > -1e9)

            def body(turn: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                return turn + 1, y if where == "condition" else y + scaled(turn)

            _, y = v1.while_loop(condition, body, [tf.constant(0), tf.zeros_like(x)])
            y = y + norm(x * 5) if where == "inside and outside" else y
            session.run(v1.global_variables_initializer())
            v1.saved_model.simple_save(session, str(path), {"x": x}, {"y": tf.identity(y)})
    finally:
        v1.enable_control_flow_v2()


@pytest.mark.parametrize("where", ["body", "condition", "partly", "inside and outside"])
def test_loops_of_graph_mode_are_left(where: str, tmp_path: Path) -> None:
    save_graph_mode(tmp_path / "model", where)
    with pytest.raises(UnsupportedError) as error:
        recalibrate(tmp_path / "model", X)
    assert f"bn: the graph normalizes with it {REASON}" in str(error.value)


@pytest.mark.parametrize("keras", [keras_3, tf_keras], ids=["keras", "tf_keras"])
def test_the_cell_of_a_recurrent_layer_is_left(keras: Any) -> None:
    layers = keras.layers

    @keras.utils.register_keras_serializable("of test_loops")
    class Cell(layers.Layer):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.state_size = self.output_size = 3
            self.norm = layers.BatchNormalization(name="norm")

        def build(self, shape: Any) -> None:
            self.norm.build((None, 3))
            self.built = True

        def call(self, x: Any, states: Any, training: Any = None) -> Any:
            state = self.norm(x + 0.1 * states[0], training=training)
            return state, [state]

    inputs = keras.Input((6, 3), name="x")
    last = layers.BatchNormalization(name="last")
    model = keras.Model(inputs, last(layers.RNN(Cell(), return_sequences=True)(inputs)))
    x = np.random.default_rng(1).normal(3, 2, (40, 6, 3)).astype(np.float32)
    result = recalibrate(model, {"x": x}, exact=True, batch_size=16)
    assert [each.layer for each in result.layers] == ["last"]
    assert [REASON in each for each in result.left.values()] == [True]
    assert drift(model, {"x": x}).largest < 1e-5
