"""Batch norms in graphs that train them, or can be switched to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnstat.model import ROLES
from tests.discovery.graphs.models import (
    assert_layer,
    four,
    images,
    keras_3_average,
    keras_average,
    layer,
    moving_average,
    names,
    sightings,
    tf,
    v1,
)

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

    assert_layer(saved(build), epsilon=1.1e-5, momentum=momentum, axis=3)


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


def test_op_that_averages_by_itself(saved: Callable[..., Path]) -> None:
    def build() -> None:
        gamma, beta, mean, variance = four("bn")
        _, new_mean, new_variance = v1.nn.fused_batch_norm(
            images(), gamma, beta, mean, variance, is_training=True, exponential_avg_factor=0.01
        )
        mean.assign(new_mean)
        variance.assign(new_variance)

    assert_layer(saved(build), momentum=0.99)


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

    assert_layer(saved(build), epsilon=2e-3, momentum=0.997, axis=3)


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

    assert_layer(saved(build), epsilon=1e-3, momentum=0.999)


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
