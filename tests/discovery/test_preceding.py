"""The bias right before a batch norm, by everything that a file may record of the network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow as tf

import bnstat
from bnstat.discovery import discover
from bnstat.model import ROLES, PrecedingBias
from tests.builders.graph_mode import save_graph
from tests.discovery.made import made, objects_of, variable

v1 = tf.compat.v1

CHANNELS = 6


def conv(class_name: str = "Conv2D", **config: Any) -> dict[str, Any]:
    config = {"name": "conv", "activation": "linear", "use_bias": True, **config}
    return {"class_name": class_name, "config": config}


def norm_of(**config: Any) -> dict[str, Any]:
    return {"class_name": "BatchNormalization", "config": {"name": "bn", **config}}


NORM = norm_of()


def between(class_name: str) -> dict[str, Any]:
    return {"class_name": class_name, "config": {"name": class_name}}


def activation(name: str) -> dict[str, Any]:
    return {"class_name": "Activation", "config": {"name": "act", "activation": name}}


def write_h5(path: Path, config: Mapping[str, Any] | None, *biases: str) -> Path:
    """A model in Keras's older HDF5: vectors in the groups of layers, and a batch norm `bn`."""
    with h5py.File(path, "w") as file:
        group = file
        if config is not None:
            file.attrs["model_config"] = json.dumps(config)
            group = file.create_group("model_weights")
        names = [*biases, *(f"bn/bn/{role}:0" for role in ROLES)]
        group.attrs["layer_names"] = [*dict.fromkeys(name.split("/")[0] for name in names)]
        for name in names:
            group[name] = np.zeros(CHANNELS, np.float32)
    return path


def sequential(*layers: object) -> dict[str, Any]:
    return {"class_name": "Sequential", "config": {"name": "net", "layers": layers}}


def functional(version: int = 2, **inputs: Sequence[str]) -> dict[str, Any]:
    """A model whose layers have these inputs, as this version of Keras records them."""
    known = {"conv": conv(), "bn": NORM, "act": activation("linear"), "relu": activation("relu")}
    layers = []
    for name, before in inputs.items():
        histories = [{"config": {"keras_history": [each, 0, 0]}} for each in before]
        nodes: list[Any] = [{"args": histories, "kwargs": {"mask": None}}]
        if version == 2:
            nodes = [[[each, 0, 0, {}] for each in before]]
        layer = known.get(name, {"class_name": "Add", "config": {"name": name}})
        layers.append({**layer, "name": name, "inbound_nodes": nodes if before else []})
    return {"class_name": "Functional", "config": {"name": "net", "layers": layers}}


def keys_of(biases: Mapping[str, PrecedingBias]) -> list[tuple[str, str, bool]]:
    return [(name, each.variable.key, each.is_proven) for name, each in biases.items()]


def found(path: Path) -> list[tuple[str, str, bool]]:
    return keys_of(bnstat.load(path).preceding_biases())


PROVEN = [("bn", "model_weights/conv/conv/bias:0", True)]
UNPROVEN = [("bn", "model_weights/conv/conv/bias:0", False)]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (sequential(conv(), NORM), PROVEN),
        (sequential(conv("Dense"), NORM), PROVEN),
        (sequential(conv("Conv2DTranspose"), NORM), PROVEN),
        (sequential(conv("SeparableConv2D", activation=None), NORM), PROVEN),
        (sequential(conv(), activation("linear"), NORM), PROVEN),
        (sequential(conv(), activation("relu"), NORM), []),
        (sequential(conv(), between("MaxPooling2D"), NORM), PROVEN),
        (sequential(conv(), between("UpSampling2D"), activation("linear"), NORM), PROVEN),
        (sequential(conv(), between("Dropout"), NORM), []),
        (sequential(conv(), between("LeakyReLU"), between("MaxPooling2D"), NORM), UNPROVEN),
        (sequential(conv(activation={"class_name": "LeakyReLU", "config": {}}), NORM), UNPROVEN),
        (sequential(conv(activation="leaky_relu"), NORM), UNPROVEN),
        (sequential(conv(activation="relu"), NORM), []),
        (sequential(conv(use_bias=False), NORM), []),
        (sequential(conv("pkg>Conv2D"), NORM), []),
        (sequential(NORM, conv()), []),
        (sequential(conv(bias_regularizer={"class_name": "L1"}), NORM), UNPROVEN),
        (sequential(conv(bias_constraint={"class_name": "MaxNorm"}), NORM), UNPROVEN),
        (sequential(conv(), norm_of(beta_initializer={"class_name": "Normal"})), UNPROVEN),
        (sequential(conv(), norm_of(axis=[3])), PROVEN),
        (sequential(conv(), norm_of(axis=1)), []),
        (sequential(conv(data_format="channels_first"), norm_of(axis=1)), PROVEN),
        (sequential(conv(data_format="channels_first"), norm_of(axis=-1)), []),
        (sequential(conv("Dense"), norm_of(axis=1)), PROVEN),
        (functional(conv=[], bn=["conv"]), PROVEN),
        (functional(conv=[], act=["conv"], bn=["act"]), PROVEN),
        (functional(act=["act"], bn=["act"]), []),
        (functional(conv=[], add=["conv", "conv"], bn=["add"]), []),
        (functional(conv=[], other=[], bn=["conv", "other"]), []),
        (functional(bn=[], conv=["bn"]), []),
        (functional(3, conv=[], bn=["conv"]), PROVEN),
        (functional(3, conv=[], relu=["conv"], bn=["relu"]), []),
        (functional(3, bn=[], conv=["bn"]), []),
    ],
)
def test_a_configuration_proves_the_bias(tmp_path: Path, config: Any, expected: Any) -> None:
    assert found(write_h5(tmp_path / "m.h5", config, "conv/conv/bias:0")) == expected


def test_layers_of_nested_models_are_paired_within_their_model(tmp_path: Path) -> None:
    inner = sequential(conv(), NORM)
    inner["config"]["name"] = "inner"
    config = sequential(conv(name="first"), inner)
    path = write_h5(tmp_path / "m.h5", config, "first/first/bias:0", "inner/conv/bias:0")
    with h5py.File(path, "r+") as file:
        file.move("model_weights/bn/bn", "model_weights/inner/bn")
        file["model_weights"].attrs["layer_names"] = ["first", "inner"]
    assert found(path) == [("bn", "model_weights/inner/conv/bias:0", True)]


@pytest.mark.parametrize(("name", "is_bias"), [("bias", True), ("alpha", False)])
def test_the_order_of_layers_proves_nothing(tmp_path: Path, name: str, is_bias: bool) -> None:
    key = f"conv/conv/{name}:0"
    expected = [("bn", key, False)] if is_bias else []
    assert found(write_h5(tmp_path / "w.h5", None, key)) == expected


# Files without a configuration


def stored(*names: str, **options: Any) -> Mapping[str, PrecedingBias]:
    """The biases in a file that contains vectors of these names."""
    return discover(made(names, **options)).preceding_biases()


def norm(scope: str) -> list[str]:
    return [f"{scope}/{role}" for role in ROLES]


@pytest.mark.parametrize("bias", ["biases", "bias", "b"])
def test_one_scope_holds_convolution_and_layer(bias: str) -> None:
    names = [*norm("net/conv1/BatchNorm"), "net/conv1/weights", f"net/conv1/{bias}"]
    assert keys_of(stored(*names)) == [("net/conv1/BatchNorm", f"net/conv1/{bias}", False)]


def test_two_layers_or_two_biases_in_a_scope_are_ambiguous() -> None:
    assert stored(*norm("block/bn1"), *norm("block/bn2"), "block/bias") == {}
    assert stored(*norm("block/bn"), "block/bias", "block/biases") == {}


def test_variables_in_order() -> None:
    names = ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"]
    assert keys_of(stored(*names, variables_in_order=True)) == [("1", "0.bias", False)]
    assert stored(*names) == {}


def graph(*roots: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Options of a file whose object graph has these roots: name of a layer -> keys."""
    tree = [
        {name: {key.rpartition("/")[2]: key for key in keys} for name, keys in layers.items()}
        for layers in roots
    ]
    return {"objects": objects_of(dict(zip("01", tree, strict=False)))}


def test_numbered_layers_of_an_object_graph() -> None:
    layers = {"layer-0": ["a/bias"], "layer-1": ["b/bias"], "layer-2": norm("c")}
    keys = ["a/bias", "b/bias", *norm("c")]
    assert keys_of(stored(*keys, **graph(layers))) == [("0/layer-2", "b/bias", False)]
    del layers["layer-1"]
    assert stored(*keys, **graph(layers)) == {}


def test_layers_with_one_bias_before_them_are_left_out() -> None:
    roots = [{"layer-0": ["a/bias"], "layer-1": norm(scope)} for scope in "cd"]
    assert stored("a/bias", *norm("c"), **graph(roots[0]))
    assert stored("a/bias", *norm("c"), *norm("d"), **graph(*roots)) == {}


def test_long_names_are_not_searched() -> None:
    name = f"{'adam' * 50_000}/conv/bias"
    [found] = stored(*norm("conv/bn"), "conv/bias", name).values()
    assert found.slots is None


# Graphs


@pytest.mark.parametrize("between", [True, False])
def test_a_graph_proves_what_feeds_a_layer(tmp_path: Path, between: bool) -> None:
    def build() -> None:
        x = v1.placeholder("float32", [None, 4, 4, 2])
        with v1.variable_scope("conv1"):
            kernel = v1.get_variable("weights", [3, 3, 2, CHANNELS])
            bias = v1.get_variable("biases", [CHANNELS])
            with v1.variable_scope("bn"):
                gamma, beta, mean, variance = (v1.get_variable(r, [CHANNELS]) for r in ROLES)
        x = tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias)
        x = tf.nn.relu(x) if between else x
        tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)

    save_graph(tmp_path / "model", build, write_meta_graph=True)
    pairs = [("conv1/bn", "conv1/biases", True)]
    assert found(tmp_path / "model") == ([] if between else pairs)


# Variables of optimizers


@pytest.mark.parametrize(
    ("bias", "beta", "are_squared"),
    [
        ("conv/bias/Adam_1", "conv/bn/beta/Adam_1", True),
        ("conv/bias/Adam", "conv/bn/beta/Adam", False),
        ("conv/bias/Momentum", "conv/bn/beta/Momentum", False),
        ("conv/bias/adam_v", "conv/bn/beta/adam_v", True),
        ("Adam/v/conv/bias", "Adam/v/conv/bn/beta", True),
        ("SGD/m/conv/bias", "SGD/m/conv/bn/beta", False),
        ("Adam/conv/bias/v", "Adam/conv/bn/beta/v", True),
        ("training/Adam/conv/bias/v:0", "training/Adam/conv/bn/beta/v:0", True),
        ("adam/conv_bias_velocity", "adam/conv_bn_beta_velocity", True),
        ("optimizer_weights/rm_sprop/conv_bias_velocity",
         "optimizer_weights/rm_sprop/conv_bn_beta_velocity", True),
        ("conv/bias/Adagrad", "conv/bn/beta/Adagrad", None),
        ("conv/bias/RMSProp", "conv/bn/beta/RMSProp", None),
        ("Adagrad/accumulator/conv/bias", "Adagrad/accumulator/conv/bn/beta", None),
        ("other/conv/bias/Adam_1", "other/conv/bn/beta/Adam_1", None),
        ("conv/bias/Adam_1", "conv/bn/gamma/Adam_1", None),
    ],
)  # fmt: skip
def test_averages_of_optimizers(bias: str, beta: str, are_squared: bool | None) -> None:
    [found] = stored(*norm("conv/bn"), "conv/bias", bias, beta).values()
    slots = found.slots and (found.slots.of_bias.key, found.slots.of_beta.key)
    assert slots == (None if are_squared is None else (bias, beta))
    assert (found.slots and found.slots.are_squared) is are_squared


@pytest.mark.parametrize("dtype", ["complex64", "string", "int32", "bool"])
@pytest.mark.parametrize("key", ["conv/bias", "conv/bias/Adam"])
def test_biases_and_averages_are_floats(key: str, dtype: str) -> None:
    contents = made([*norm("conv/bn"), "conv/bias", "conv/bias/Adam", "conv/bn/beta/Adam"])
    (before,) = discover(contents).preceding_biases().values()
    assert before.slots is not None
    contents.variables[key] = variable(key, dtype=dtype)
    found = [bias.slots for bias in discover(contents).preceding_biases().values()]
    assert found == ([] if key == "conv/bias" else [None])
