"""Networks in plain TensorFlow, whose normalizations consist of several ops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

EPSILON = 1e-3


class Norm(tf.Module):
    """A normalization with the initial statistics, without gamma and beta."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.moving_mean = tf.Variable(tf.zeros(size), name="moving_mean")
        self.moving_variance = tf.Variable(tf.ones(size), name="moving_variance")

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.batch_normalization(
            x, self.moving_mean, self.moving_variance, None, None, EPSILON
        )


class Net(tf.Module):
    """A network of an input [samples, 3]; `names` become attributes, its normalizations."""

    def __init__(self, call: Callable[[Any, tf.Tensor], tf.Tensor], *names: str) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, Norm())
        self._function = call

    @tf.function(input_signature=[tf.TensorSpec([None, 3], name="x")])
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return self._function(self, x)

    def save(self, path: Path) -> Path:
        tf.saved_model.save(self, str(path))
        return path


def normalizing(path: Path, before: Callable[[tf.Tensor], tf.Tensor] = tf.identity) -> Path:
    """Save a network with one normalization, `bn`, after some other op."""
    return Net(lambda net, x: net.bn(before(x)), "bn").save(path)


def frozen(model: Any, shape: tuple[int, ...]) -> Any:
    """Return a Keras model's inference function with constants; `shape` is that of one sample."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    function = tf.function(lambda x: model(x, training=False))
    concrete = function.get_concrete_function(tf.TensorSpec((None, *shape), name="x"))
    return convert_variables_to_constants_v2(concrete)
