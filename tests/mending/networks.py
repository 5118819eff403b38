"""A small network of TensorFlow 1, and its outputs with given values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import bnstat
from tests.builders.mended import NewValues, new_values

v1 = tf.compat.v1
X = np.random.default_rng(3).random((4, 5, 5, 3)).astype(np.float32)


def network() -> Any:
    """Add two convolutions, each with batch norm, to the default graph."""
    x = v1.placeholder(tf.float32, [None, 5, 5, 3], name="x")
    for number in (1, 2):
        with v1.variable_scope(f"block{number}"):
            x = v1.layers.conv2d(x, 6, 3, padding="same", name="conv")
            x = v1.layers.batch_normalization(x, name="bn", fused=number == 1)
            x = tf.nn.relu(x)
    return tf.identity(x, name="y")


def outputs(fill: Callable[[Any], None]) -> Any:
    """Return the outputs of the network after `fill` has set its variables."""
    with tf.Graph().as_default(), v1.Session() as session:
        y = network()
        fill(session)
        return session.run(y, {"x:0": X})


def restored(prefix: Path) -> Any:
    return outputs(lambda session: v1.train.Saver().restore(session, str(prefix)))


def live(original: dict[str, Any], values: NewValues) -> Any:
    """Return the outputs of the network with its original variables and new values."""

    def fill(session: Any) -> None:
        for variable in v1.global_variables():
            layer, _, role = variable.op.name.rpartition("/")
            array = values.get(layer, {}).get(role, original[variable.op.name])
            variable.load(array, session)

    return outputs(fill)


def mended(original: Path, copy: Path) -> NewValues:
    values = new_values(bnstat.load(original))
    applied = bnstat.apply(original, values, copy)
    assert applied.output == str(copy)
    return values
