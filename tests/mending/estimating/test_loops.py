"""Normalizations in loops: pooled over all turns, as NumPy finds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras as keras_3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from bnstat.errors import BnstatError
from bnstat.estimate.recalibrating import drift, recalibrate

X = np.random.default_rng(2).normal(3, 2, (50, 3)).astype(np.float32)
EPSILON = 1e-3
EXACT = pytest.mark.parametrize("exact", [False, True], ids=["one pass", "exact"])


class Norm(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.moving_mean = tf.Variable(tf.zeros(3), name="moving_mean")
        self.moving_variance = tf.Variable(tf.ones(3), name="moving_variance")

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.batch_normalization(
            x, self.moving_mean, self.moving_variance, None, None, EPSILON
        )


class Net(tf.Module):
    """Whatever a test has in mind, with normalizations before it, in it and after it."""

    def __init__(self, within: Callable[[Norm, tf.Tensor], tf.Tensor]) -> None:
        super().__init__()
        self.first, self.norm, self.last = Norm(), Norm(), Norm()
        self.within = within

    @tf.function(input_signature=[tf.TensorSpec([None, 3], name="x")])
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        self.first(x)
        return self.last(tf.reshape(self.within(self.norm, self.first(x) + 2), [-1, 3]))


def a_while(norm: Norm, x: tf.Tensor) -> tf.Tensor:
    total = tf.zeros_like(x)
    for turn in tf.range(4):
        total += norm(x * tf.cast(turn, tf.float32))
    return total


def a_map(norm: Norm, x: tf.Tensor) -> tf.Tensor:
    return tf.map_fn(lambda row: norm(row[None] * row[0])[0], x)


def a_scan(norm: Norm, x: tf.Tensor) -> tf.Tensor:
    return tf.scan(lambda total, row: total + norm(row[None])[0], x, tf.zeros(3))


def a_loop_in_a_loop_in_a_branch(norm: Norm, x: tf.Tensor) -> tf.Tensor:
    total = tf.zeros_like(x)
    if tf.reduce_mean(x) < 100:
        for outer in tf.range(3):
            for inner in tf.range(outer):
                if inner != 1:
                    total += norm(x + tf.cast(outer, tf.float32))
    return total


def a_picture(norm: Norm, x: tf.Tensor) -> tf.Tensor:
    picture = x[:, None, None, :]
    total = tf.zeros_like(picture)
    for turn in tf.range(3):
        total += tf.compat.v1.nn.fused_batch_norm(
            picture * tf.cast(turn + 1, tf.float32),
            tf.fill([3], 2.0),
            tf.ones(3),
            norm.moving_mean,
            norm.moving_variance,
            EPSILON,
            is_training=False,
        )[0]
    return total


def a_picture_by_channels(norm: Norm, x: tf.Tensor) -> tf.Tensor:
    picture = x[:, :, None, None]
    for _ in tf.range(2):
        mean = tf.reshape(norm.moving_mean, [1, 3, 1, 1])
        variance = tf.reshape(norm.moving_variance, [1, 3, 1, 1])
        normal = tf.nn.batch_normalization(picture, mean, variance, None, None, EPSILON)
        picture += 3 + 0 * normal
    return picture


FORMS: dict[Callable[..., Any], Callable[[np.ndarray], list[np.ndarray]]] = {
    a_while: lambda x: [x * turn for turn in range(4)],
    a_map: lambda x: [x * x[:, :1]],
    a_scan: lambda x: [x],
    a_loop_in_a_loop_in_a_branch: lambda x: [x + 1, x + 2],
    a_picture: lambda x: [x, x * 2, x * 3],
    a_picture_by_channels: lambda x: [x, x + 3],
}
"""A loop, and what enters the normalization in it."""


@pytest.mark.slow
@EXACT
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_all_turns_are_pooled(form: Callable[..., Any], exact: bool, tmp_path: Path) -> None:
    net = Net(form)
    tf.saved_model.save(net, str(tmp_path / "model"))
    result = recalibrate(tmp_path / "model", X, exact=exact, batch_size=50)
    assert not result.left
    found = {each.layer: each for each in result.layers}
    x = X.astype(np.float64)
    entering = np.concatenate(FORMS[form]((x - x.mean(0)) / np.sqrt(x.var(0) + EPSILON) + 2))
    ddof = form is a_picture
    np.testing.assert_allclose(found["first"].mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["norm"].mean, entering.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["norm"].variance, entering.var(0, ddof=ddof), rtol=1e-5)
    assert found["norm"].remains < 1e-5
    assert found["last"].remains < 1e-5 or not exact
    live = recalibrate(net, {"x": X}, exact=exact, batch_size=50)
    for one, other in zip(live.layers, result.layers, strict=True):
        np.testing.assert_allclose(one.mean, other.mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(one.variance, other.variance, rtol=1e-4)


def test_batches_in_which_the_loop_has_no_turn_count_nothing() -> None:
    class Bare(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = Norm()

        @tf.function(input_signature=[tf.TensorSpec([None, 3], name="x")])
        def __call__(self, x: tf.Tensor) -> tf.Tensor:
            total = tf.zeros_like(x)
            for _ in tf.range(tf.cast(tf.reduce_mean(x), tf.int32)):
                total += self.norm(x)
            return total

    ones = np.random.default_rng(3).normal(0, 0.1, (10, 3)).astype(np.float32)
    ones -= ones.mean(0)
    data = np.concatenate([ones - 5, ones + 1.5, ones + 3.5, ones])
    net = Bare()
    (layer,) = recalibrate(net, {"x": data}, batch_size=10).layers
    counted = np.concatenate([ones + 1.5, *[ones + 3.5] * 3]).astype(np.float64)
    np.testing.assert_allclose(layer.mean, counted.mean(0), rtol=1e-5)
    np.testing.assert_allclose(layer.variance, counted.var(0), rtol=1e-5)
    with pytest.raises(BnstatError, match="the data never reaches it"):
        recalibrate(net, {"x": data[:10]}, batch_size=10)


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
                if where == "partly":
                    return value * inverse + (beta - mean * inverse)
                return tf.nn.batch_normalization(value, mean, variance, beta, gamma, EPSILON)

            def going(turn: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
                more = turn < 3
                if where == "always alike":
                    more = tf.logical_and(more, tf.reduce_sum(x) > -1e9)
                if where == "condition":
                    scaled = x * tf.cast(turn, tf.float32)
                    more = tf.logical_and(more, tf.reduce_sum(norm(scaled)) > -1e9)
                return more

            def body(turn: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                if where != "condition":
                    y += norm(x if where == "always alike" else x * tf.cast(turn, tf.float32))
                return turn + 1, y

            _, y = v1.while_loop(going, body, [tf.constant(0), tf.zeros_like(x)])
            y = y + norm(x * 5) if where == "always alike" else y
            session.run(v1.global_variables_initializer())
            v1.saved_model.simple_save(session, str(path), {"x": x}, {"y": tf.identity(y)})
    finally:
        v1.enable_control_flow_v2()


@EXACT
@pytest.mark.parametrize(
    ("where", "factors"),
    [("body", (0, 1, 2)), ("condition", (0, 1, 2, 3)), ("always alike", (1, 1, 1, 5))],
)
def test_loops_of_graph_mode(
    where: str, factors: tuple[int, ...], exact: bool, tmp_path: Path
) -> None:
    """A loop's condition is computed once more than its body."""
    save_graph_mode(tmp_path / "model", where)
    (layer,) = recalibrate(tmp_path / "model", X, exact=exact, batch_size=20).layers
    entering = np.concatenate([X.astype(np.float64) * factor for factor in factors])
    np.testing.assert_allclose(layer.mean, entering.mean(0), rtol=1e-5)
    np.testing.assert_allclose(layer.variance, entering.var(0), rtol=1e-5)


def test_what_is_partly_in_a_loop_is_named(tmp_path: Path) -> None:
    save_graph_mode(tmp_path / "model", "partly")
    with pytest.raises(BnstatError, match="bn: the graph normalizes with it partly in a loop"):
        recalibrate(tmp_path / "model", X)


@pytest.mark.parametrize("keras", [keras_3, tf_keras], ids=["keras", "tf_keras"])
def test_a_recurrent_cell_settles_at_what_numpy_finds(keras: Any) -> None:
    layers = keras.layers

    @keras.utils.register_keras_serializable("of test_loops")
    class Cell(layers.Layer):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.state_size = self.output_size = 4
            self.enter, self.recur = layers.Dense(4), layers.Dense(4, use_bias=False)
            self.norm = layers.BatchNormalization(name="norm")

        def build(self, shape: Any) -> None:
            self.enter.build(shape)
            self.recur.build((None, 4))
            self.norm.build((None, 4))
            self.built = True

        def call(self, x: Any, states: Any, training: Any = None) -> Any:
            state = self.norm(self.enter(x) + 0.1 * self.recur(states[0]), training=training)
            return state, [state]

    keras.utils.set_random_seed(1)
    cell = Cell()
    inputs = keras.Input((6, 3), name="x")
    last = layers.BatchNormalization(name="last")
    model = keras.Model(inputs, last(layers.RNN(cell, return_sequences=True)(inputs)))
    x = np.random.default_rng(1).normal(3, 2, (40, 6, 3)).astype(np.float32)
    result = recalibrate(model, {"x": x}, exact=True, batch_size=16)
    assert (len(result.layers), result.waves, dict(result.left)) == (2, 2, {})
    mean, variance = (np.asarray(each) for each in cell.norm.weights[2:])
    (kernel, bias), (recurrent,) = cell.enter.get_weights(), cell.recur.get_weights()
    entering, states = [], [np.zeros((40, 4))]
    for turn in range(6):
        entering.append(
            x[:, turn].astype(np.float64) @ kernel + bias + 0.1 * states[-1] @ recurrent
        )
        states.append((entering[-1] - mean) / np.sqrt(variance + EPSILON))
    for given, values in (((mean, variance), entering), (last.weights[2:], states[1:])):
        whole = np.concatenate(values)
        np.testing.assert_allclose(np.asarray(given[0]), whole.mean(0), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(np.asarray(given[1]), whole.var(0), rtol=1e-5)
    assert drift(model, {"x": x}).largest < 1e-5
