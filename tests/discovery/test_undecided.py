"""Layers that may be batch norm, layers that look like it, and architectures that do not fit."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import bnstat
from bnstat.errors import BnstatError
from tests.builders.keras_models import all_layers, randomised, roles_of
from tests.builders.oracle import same_bits
from tests.formats.keras.saved import (
    LIBRARIES,
    saved_architecture,
    saved_weights,
    sequential,
    wrapped,
)


@pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)
def test_undecided_without_an_architecture(library: ModuleType, tmp_path: Path) -> None:
    net = wrapped(library)
    path = saved_weights(library, net, tmp_path, ".weights.h5")
    model = bnstat.load(path)
    norm = net.layers[1].layer
    if library is keras:
        (layer,) = model.undecided
        assert layer.name == "gamma721738"
        stored = [variable.read() for variable in layer.undecided]
        live = [norm.beta, norm.moving_mean, norm.moving_variance]
        assert all(map(same_bits, stored, map(np.asarray, live)))
    assert [layer.channels for layer in model.undecided] == [6]
    assert any("--config" in note and "may be batch norm" in note for note in model.notes)
    assert any("role of some variables" in note for note in model.notes)
    # An architecture beside the weights is noted, but not used.
    (tmp_path / "m.json").write_text(net.to_json())
    beside = bnstat.load(path)
    assert len(beside.undecided) == 1
    (note,) = set(beside.notes) - set(model.notes)
    assert f"--config {tmp_path / 'm.json'}" in note
    assert bnstat.load(path, config=tmp_path / "m.json").notes == ()


FORMS: dict[str, Callable[[Any, Path], object]] = {
    "m.weights.h5": lambda net, path: net.save_weights(path),
    "m.keras": lambda net, path: net.save(path),
    "checkpoint": lambda net, path: tf.train.Checkpoint(net, opt=net.optimizer).write(str(path)),
    "saved": lambda net, path: tf.saved_model.save(net, str(path)),
    "exported": lambda net, path: net.export(str(path), verbose=False),
}


def test_other_layers_of_keras_are_not_batch_norm(tmp_path: Path) -> None:
    layers = keras.layers
    x = inputs = keras.Input((6, 4))
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(1).random((8, 6, 4)))
    for layer in (
        normalization,
        layers.LayerNormalization(),
        layers.GroupNormalization(groups=2),
        layers.RMSNormalization(),
        layers.UnitNormalization(),
        layers.SpectralNormalization(layers.Dense(4)),
        layers.PReLU(),
        layers.EinsumDense("abc,cd->abd", (None, 4), bias_axes="d"),
        layers.GRU(4, return_sequences=True),
        layers.LSTM(4, return_sequences=True),
        layers.Bidirectional(layers.SimpleRNN(2, return_sequences=True)),
        layers.SeparableConv1D(4, 1),
        layers.TimeDistributed(layers.LayerNormalization()),
    ):
        x = layer(x)
    x = layers.MultiHeadAttention(2, 2)(x, x)
    x = layers.GroupQueryAttention(2, 2, 1)(x, x)
    net = keras.Model(inputs, layers.Dense(4)(x))
    net.compile("adafactor", "mse", metrics=["mae"])
    net.optimizer.build(net.trainable_variables)
    for name, save in FORMS.items():
        save(net, tmp_path / name)
        model = bnstat.load(tmp_path / name)
        assert (len(model), model.incomplete, model.notes) == (0, (), ())


class Block(keras.layers.Layer):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.inside = keras.layers.BatchNormalization(scale=False, name="plain")

    def call(self, x: Any) -> Any:
        return self.inside(x)

    def build(self, shape: Any) -> None:
        self.inside.build(shape)


def test_patterns_decide_what_no_configuration_records(tmp_path: Path) -> None:
    block = Block(name="block")
    net = randomised(keras.Sequential([keras.Input((4,)), block]))
    net.save(tmp_path / "m.keras")
    model = bnstat.load(tmp_path / "m.keras")
    (layer,) = model.undecided
    assert layer.name == "plain"
    assert any("--pattern" in note for note in model.notes)
    roles = roles_of(block.inside)
    patterns = [(role, f"vars/{number}$") for number, role in enumerate(roles)]
    (layer,) = bnstat.load(tmp_path / "m.keras", patterns=patterns)
    assert all(same_bits(layer.array(role), array) for role, array in roles.items())
    # An architecture without the inside of the block decides nothing.
    net.save_weights(tmp_path / "m.weights.h5")
    model = bnstat.load(tmp_path / "m.weights.h5", config=tmp_path / "m.keras")
    assert [layer.name for layer in model.undecided] == ["plain"]
    assert any("--pattern" in note for note in model.notes)


def test_a_layer_that_does_not_fit_its_own_configuration(tmp_path: Path) -> None:
    norm = keras.layers.BatchNormalization(name="b")
    randomised(keras.Sequential([keras.Input((4,)), norm])).save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["config.json"] = members["config.json"].replace(b'"scale": true', b'"scale": false')
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    model = bnstat.load(tmp_path / "m.keras")
    (layer,) = model.undecided
    assert (layer.name, layer.evidence, len(layer.undecided)) == ("b", "config", 4)
    (note,) = model.notes
    assert "4 variables, but its configuration specifies 3" in note
    assert "may be" not in note
    (finding,) = bnstat.check(model)
    assert "may be" not in finding.message


@pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)
def test_layers_of_one_name_in_a_checkpoint(tmp_path: Path, library: ModuleType) -> None:
    layers = library.layers

    def tower(name: str) -> Any:
        inside = [layers.Dense(3, name="d"), layers.BatchNormalization(name="bn")]
        return library.Sequential([library.Input((4,)), *inside], name=name)

    inputs = library.Input((4,))
    merged = layers.Concatenate()([tower("left")(inputs), tower("right")(inputs)])
    net = randomised(library.Model(inputs, layers.BatchNormalization(name="last")(merged)))
    prefix = tf.train.Checkpoint(model=net).write(str(tmp_path / "m"))
    (tmp_path / "m.json").write_text(net.to_json())
    model = bnstat.load(prefix, config=tmp_path / "m.json")
    assert len(model) == 3
    assert model["last"].epsilon == 0.001
    norms = [layer for layer in all_layers(net) if hasattr(layer, "gamma")]
    found = {layer.array("gamma").tobytes() for layer in model}
    assert found == {np.asarray(norm.gamma).tobytes() for norm in norms}


# Architectures that do not fit the weights


@pytest.mark.parametrize("form", [".weights.h5", ".h5"])
@pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)
@pytest.mark.parametrize(
    ("units", "norms", "reason"),
    [
        (3, {"b": {}}, "c"),
        (3, {"b": {}, "c": {}, "e": {}}, "no variables for e "),
        (3, {"b": {"scale": False}, "c": {}}, "b has 3 variables, but 4 in the weights"),
        (5, {"b": {}, "c": {}}, "d has units=5, but its kernel has shape [4, 3]"),
    ],
    ids=["fewer layers", "more layers", "other roles", "other shapes"],
)
def test_an_architecture_that_does_not_fit(
    tmp_path: Path, library: Any, form: str, units: int, norms: Any, reason: str
) -> None:
    def net(units: int, norms: Any) -> Any:
        norm = library.layers.BatchNormalization
        dense = library.layers.Dense(units, name="d")
        return sequential(library, dense, *(norm(name=name, **norms[name]) for name in norms))

    path = saved_weights(library, net(3, {"b": {}, "c": {}}), tmp_path, form)
    config = saved_architecture(net(units, norms), tmp_path, "to_json")
    with pytest.raises(BnstatError) as caught:
        bnstat.load(path, config=config)
    assert f"does not fit {path}" in caught.value.what
    assert reason in caught.value.what


def test_channels_of_another_number(tmp_path: Path) -> None:
    def net(channels: int) -> Any:
        norm = keras.layers.BatchNormalization(name="b")
        return randomised(keras.Sequential([keras.Input((channels,)), norm]))

    net(4).save_weights(tmp_path / "m.weights.h5")
    (tmp_path / "m.json").write_text(net(5).to_json())
    with pytest.raises(BnstatError, match=r"b has 5 channels, but its variables have shape \[4\]"):
        bnstat.load(tmp_path / "m.weights.h5", config=tmp_path / "m.json")
