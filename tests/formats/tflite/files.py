"""A network with batch norm in every place where TensorFlow Lite's converter folds it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

SHAPE = (6, 6, 3)
NORMS = ("bn_conv", "bn_depthwise", "bn_pointwise", "bn_joined", "bn_transposed", "bn_dense")


def network() -> keras.Model:
    layers = keras.layers
    image = keras.Input(SHAPE)

    def norm(name: str, x: Any) -> Any:
        return layers.BatchNormalization(epsilon=2e-3, name=name)(x)

    x = layers.ReLU(6)(norm("bn_conv", layers.Conv2D(6, 3, padding="same")(image)))
    x = layers.ReLU()(norm("bn_depthwise", layers.DepthwiseConv2D(3, use_bias=False)(x)))
    x = norm("bn_pointwise", layers.Conv2D(5, 1, use_bias=False)(x))
    # A concatenation has no weights to fold into.
    x = layers.Concatenate()([x, layers.MaxPooling2D(1)(x)])
    x = layers.ReLU()(norm("bn_joined", x))
    x = norm("bn_transposed", layers.Conv2DTranspose(12, 2)(x))
    x = layers.ReLU()(norm("bn_dense", layers.Dense(7)(layers.Flatten()(x))))
    model = keras.Model(image, layers.Dense(2)(x))
    random = np.random.default_rng(4)
    # Weights of this size keep outputs near 1.
    model.set_weights([
        random.uniform(0.4, 1.6, each.shape)
        if each.ndim == 1
        else random.normal(0, np.prod(each.shape[:-1]) ** -0.5, each.shape)
        for each in model.get_weights()
    ])  # fmt: skip
    return model


def _samples() -> Iterator[list[np.ndarray]]:
    random = np.random.default_rng(5)
    for _ in range(8):
        yield [random.normal(size=(1, *SHAPE)).astype(np.float32)]


SMALLER = {"optimizations": [tf.lite.Optimize.DEFAULT]}
WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float16": {**SMALLER, "target_spec": tf.lite.TargetSpec(supported_types=[tf.float16])},
    "dynamic": SMALLER,
    "int8": {**SMALLER, "representative_dataset": _samples},
    # The buffers lie behind the flatbuffer, as in models of more than 2 GB.
    "outside": {"_experimental_use_buffer_offset": True},
}
"""Way to convert -> attributes of the converter."""


def write_all(folder: Path) -> None:
    """Write the network as `network.keras`, and its conversion in each way."""
    model = network()
    model.save(folder / "network.keras")
    for way, attributes in WAYS.items():
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        for attribute, value in attributes.items():
            setattr(converter, attribute, value)
        (folder / f"{way}.tflite").write_bytes(converter.convert())
