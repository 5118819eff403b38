"""Graphs of whole Keras models, saved, exported and frozen, against the models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnstat.discovery.graphs.norms import from_graphs
from bnstat.formats.contents import Contents
from bnstat.model import ROLES
from tests.discovery.graphs.models import CHANNELS, open_model, tf


def network(keras: Any) -> Any:
    """A network with branches, nesting, a shared layer, and every kind of batch norm."""
    norm = keras.layers.BatchNormalization
    inner_x = keras.Input((8, 8, CHANNELS))
    inner_y = norm(epsilon=1e-8, momentum=0.5, name="inside")(inner_x)
    inner = keras.Model(inner_x, keras.layers.ReLU()(inner_y), name="inner")
    shared = norm(epsilon=2e-3, momentum=0.75, name="shared")

    x = inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(CHANNELS, 3, padding="same", name="stem")(x)
    x = norm(epsilon=1.1e-5, momentum=0.9, name="first")(x)
    left = norm(scale=False, momentum=0.997, name="left")(keras.layers.ReLU()(x))
    left = shared(inner(left))
    right = norm(center=False, name="right")(keras.layers.Conv2D(CHANNELS, 1)(x))
    right = norm(center=False, scale=False, epsilon=1e-4, name="bare")(shared(right))
    x = keras.layers.Add()([left, right])
    x = keras.layers.LayerNormalization(name="not_batch")(x)
    x = norm(axis=1, epsilon=3e-3, name="rows")(x)
    x = norm(name="half", dtype="mixed_float16")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(2)(norm(name="last")(x))
    model = keras.Model(inputs, outputs)
    generator = np.random.default_rng(0)
    model.set_weights([generator.random(value.shape) for value in model.get_weights()])
    return model


PATHS = [
    ["first", "left", "inside", "bare", "rows", "half", "last"],
    ["first", "right", "bare"],
    ["shared", "bare"],
]
"""Layers that follow each other; the branches may come in either order."""


def norms_of(model: Any) -> dict[str, Any]:
    """Return the batch norms of a model and of the models in it, by name."""
    found = {}
    for item in model.layers:
        if hasattr(item, "layers"):
            found |= norms_of(item)
        elif "BatchNormalization" in type(item).__name__:
            found[item.name] = item
    return found


def check_against(model: Any, contents: Contents, *, momentum: bool = False) -> None:
    """Compare the roles, values and settings of every layer with Keras."""
    expected = norms_of(model)
    found = from_graphs(contents)
    by_values = {}
    for sighting in found:
        values = {role: contents.variables[key].read() for role, key in sighting.roles.items()}
        by_values[values["moving_variance"].tobytes()] = (sighting, values)
    assert len(by_values) == len(found) == len(expected)
    for item in expected.values():
        sighting, values = by_values[np.asarray(item.moving_variance).tobytes()]
        stored = {role: getattr(item, role) for role in ROLES}
        stored = {role: np.asarray(value) for role, value in stored.items() if value is not None}
        assert values.keys() == stored.keys()
        for role, value in stored.items():
            assert values[role].dtype == value.dtype
            assert values[role].tobytes() == value.tobytes()
        assert sighting.epsilon == item.epsilon
        if momentum:
            assert sighting.momentum == item.momentum
        if item.name == "rows":
            assert sighting.axis == 1
        assert item.name in sighting.name
    order = [next(name for name in expected if name in sighting.name) for sighting in found]
    for path in PATHS:
        assert [name for name in order if name in path] == path


@pytest.fixture(scope="module")
def keras_3() -> Any:
    keras = pytest.importorskip("keras", "3.0")
    keras.backend.clear_session()
    return network(keras)


@pytest.fixture(scope="module")
def keras_2() -> Any:
    return network(pytest.importorskip("tf_keras"))


def test_keras_3_export(keras_3: Any, tmp_path: Path) -> None:
    keras_3.export(tmp_path, verbose=False)
    check_against(keras_3, open_model(tmp_path))


def test_keras_3_saved_model(keras_3: Any, tmp_path: Path) -> None:
    tf.saved_model.save(keras_3, str(tmp_path))
    check_against(keras_3, open_model(tmp_path))


def test_keras_2_saved_model(keras_2: Any, tmp_path: Path) -> None:
    keras_2.save(tmp_path, save_format="tf")
    contents = open_model(tmp_path)
    check_against(keras_2, contents)
    check_against(keras_2, replace(contents, layers=()), momentum=True)


def test_keras_2_export(keras_2: Any, tmp_path: Path) -> None:
    keras_2.export(tmp_path)
    check_against(keras_2, open_model(tmp_path))


@pytest.mark.parametrize("version", ["keras_2", "keras_3"])
def test_frozen(version: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model = request.getfixturevalue(version)
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    signature = tf.TensorSpec((None, 8, 8, 3))
    function = tf.function(lambda x: model(x, training=False)).get_concrete_function(signature)
    frozen = convert_variables_to_constants_v2(function).graph.as_graph_def()
    (tmp_path / "frozen.pb").write_bytes(frozen.SerializeToString())
    check_against(model, open_model(tmp_path / "frozen.pb"))
