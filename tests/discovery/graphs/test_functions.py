"""Functions that call functions, and constants in place of variables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnstat.discovery.graphs.norms import from_graphs
from bnstat.formats.protobuf.protos import message_class
from bnstat.formats.tensorflow.frozen_graph import contents_of_graph
from bnstat.model import ROLES, Source
from tests.discovery.graphs.models import (
    CHANNELS,
    images,
    keras_average,
    layer,
    names,
    sightings,
    tf,
    v1,
    variable,
)


class Block(tf.Module):
    """A batch norm with one function for training and one for inference."""

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
    """Converters from other frameworks write the numbers into functions, without variables."""
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
def test_constants_in_place_of_gamma_and_beta(saved: Callable[..., Path], neutral: bool) -> None:
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
