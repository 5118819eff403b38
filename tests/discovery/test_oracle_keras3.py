"""Batch norm in what Keras 3 saves through TensorFlow, against the layers themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import bnstat
from bnstat.model import Model
from tests.builders.keras_models import (
    FUNCTIONAL,
    KERAS_RENORMALIZES,
    all_layers,
    by_layer,
    functional,
    randomised,
    roles_of,
)
from tests.builders.oracle import assert_as_tensorflow_reads, assert_layers

pytestmark = pytest.mark.slow

NAMES = {name: f"inner/{name}" if name == "deep" else name for name in FUNCTIONAL}


def expected(model: Any) -> dict[str, Any]:
    return {NAMES[name]: roles for name, roles in by_layer(all_layers(model)).items()}


def compiled(model: Any, optimizer: Any) -> Any:
    """The model compiled, with all the slots that training makes, then randomised."""
    model.compile(optimizer, "mse")
    model.optimizer.build(model.trainable_variables)
    return randomised(model)


def check(model: Model, prefix: Path, layers: dict[str, Any]) -> None:
    assert_layers(model, layers)
    assert_as_tensorflow_reads(model, prefix)


@pytest.fixture(scope="module")
def net() -> Any:
    return functional(keras)


@pytest.fixture(scope="module")
def compiled_net() -> Any:
    return compiled(functional(keras), "adam")


@pytest.mark.parametrize("which", ["net", "compiled_net"])
def test_checkpoint(tmp_path: Path, request: pytest.FixtureRequest, which: str) -> None:
    net = request.getfixturevalue(which)
    tf.train.Checkpoint(net).write(str(tmp_path / "root"))
    tf.train.Checkpoint(model=net).save(str(tmp_path / "child"))
    for prefix in (tmp_path / "root", tmp_path / "child-1"):
        model = bnstat.load(prefix)
        assert model.source.format == "tf2-checkpoint"
        assert {layer.evidence for layer in model} == {"object-graph"}
        check(model, prefix, expected(net))


def test_checkpoint_with_its_optimizer_keeps_gamma_under_it(
    tmp_path: Path, compiled_net: Any
) -> None:
    checkpoint = tf.train.Checkpoint(model=compiled_net, optimizer=compiled_net.optimizer)
    checkpoint.write(str(tmp_path / "m"))
    model = bnstat.load(tmp_path / "m")
    assert model["plain"].variables["gamma"].key.startswith("optimizer/_trainable_variables/")
    check(model, tmp_path / "m", expected(compiled_net))


OPTIMIZERS = [
    "SGD", "RMSprop", "Adam", "AdamW", "Adadelta", "Adagrad", "Adamax", "Adafactor", "Nadam",
    "Ftrl", "Lion", "Lamb", "Muon",
]  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_slots_are_not_layers(tmp_path: Path, name: str) -> None:
    options: dict[str, Any] = {"use_ema": True}
    options |= {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    options |= {"amsgrad": True} if name in ("Adam", "AdamW") else {}
    options |= {"centered": True} if name == "RMSprop" else {}
    net = compiled(functional(keras), getattr(keras.optimizers, name)(**options))
    tf.train.Checkpoint(model=net, optimizer=net.optimizer).write(str(tmp_path / "m"))
    check(bnstat.load(tmp_path / "m"), tmp_path / "m", expected(net))
    # Without the object graph, names alone have to do.
    model = bnstat.load(_by_name(tmp_path, net))
    assert_layers(model, {layer.path: roles_of(layer) for layer in _batch_norms(net)})


def _by_name(folder: Path, net: Any) -> Path:
    """The variables of a model and its optimizer, saved under their paths."""
    from tests.builders import named

    variables = [*net.variables, *net.optimizer.variables]
    return named.save(folder / "named", {var.path: np.asarray(var) for var in variables})


def _batch_norms(net: Any) -> list[Any]:
    return [
        layer for layer in all_layers(net) if isinstance(layer, keras.layers.BatchNormalization)
    ]


def test_loss_scaling_and_mixed_precision(tmp_path: Path) -> None:
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        net = functional(keras)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    net = compiled(net, keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()))
    tf.train.Checkpoint(model=net, optimizer=net.optimizer).write(str(tmp_path / "m"))
    check(bnstat.load(tmp_path / "m"), tmp_path / "m", expected(net))


@pytest.mark.parametrize("which", ["net", "compiled_net"])
def test_saved_model(tmp_path: Path, request: pytest.FixtureRequest, which: str) -> None:
    net = request.getfixturevalue(which)
    tf.saved_model.save(net, str(tmp_path))
    model = bnstat.load(tmp_path)
    assert [layer.name for layer in model] == [NAMES[name] for name in FUNCTIONAL]
    check(model, tmp_path / "variables/variables", expected(net))


@pytest.mark.parametrize("which", ["net", "compiled_net"])
def test_export_stores_each_variable_once(
    tmp_path: Path, request: pytest.FixtureRequest, which: str
) -> None:
    net = request.getfixturevalue(which)
    net.export(str(tmp_path), verbose=False)
    stored = dict(tf.train.list_variables(str(tmp_path / "variables/variables")))
    assert any(key.startswith("_all_variables/") for key in stored)
    model = bnstat.load(tmp_path)
    assert [layer.name for layer in model] == [NAMES[name] for name in FUNCTIONAL]
    assert {round(layer.epsilon or 0, 9) for layer in model} == {0.001}
    check(model, tmp_path / "variables/variables", expected(net))


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_types(tmp_path: Path, dtype: str) -> None:
    inputs = keras.Input((4,), dtype=dtype)
    norm = keras.layers.BatchNormalization(name="bn", dtype=dtype)
    net = randomised(keras.Model(inputs, norm(inputs)))
    tf.train.Checkpoint(net).write(str(tmp_path / "m"))
    model = bnstat.load(tmp_path / "m")
    check(model, tmp_path / "m", {"bn": roles_of(norm)})
    assert {variable.dtype for variable in model["bn"].variables.values()} == {dtype}


@pytest.mark.skipif(not KERAS_RENORMALIZES, reason="batch renormalization came with Keras 3.14")
def test_synchronized_renormalized_and_shared(tmp_path: Path) -> None:
    shared = keras.layers.BatchNormalization(name="shared")
    x = inputs = keras.Input((4, 4, 3))
    x = keras.layers.BatchNormalization(name="sync", synchronized=True)(x)
    x = keras.layers.BatchNormalization(name="renorm", renorm=True)(x)
    net = randomised(keras.Model(inputs, shared(shared(x))))
    tf.train.Checkpoint(net).write(str(tmp_path / "m"))
    model = bnstat.load(tmp_path / "m")
    check(model, tmp_path / "m", by_layer(net.layers))
    assert set(model["renorm"].extra) == {"moving_stddev", "renorm_mean", "renorm_stddev"}


def test_lookalikes_are_not_layers(tmp_path: Path) -> None:
    layers = keras.layers
    data = np.random.default_rng(1).random((8, 4)).astype(np.float32)
    normalization = layers.Normalization()
    normalization.adapt(data)
    x = inputs = keras.Input((4,))
    x = normalization(x)
    x = layers.SpectralNormalization(layers.Dense(4))(x)
    x = layers.LayerNormalization()(x)
    x = layers.GroupNormalization(groups=2)(x)
    x = layers.RMSNormalization()(x)
    x = layers.UnitNormalization()(x)
    net = keras.Model(inputs, layers.Dense(2)(x))
    net.compile("adafactor", "mse", metrics=["mae", "accuracy"])
    net.train_on_batch(data, np.ones((8, 2), np.float32))
    tf.train.Checkpoint(model=net, optimizer=net.optimizer).write(str(tmp_path / "m"))
    tf.saved_model.save(net, str(tmp_path / "saved"))
    net.export(str(tmp_path / "export"), verbose=False)
    for path in ("m", "saved", "export"):
        assert_layers(bnstat.load(tmp_path / path), {})


class Block(keras.layers.Layer):
    """Layers as attributes, in a list and in a dict."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.norm = keras.layers.BatchNormalization()
        self.listed = [keras.layers.BatchNormalization() for _ in range(2)]
        self.keyed = {"a/b": keras.layers.BatchNormalization()}

    def build(self, shape: Any) -> None:
        for layer in (self.norm, *self.listed, *self.keyed.values()):
            layer.build(shape)
        self.built = True

    def call(self, x: Any) -> Any:
        for layer in (self.norm, *self.listed, *self.keyed.values()):
            x = layer(x)
        return x


def subclassed() -> tuple[Any, Block]:
    block = Block(name="block")
    net = randomised(keras.Sequential([keras.Input((3,)), block]))
    return net, block


def test_layers_that_a_checkpoint_leaves_out_are_noted(tmp_path: Path) -> None:
    net, block = subclassed()
    net.compile("adam", "mse")
    net.train_on_batch(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32))
    tf.train.Checkpoint(model=net, optimizer=net.optimizer).write(str(tmp_path / "m"))
    stored = dict(tf.train.list_variables(str(tmp_path / "m")))
    whole = sum("/moving_variance/" in key for key in stored)
    assert whole < 4, "Keras has learnt to save layers in lists"
    model = bnstat.load(tmp_path / "m")
    assert len(model) == whole
    layers = [block.norm, *block.listed, *block.keyed.values()]
    names = {layer.name for layer in (*model, *model.incomplete)}
    assert names == {layer.path for layer in layers}
    for layer in model.incomplete:
        assert set(layer.variables) == {"gamma", "beta"}
