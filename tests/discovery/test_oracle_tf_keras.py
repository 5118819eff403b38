"""Batch norm in what Keras 2 (tf-keras) saves through TensorFlow, against the layers themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import bnstat
from bnstat.model import Model
from tests.builders.keras_models import (
    FUNCTIONAL,
    all_layers,
    by_layer,
    functional,
    randomised,
    roles_of,
)
from tests.builders.oracle import assert_as_tensorflow_reads, assert_layers

tf_keras = pytest.importorskip("tf_keras")

pytestmark = pytest.mark.slow


def expected(net: Any) -> dict[str, Any]:
    return by_layer(all_layers(net))


def trained(net: Any, optimizer: Any) -> Any:
    """The model fitted for a step, so that all slots exist, then randomised."""
    net.compile(optimizer, "mse", metrics=["mae"], run_eagerly=True)
    net.train_on_batch(np.ones((2, 6, 6, 3), np.float32), np.ones((2, 2), np.float32))
    return randomised(net)


def check(model: Model, prefix: Path, layers: dict[str, Any]) -> None:
    assert_layers(model, layers)
    assert_as_tensorflow_reads(model, prefix)


@pytest.fixture(scope="module")
def net() -> Any:
    return trained(functional(tf_keras), "adam")


def test_weights(tmp_path: Path, net: Any) -> None:
    net.save_weights(str(tmp_path / "w"), save_format="tf")
    model = bnstat.load(tmp_path / "w")
    assert {layer.evidence for layer in model} == {"object-graph"}
    assert [layer.name for layer in model] == list(FUNCTIONAL)
    check(model, tmp_path / "w", expected(net))
    check(bnstat.load(tmp_path), tmp_path / "w", expected(net))


def test_checkpoint(tmp_path: Path, net: Any) -> None:
    tf.train.Checkpoint(model=net, optimizer=net.optimizer).save(str(tmp_path / "c"))
    check(bnstat.load(tmp_path / "c-1"), tmp_path / "c-1", expected(net))


def test_saved_model(tmp_path: Path, net: Any) -> None:
    net.save(str(tmp_path), save_format="tf")
    model = bnstat.load(tmp_path)
    assert [layer.name for layer in model] == list(FUNCTIONAL)
    assert {(layer.evidence, layer.epsilon, layer.momentum) for layer in model} == {
        ("config", 0.001, 0.99)
    }
    assert [layer.axis for layer in model] == [1 if name == "rows" else 3 for name in FUNCTIONAL]
    check(model, tmp_path / "variables/variables", expected(net))


def test_export(tmp_path: Path, net: Any) -> None:
    net.export(str(tmp_path))
    model = bnstat.load(tmp_path)
    assert [layer.name for layer in model] == list(FUNCTIONAL)
    check(model, tmp_path / "variables/variables", expected(net))


def test_low_level_saved_model(tmp_path: Path, net: Any) -> None:
    tf.saved_model.save(net, str(tmp_path))
    model = bnstat.load(tmp_path)
    check(model, tmp_path / "variables/variables", expected(net))


LEGACY = {
    "SGD": {"momentum": 0.9}, "Adam": {"amsgrad": True}, "Adagrad": {}, "Adadelta": {},
    "RMSprop": {"momentum": 0.9, "centered": True}, "Adamax": {}, "Nadam": {}, "Ftrl": {},
}  # fmt: skip
NEW = {
    **{name: {**options, "use_ema": True} for name, options in LEGACY.items()},
    "AdamW": {"use_ema": True},
    "Adafactor": {},
    "Lion": {},
}


KINDS = [*(("legacy", name) for name in LEGACY), *(("new", name) for name in NEW)]


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_slots_are_not_layers(tmp_path: Path, kind: str, name: str) -> None:
    home = tf_keras.optimizers.legacy if kind == "legacy" else tf_keras.optimizers
    options = (LEGACY if kind == "legacy" else NEW)[name]
    net = trained(functional(tf_keras), getattr(home, name)(**options))
    checkpoint = tf.train.Checkpoint(model=net, optimizer=net.optimizer)
    checkpoint.write(str(tmp_path / "m"))
    own = len(net.weights)
    assert len(tf.train.list_variables(str(tmp_path / "m"))) > own + len(net.trainable_weights)
    check(bnstat.load(tmp_path / "m"), tmp_path / "m", expected(net))
    # Without the object graph, names alone have to do.
    variables = net.optimizer.variables
    slots = variables() if callable(variables) else variables
    assert_layers(bnstat.load(_by_name(tmp_path, [*net.weights, *slots])), expected(net))


def _by_name(folder: Path, variables: list[Any]) -> Path:
    from tests.builders import named

    tensors = {variable.name.removesuffix(":0"): variable.numpy() for variable in variables}
    return named.save(folder / "named", tensors)


def test_sync_renorm_wrapped_and_shared(tmp_path: Path) -> None:
    layers = tf_keras.layers
    shared = layers.BatchNormalization(name="shared")
    wrapped = layers.BatchNormalization(name="wrapped")
    x = inputs = tf_keras.Input((4, 4, 3))
    x = layers.experimental.SyncBatchNormalization(name="sync")(x)
    x = layers.BatchNormalization(name="renorm", renorm=True)(x)
    x = layers.TimeDistributed(wrapped, name="steps")(x)
    net = randomised(tf_keras.Model(inputs, shared(shared(x))))
    net.save_weights(str(tmp_path / "w"), save_format="tf")
    model = bnstat.load(tmp_path / "w")
    check(model, tmp_path / "w", {**by_layer(net.layers), "steps": roles_of(wrapped)})
    assert set(model["renorm"].extra) == {"moving_stddev", "renorm_mean", "renorm_stddev"}


def test_lookalikes_are_not_layers(tmp_path: Path) -> None:
    layers = tf_keras.layers
    data = np.random.default_rng(1).random((8, 4, 4, 4)).astype(np.float32)
    normalization = layers.Normalization()
    normalization.adapt(data)
    x = inputs = tf_keras.Input((4, 4, 4))
    x = normalization(x)
    x = layers.LayerNormalization()(x)
    x = layers.GroupNormalization(groups=2)(x)
    x = layers.UnitNormalization()(x)
    x = layers.SpectralNormalization(layers.Conv2D(2, 1))(x)
    net = tf_keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    net.compile("adam", "mse", metrics=["mae", "accuracy"])
    net.train_on_batch(data, np.ones((8, 2), np.float32))
    net.save_weights(str(tmp_path / "w"), save_format="tf")
    tf.train.Checkpoint(model=net, optimizer=net.optimizer).write(str(tmp_path / "c"))
    net.save(str(tmp_path / "saved"), save_format="tf")
    for path in ("w", "c", "saved"):
        assert_layers(bnstat.load(tmp_path / path), {})


def test_mirrored_variables(tmp_path: Path) -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        net = functional(tf_keras)
    net.save_weights(str(tmp_path / "w"), save_format="tf")
    check(bnstat.load(tmp_path / "w"), tmp_path / "w", expected(net))
