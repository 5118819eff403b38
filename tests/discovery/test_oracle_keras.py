"""Batch norm in what Keras 2 and 3 save through TensorFlow, against the layers themselves."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import bnstat
from tests.builders import named
from tests.builders.keras_models import (
    KERAS_RENORMALIZES,
    all_layers,
    by_layer,
    functional,
    randomised,
    roles_of,
)
from tests.builders.oracle import assert_layers, check

pytestmark = pytest.mark.slow


def expected(library: ModuleType, net: Any) -> dict[str, Any]:
    names = {"deep": "inner/deep"} if library is keras else {}
    return {names.get(name, name): roles for name, roles in by_layer(all_layers(net)).items()}


def compiled(library: ModuleType, optimizer: Any) -> Any:
    """A network with all the slots that training makes, randomised."""
    net = functional(library)
    net.compile(optimizer, "mse", metrics=["mae"], run_eagerly=True)
    net.train_on_batch(np.ones((2, 6, 6, 3), np.float32), np.ones((2, 2), np.float32))
    return randomised(net)


OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9}, "Adam": {"amsgrad": True},
    "RMSprop": {"momentum": 0.9, "centered": True},
}  # fmt: skip
OLD = ["SGD", "Adam", "Adagrad", "Adadelta", "RMSprop", "Adamax", "Nadam", "Ftrl"]
HOMES = {
    "legacy": (tf_keras, tf_keras.optimizers.legacy, OLD),
    "keras 2": (tf_keras, tf_keras.optimizers, [*OLD, "AdamW", "Adafactor", "Lion"]),
    "keras 3": (keras, keras.optimizers, [*OLD, "AdamW", "Adafactor", "Lion", "Lamb", "Muon"]),
}


@pytest.mark.parametrize(
    ("home", "name"), [(home, name) for home, (*_, names) in HOMES.items() for name in names]
)
def test_slots_are_not_layers(tmp_path: Path, home: str, name: str) -> None:
    library, optimizers, _ = HOMES[home]
    lacks_averages = home == "legacy" or (home == "keras 2" and name in ("Adafactor", "Lion"))
    options = {**OPTIONS.get(name, {}), **({} if lacks_averages else {"use_ema": True})}
    net = compiled(library, getattr(optimizers, name)(**options))
    checkpoint = tf.train.Checkpoint(model=net, optimizer=net.optimizer)
    prefix = Path(checkpoint.write(str(tmp_path / "m")))
    assert len(tf.train.list_variables(str(prefix))) > len(net.weights)
    check(bnstat.load(prefix), prefix, expected(library, net))
    # Without the object graph, names alone have to do.
    slots = net.optimizer.variables
    tensors = {
        getattr(variable, "path", variable.name).removesuffix(":0"): np.asarray(variable)
        for variable in (*net.variables, *(slots() if callable(slots) else slots))
    }
    scopes = {layer.name: getattr(layer, "path", layer.name) for layer in all_layers(net)}
    layers = {scopes[layer]: roles for layer, roles in by_layer(all_layers(net)).items()}
    assert_layers(bnstat.load(named.save(tmp_path / "named", tensors)), layers)


@pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_synchronized_renormalized_wrapped_and_shared(tmp_path: Path, library: ModuleType) -> None:
    if library is keras and not KERAS_RENORMALIZES:
        pytest.skip("batch renormalization came with Keras 3.14")
    layers = library.layers
    shared = layers.BatchNormalization(name="shared")
    wrapped = layers.BatchNormalization(name="wrapped")
    x = inputs = library.Input((4, 4, 3))
    x = layers.BatchNormalization(name="sync", synchronized=True)(x)
    x = layers.BatchNormalization(name="renorm", renorm=True)(x)
    if library is tf_keras:
        x = layers.experimental.SyncBatchNormalization(name="old_sync")(x)
        x = layers.TimeDistributed(wrapped, name="steps")(x)
    net = randomised(library.Model(inputs, shared(shared(x))))
    tf.train.Checkpoint(net).write(str(tmp_path / "m"))
    model = bnstat.load(tmp_path / "m")
    in_wrapper = {"steps": roles_of(wrapped)} if library is tf_keras else {}
    check(model, tmp_path / "m", {**by_layer(net.layers), **in_wrapper})
    assert set(model["renorm"].extra) == {"moving_stddev", "renorm_mean", "renorm_stddev"}


def test_mirrored_variables(tmp_path: Path) -> None:
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        net = functional(tf_keras)
    net.save_weights(str(tmp_path / "w"), save_format="tf")
    check(bnstat.load(tmp_path / "w"), tmp_path / "w", expected(tf_keras, net))


def test_loss_scaling_and_mixed_precision(tmp_path: Path) -> None:
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        net = compiled(keras, keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    tf.train.Checkpoint(model=net, optimizer=net.optimizer).write(str(tmp_path / "m"))
    check(bnstat.load(tmp_path / "m"), tmp_path / "m", expected(keras, net))


class Block(keras.layers.Layer):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.norm = keras.layers.BatchNormalization()
        self.listed = [keras.layers.BatchNormalization() for _ in range(2)]
        self.keyed = {"a/b": keras.layers.BatchNormalization()}

    def norms(self) -> list[Any]:
        return [self.norm, *self.listed, *self.keyed.values()]

    def build(self, shape: Any) -> None:
        for layer in self.norms():
            layer.build(shape)
        self.built = True

    def call(self, x: Any) -> Any:
        for layer in self.norms():
            x = layer(x)
        return x


def test_layers_that_a_checkpoint_leaves_out_are_noted(tmp_path: Path) -> None:
    block = Block(name="block")
    net = randomised(keras.Sequential([keras.Input((3,)), block]))
    net.compile("adam", "mse")
    net.train_on_batch(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32))
    tf.train.Checkpoint(model=net, optimizer=net.optimizer).write(str(tmp_path / "m"))
    stored = dict(tf.train.list_variables(str(tmp_path / "m")))
    whole = sum("/moving_variance/" in key for key in stored)
    assert whole < 4, "Keras has learnt to save layers in lists"
    model = bnstat.load(tmp_path / "m")
    assert len(model) == whole
    names = {layer.name for layer in (*model, *model.incomplete)}
    assert names == {layer.path for layer in block.norms()}
    for layer in model.incomplete:
        assert set(layer.variables) == {"gamma", "beta"}
