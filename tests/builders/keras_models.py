"""Small networks of Keras 3 and tf-keras (Keras 2), with random values everywhere."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import keras as keras_3
import numpy as np

from bnstat.model import ROLES
from tests.builders.oracle import Roles

KERAS_RENORMALIZES = "renorm" in inspect.signature(keras_3.layers.BatchNormalization).parameters


def functional(keras: ModuleType) -> Any:
    """Batch norm with and without gamma and beta, nested, wrapped and on another axis."""
    layers = keras.layers
    inner = keras.Sequential(
        [keras.Input((6, 6, 4)), layers.Conv2D(4, 1), layers.BatchNormalization(name="deep")],
        name="inner",
    )
    x = inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 1, name="conv")(x)
    x = layers.BatchNormalization(name="plain")(x)
    x = layers.BatchNormalization(name="no_gamma", scale=False)(x)
    x = layers.BatchNormalization(name="no_beta", center=False)(x)
    x = layers.BatchNormalization(name="bare", center=False, scale=False)(x)
    x = layers.BatchNormalization(name="rows", axis=1)(x)
    x = inner(x)
    x = layers.LayerNormalization(name="not_this")(x)
    x = layers.BatchNormalization(name="again")(x)
    x = layers.Dense(2, name="logits")(layers.Flatten()(x))
    return randomised(keras.Model(inputs, x, name="net"))


FUNCTIONAL = ("plain", "no_gamma", "no_beta", "bare", "rows", "deep", "again")
"""The names of its batch-norm layers, in the order of the network."""


def randomised(model: Any) -> Any:
    random, weights = np.random.default_rng(5), model.get_weights()
    for weight in weights:
        if weight.dtype.kind not in "iu":
            weight[...] = random.random(weight.shape)
    model.set_weights(weights)
    return model


def all_layers(model: Any) -> Iterator[Any]:
    """Return the layers of a model, including the layers of nested models."""
    for layer in model.layers:
        yield from all_layers(layer) if hasattr(layer, "layers") else [layer]


def roles_of(layer: Any) -> Roles:
    arrays = {role: getattr(layer, role, None) for role in ROLES}
    return {role: np.asarray(array) for role, array in arrays.items() if array is not None}


def by_layer(layers: Iterable[Any]) -> dict[str, Roles]:
    return {
        layer.name: roles_of(layer)
        for layer in layers
        if type(layer).__name__.endswith("BatchNormalization")
    }
