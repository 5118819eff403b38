"""One network in every format that TensorFlow, Keras 3 and tf-keras can write.

In every format, the layers are the same, in the same order, with the same bits. Epsilon, momentum,
axis and names are the layer's own if the format stores them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import bnstat
from tests.builders.keras_models import randomised, roles_of
from tests.builders.modules import frozen
from tests.builders.oracle import same_bits

LAYERS = {
    "z_first": {"epsilon": 1.1e-5, "momentum": 0.9},
    "no_scale": {"scale": False, "epsilon": 1e-8},
    "a_no_center": {"center": False},
    "bare": {"center": False, "scale": False},
    "axis_one": {"axis": 1},
    "frozen": {"trainable": False},
    "in_nested": {},
    "shared": {},
    "single": {},
    "wide": {"dtype": "float64"},
    "half": {"dtype": "float16"},
    "narrow": {"dtype": "bfloat16"},
    "mixed": {"dtype": "mixed_float16"},
}
"""The batch-norm layers of the network, in its order."""


def build(library: Any) -> Any:
    layers = library.layers

    def bn(name: str) -> Any:
        return layers.BatchNormalization(name=name, **LAYERS[name])

    image = library.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, name="stem")(image)
    for name in ("z_first", "no_scale", "a_no_center", "bare", "axis_one", "frozen"):
        x = bn(name)(x)
    inside = library.Input((6, 6, 4))
    nested = library.Model(inside, bn("in_nested")(layers.Conv2D(4, 1)(inside)), name="nested")
    nested.trainable = False
    shared = bn("shared")
    x = shared(layers.ReLU()(shared(nested(x))))
    x = layers.LayerNormalization(name="layer_norm")(x)
    x = bn("single")(layers.Conv2D(1, 1, name="to_one_channel")(x))
    for name in ("wide", "half", "narrow", "mixed"):
        x = bn(name)(x)
    x = layers.Dense(2, name="head", dtype="float32")(layers.Flatten(dtype="float32")(x))
    model = library.Model(image, x, name="network")
    model.compile("adam", "mse")
    model.fit(np.zeros((4, 8, 8, 3), "float32"), np.zeros((4, 2), "float32"), verbose=0)
    return randomised(model)


def frozen_graph(model: Any, path: str) -> None:
    graph = frozen(model, (8, 8, 3)).graph.as_graph_def()
    Path(path).write_bytes(graph.SerializeToString())


def checkpoint(model: Any, path: str, **more: Any) -> None:
    tf.train.Checkpoint(model=model, **more).save(f"{path}/model")


ALL = {"epsilon", "momentum", "axis", "trainable", "name", "order", "roles"}
GRAPH = {"epsilon", "name", "order", "roles"}
OBJECTS = {"name", "order", "roles"}
WITH_OPTIMIZER = ("c", lambda m, path: checkpoint(m, path, optimizer=m.optimizer), OBJECTS)

FORMATS: dict[str, tuple[str, Callable[[Any, str], object], set[str]]] = {
    "keras3 .keras": ("m.keras", lambda m, path: m.save(path), ALL),
    "keras3 folder": ("m", lambda m, p: keras.saving.save_model(m, p, zipped=False), ALL),
    "keras3 .h5": ("m.h5", lambda m, path: m.save(path), ALL),
    "keras3 .weights.h5": ("m.weights.h5", lambda m, path: m.save_weights(path), {"name"}),
    "keras3 sharded": ("m.weights.json", lambda m, p: m.save_weights(p, None, 1e-6), {"name"}),
    "keras3 export": ("e", lambda m, path: m.export(path, verbose=False), GRAPH),
    "keras3 saved_model.save": ("s", tf.saved_model.save, GRAPH),
    "keras3 Checkpoint": ("c", checkpoint, OBJECTS),
    "keras3 Checkpoint with optimizer": WITH_OPTIMIZER,
    "keras3 frozen graph": ("f.pb", frozen_graph, {"epsilon"}),
    "tf-keras .keras": ("m.keras", lambda m, path: m.save(path), ALL),
    "tf-keras .h5": ("m.h5", lambda m, path: m.save(path), ALL),
    "tf-keras weights .h5": ("w.h5", lambda m, path: m.save_weights(path), OBJECTS),
    "tf-keras .weights.h5": ("m.weights.h5", lambda m, path: m.save_weights(path), set()),
    "tf-keras save_weights": ("w", lambda m, path: m.save_weights(f"{path}/model"), OBJECTS),
    "tf-keras SavedModel": ("s", lambda m, path: m.save(path, save_format="tf"), ALL),
    "tf-keras export": ("e", lambda m, path: m.export(path), GRAPH),
    "tf-keras Checkpoint": ("c", checkpoint, OBJECTS),
    "tf-keras Checkpoint with optimizer": WITH_OPTIMIZER,
    "tf-keras frozen graph": ("f.pb", frozen_graph, {"epsilon"}),
}
"""Format -> the file's name, how it is written, and the settings that it stores."""


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    return {"keras3": build(keras), "tf-keras": build(tf_keras)}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_stores_the_same_layers(
    kind: str, networks: dict[str, Any], tmp_path: Path
) -> None:
    network = networks[kind.split()[0]]
    owners = dict.fromkeys(LAYERS, network) | {"in_nested": network.get_layer("nested")}
    own = {name: owner.get_layer(name) for name, owner in owners.items()}
    name, write, settings = FORMATS[kind]
    write(network, str(tmp_path / name))
    model = bnstat.load(tmp_path / name)

    variances = {np.asarray(each.moving_variance).tobytes(): name for name, each in own.items()}
    found = {variances[layer.array("moving_variance").tobytes()]: layer for layer in model}
    assert len(found) == len(model) == len(LAYERS)
    assert not model.incomplete
    if "name" in settings:
        assert set(model.keys()) == set(LAYERS)
    if "order" in settings:
        assert list(found) == list(LAYERS)
    for name, layer in found.items():
        roles = roles_of(own[name])
        if "roles" in settings:
            assert layer.variables.keys() == roles.keys()
        elif "frozen graph" not in kind:
            assert len(layer.variables) + len(layer.undecided) in (len(roles), 0)
        for role in layer.variables:
            assert same_bits(layer.array(role), roles[role])
        expected = LAYERS[name].get("epsilon", 0.001) if "epsilon" in settings else None
        assert layer.epsilon == expected
        if "momentum" in settings:
            assert layer.momentum == LAYERS[name].get("momentum", 0.99)
        if "axis" in settings:
            assert layer.axis in axes_of(own[name])
        elif layer.axis is not None:
            assert layer.axis % 4 in {axis % 4 for axis in axes_of(own[name])}
        if "trainable" in settings:
            assert layer.trainable is (name not in ("frozen", "in_nested"))


def axes_of(layer: Any) -> set[int]:
    """Return the axis of a Keras 3 layer (an int) or a Keras 2 layer (a list of one)."""
    return set(layer.axis) if isinstance(layer.axis, list | tuple) else {layer.axis}
