"""One network in every format that TensorFlow, Keras 3 and tf-keras can write.

In every format, the layers are the same, in the same order, with the same bits. Epsilon, momentum,
axis and names are the layer's own if the format stores them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnstat
from bnstat.model import ROLES

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")
tf_keras = pytest.importorskip("tf_keras")

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
    "narrow": {"dtype": "bfloat16"},
    "mixed": {"dtype": "mixed_float16"},
}
"""The batch-norm layers of the network, in its order."""


@dataclass(frozen=True)
class Written:
    """A format, and the settings that it stores."""

    write: Callable[[Any, Path], Path]
    settings: frozenset[str]


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
    shared = bn("shared")
    x = shared(layers.ReLU()(shared(nested(x))))
    x = layers.LayerNormalization(name="layer_norm")(x)
    x = bn("single")(layers.Conv2D(1, 1, name="to_one_channel")(x))
    for name in ("wide", "narrow", "mixed"):
        x = bn(name)(x)
    x = layers.Dense(2, name="head", dtype="float32")(layers.Flatten(dtype="float32")(x))
    model = library.Model(image, x, name="network")
    model.compile("adam", "mse")
    model.fit(np.zeros((4, 8, 8, 3), "float32"), np.zeros((4, 2), "float32"), verbose=0)
    rng = np.random.default_rng(7)
    for layer in batch_norms(model).values():
        for role in ROLES:
            variable = getattr(layer, role, None)
            if variable is not None:
                values = np.abs(rng.normal(1, 0.3, variable.shape))
                variable.assign(values.astype(np.asarray(variable).dtype))
    return model


def batch_norms(model: Any) -> dict[str, Any]:
    nested = model.get_layer("nested")
    return {name: (nested if name == "in_nested" else model).get_layer(name) for name in LAYERS}


def saved(path: Path, write: Callable[[str], object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(str(path))
    return path


def checkpoint(folder: Path, **objects: Any) -> Path:
    tf.train.Checkpoint(**objects).save(str(folder / "model"))
    return folder


def frozen_graph(model: Any, path: Path) -> Path:
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    function = tf.function(lambda image: model(image, training=False))
    concrete = function.get_concrete_function(tf.TensorSpec((None, 8, 8, 3), tf.float32))
    graph = convert_variables_to_constants_v2(concrete).graph.as_graph_def()
    return saved(path, lambda name: Path(name).write_bytes(graph.SerializeToString()))


ALL = frozenset({"epsilon", "momentum", "axis", "trainable", "name", "order", "roles"})
GRAPH = frozenset({"epsilon", "name", "order", "roles"})
OBJECTS = frozenset({"name", "order", "roles"})

FORMATS = {
    "keras3 .keras": Written(lambda m, d: saved(d / "m.keras", m.save), ALL),
    "keras3 folder": Written(
        lambda m, d: saved(d / "m", lambda p: keras.saving.save_model(m, p, zipped=False)), ALL
    ),
    "keras3 .h5": Written(lambda m, d: saved(d / "m.h5", m.save), ALL),
    "keras3 .weights.h5": Written(
        lambda m, d: saved(d / "m.weights.h5", m.save_weights), frozenset({"name"})
    ),
    "keras3 sharded weights": Written(
        lambda m, d: saved(d / "m.weights.json", lambda p: m.save_weights(p, max_shard_size=1e-6)),
        frozenset({"name"}),
    ),
    "keras3 export": Written(
        lambda m, d: saved(d / "e", lambda p: m.export(p, verbose=False)), GRAPH
    ),
    "keras3 saved_model.save": Written(
        lambda m, d: saved(d / "s", lambda p: tf.saved_model.save(m, p)), GRAPH
    ),
    "keras3 Checkpoint": Written(lambda m, d: checkpoint(d / "c", model=m), OBJECTS),
    "keras3 Checkpoint with optimizer": Written(
        lambda m, d: checkpoint(d / "co", model=m, optimizer=m.optimizer), OBJECTS
    ),
    "keras3 frozen graph": Written(
        lambda m, d: frozen_graph(m, d / "f.pb"), frozenset({"epsilon"})
    ),
    "tf-keras .keras": Written(lambda m, d: saved(d / "m.keras", m.save), ALL),
    "tf-keras .h5": Written(lambda m, d: saved(d / "m.h5", m.save), ALL),
    "tf-keras weights .h5": Written(lambda m, d: saved(d / "w.h5", m.save_weights), OBJECTS),
    "tf-keras .weights.h5": Written(
        lambda m, d: saved(d / "m.weights.h5", m.save_weights), frozenset()
    ),
    "tf-keras save_weights": Written(
        lambda m, d: saved(d / "w" / "model", m.save_weights).parent, OBJECTS
    ),
    "tf-keras SavedModel": Written(
        lambda m, d: saved(d / "s", lambda p: m.save(p, save_format="tf")), ALL
    ),
    "tf-keras export": Written(lambda m, d: saved(d / "e", m.export), GRAPH),
    "tf-keras Checkpoint": Written(lambda m, d: checkpoint(d / "c", model=m), OBJECTS),
    "tf-keras Checkpoint with optimizer": Written(
        lambda m, d: checkpoint(d / "co", model=m, optimizer=m.optimizer), OBJECTS
    ),
    "tf-keras frozen graph": Written(
        lambda m, d: frozen_graph(m, d / "f.pb"), frozenset({"epsilon"})
    ),
}


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    return {"keras3": build(keras), "tf-keras": build(tf_keras)}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_stores_the_same_layers(
    kind: str, networks: dict[str, Any], tmp_path: Path
) -> None:
    network = networks[kind.split()[0]]
    own = batch_norms(network)
    written = FORMATS[kind]
    model = bnstat.load(written.write(network, tmp_path))

    found = {same_layer(own, layer): layer for layer in model}
    assert len(found) == len(model) == len(LAYERS)
    assert not model.incomplete
    if "name" in written.settings:
        assert set(model.keys()) == set(LAYERS)
    if "order" in written.settings:
        assert list(found) == list(LAYERS)
    for name, layer in found.items():
        roles = {role for role in ROLES if getattr(own[name], role, None) is not None}
        if "roles" in written.settings:
            assert set(layer.variables) == roles
        else:
            assert set(layer.variables) <= roles
            assert len(layer.variables) + len(layer.undecided) in (len(roles), 0) or (
                "frozen graph" in kind
            )
        for role in layer.variables:
            expected = np.asarray(getattr(own[name], role))
            stored = layer.array(role)
            assert stored is not None
            assert stored.dtype == expected.dtype
            assert stored.tobytes() == expected.tobytes()
        if "epsilon" in written.settings:
            assert layer.epsilon == LAYERS[name].get("epsilon", 0.001)
        else:
            assert layer.epsilon is None
        if "momentum" in written.settings:
            assert layer.momentum == LAYERS[name].get("momentum", 0.99)
        if "axis" in written.settings:
            assert layer.axis in axes_of(own[name])
        elif layer.axis is not None:
            assert layer.axis % 4 in {axis % 4 for axis in axes_of(own[name])}
        if "trainable" in written.settings:
            assert layer.trainable is (name != "frozen")


def same_layer(own: dict[str, Any], layer: bnstat.BatchNorm) -> str:
    """Return the name of the layer with the moving variance that was read."""
    stored = layer.moving_variance
    assert stored is not None
    (name,) = [
        name
        for name, candidate in own.items()
        if np.asarray(candidate.moving_variance).tobytes() == stored.tobytes()
    ]
    return name


def axes_of(layer: Any) -> set[int]:
    """Return the axis of a Keras 3 layer (an int) or a Keras 2 layer (a list of one)."""
    return set(layer.axis) if isinstance(layer.axis, list | tuple) else {layer.axis}
