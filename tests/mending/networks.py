"""A small network of TensorFlow 1, and the values that TensorFlow restores for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from tests.builders.mended import NewValues
from tests.builders.oracle import same_bits

v1 = tf.compat.v1


def network() -> Any:
    """Add two convolutions, each with batch norm, to the default graph."""
    x = v1.placeholder(tf.float32, [None, 5, 5, 3], name="x")
    for number in (1, 2):
        with v1.variable_scope(f"block{number}"):
            x = v1.layers.conv2d(x, 6, 3, padding="same", name="conv")
            x = v1.layers.batch_normalization(x, name="bn", fused=number == 1)
            x = tf.nn.relu(x)
    return tf.identity(x, name="y")


def by_key(values: NewValues) -> dict[str, Any]:
    return {
        f"{name}/{role}": array for name, roles in values.items() for role, array in roles.items()
    }


def assert_restored(
    load: Callable[[Any], Any], original: Mapping[str, Any], values: NewValues
) -> None:
    """Assert that TensorFlow restores new values, and the original values of other variables."""
    expected = {**original, **by_key(values)}
    with tf.Graph().as_default(), v1.Session() as session:
        load(session)
        variables = v1.global_variables()
        assert {variable.op.name for variable in variables} == set(expected)
        for variable in variables:
            assert same_bits(session.run(variable), expected[variable.op.name])


def restoring(prefix: Path | str) -> Callable[[Any], None]:
    """Return a function that builds the network, and restores a checkpoint in a session."""

    def load(session: Any) -> None:
        network()
        v1.train.Saver().restore(session, str(prefix))

    return load
