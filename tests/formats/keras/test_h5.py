"""Variants of Keras's first HDF5 format that current versions do not write."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

import bnstat
from bnstat.formats.keras.h5 import writer
from bnstat.model import ROLES
from tests.formats.keras.files import (
    LABELS,
    batch_norms,
    contents_of,
    model,
    norm,
    scoped,
    write_h5,
)

GROUPS = {
    "scopes that TensorFlow renamed": (
        [norm("bn"), model(norm("a"), norm("b"), name="inner")],
        {"bn": scoped("bn_1_2"), "inner": [*scoped("a_1"), *scoped("b_1")]},
        {"bn": "bn/bn_1_2", "inner/a": "inner/a_1", "inner/b": "inner/b_1"},
    ),
    "names with a count that are not renamed": (
        [model(norm("bn"), norm("bn_1"), name="inner")],
        {"inner": [*scoped("bn_1"), *scoped("bn")]},
        {"inner/bn": "inner/bn", "inner/bn_1": "inner/bn_1"},
    ),
    "variables that TensorFlow renamed": (
        [norm("bn")],
        {"bn": [label.replace(":", "_1:") for label in scoped("bn")]},
        {"bn": "bn/bn"},
    ),
    "a layer that was renamed after it was built": (
        [norm("new_name")],
        {"new_name": scoped("old_name")},
        {"new_name": "new_name/old_name"},
    ),
    "layers of one name in models of models": (
        [model(model(norm("bn"), name="left"), model(norm("bn"), name="right"), name="outer")],
        {"outer": [*scoped("right/bn"), *scoped("left/bn")]},
        {"outer/left/bn": "outer/left/bn", "outer/right/bn": "outer/right/bn"},
    ),
}


@pytest.mark.parametrize("case", GROUPS)
def test_layers_and_their_groups(tmp_path: Path, case: str) -> None:
    layers, groups, expected = GROUPS[case]
    found = batch_norms(contents_of(write_h5(tmp_path / "m.h5", model(*layers), groups)))
    places = {name: layer.roles["gamma"].rpartition("/")[0] for name, layer in found.items()}
    assert places == {name: f"model_weights/{place}" for name, place in expected.items()}
    for layer in found.values():
        assert layer.evidence == "config"
        assert tuple(layer.roles) == ROLES


def test_names_with_slashes(tmp_path: Path) -> None:
    groups = {"conv1": ["conv1/kernel:0"], "conv1/bn": scoped("conv1/bn"), "bn": scoped("bn")}
    config = model(norm("conv1/bn"), norm("bn"))
    for configured in (config, None):
        found = batch_norms(contents_of(write_h5(tmp_path / "m.h5", configured, groups)))
        assert list(found) == ["conv1/bn", "bn"]
        assert found["conv1/bn"].roles["beta"].endswith("conv1/bn/conv1/bn/beta:0")


def test_keras_1_in_a_nested_model(tmp_path: Path) -> None:
    labels = ("gamma", "beta", "running_mean", "running_std")
    weights = [f"{layer}_{label}" for layer in ("bn_1", "bn_10") for label in labels]
    config = model(model(norm("bn_1"), norm("bn_10"), name="inner"))
    found = batch_norms(contents_of(write_h5(tmp_path / "m.h5", config, {"inner": weights})))
    assert {name: [*layer.roles.values()] for name, layer in found.items()} == {
        f"inner/{layer}": [f"model_weights/inner/{layer}_{label}" for label in labels]
        for layer in ("bn_1", "bn_10")
    }


@pytest.mark.parametrize("ending", ["", ":0"], ids=["Theano", "TensorFlow"])
def test_keras_1_in_a_nested_model_without_a_configuration(tmp_path: Path, ending: str) -> None:
    labels = ("gamma", "beta", "running_mean", "running_std")

    def weights(*layers: str) -> list[str]:
        return [f"{layer}_{label}{ending}" for layer in layers for label in labels]

    groups = {
        "bn": weights("bn"),
        "inner": [f"conv_W{ending}", *weights("bn_10", "bn_1")],
        "last": weights("last"),
    }
    found = bnstat.load(write_h5(tmp_path / "m.h5", None, groups))
    assert found.keys() == ["bn", "bn_10", "bn_1", "last"]
    assert [layer.variables["gamma"].key for layer in found] == [
        f"{group}/{name}_gamma{ending}"
        for group, name in (("bn", "bn"), ("inner", "bn_10"), ("inner", "bn_1"), ("last", "last"))
    ]
    assert all(set(layer.variables) == {*ROLES} for layer in found)


BLOCK = {"class_name": "Block", "config": {"name": "block"}}


@pytest.mark.parametrize("ending", ["", ":0"], ids=["Keras 3", "Keras 2"])
@pytest.mark.parametrize("config", [None, model(BLOCK)], ids=["weights", "whole"])
def test_two_batch_norms_among_the_variables_of_one_layer(tmp_path, config, ending):
    labels = [label.replace(":0", ending) for label in LABELS]
    weights = [f"block/bn{number}_{label}" for number in (1, 2) for label in labels]
    found = bnstat.load(write_h5(tmp_path / "m.h5", config, {"block": weights}))
    assert found.keys() == ["block/bn1", "block/bn2"]
    assert all(set(layer.variables) == {*ROLES} for layer in found)


def test_keras_0_numbers_layers_and_weights(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file.attrs["nb_layers"] = 11
        for layer in range(11):
            group = file.create_group(f"layer_{layer}")
            sizes = {2: [5] * 4, 10: [7] * 4, 3: [5, 5], 4: [5] * 3}.get(layer, [])
            group.attrs["nb_params"] = len(sizes)
            for index, size in enumerate(sizes):
                group[f"param_{index}"] = np.full(size, index, np.float32)
    found = batch_norms(contents_of(path))
    assert list(found) == ["layer_2", "layer_10"]
    layer = found["layer_2"]
    # Before 1.0, Keras stored the standard deviation instead of the variance.
    assert layer.roles == {role: f"layer_2/param_{at}" for at, role in enumerate(ROLES[:3])}
    assert layer.extra == {"running_std": "layer_2/param_3"}
    assert any("standard deviation" in note for note in layer.notes)


def test_layers_of_other_scripts(tmp_path: Path) -> None:
    names = [f"归一化_{index}" for index in range(30)]
    groups = {name: scoped(name) for name in names}
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.attrs["layer_names"] = names
        for name, weights in groups.items():
            for weight in weights:
                file[f"{name}/{weight}"] = np.ones(3, np.float32)
    assert list(batch_norms(contents_of(tmp_path / "m.h5"))) == names


def test_a_layer_without_statistics(tmp_path: Path) -> None:
    groups = {"bn": scoped("bn", LABELS[:2]), "other": []}
    config = model(norm("bn"), norm("other"))
    found = batch_norms(contents_of(write_h5(tmp_path / "m.h5", config, groups)))
    assert [set(layer.roles) for layer in found.values()] == [{"gamma", "beta"}, set()]


@pytest.mark.parametrize(
    ("library", "version"),
    [
        *(("Keras", version) for version in ("1.2.2", "2.2.4", "2.3.1", "3.15.1", "unknown")),
        *(("tf.keras", version) for version in ("2.1.6-tf", "2.2.4-tf", "2.4.0", "2.15.0")),
    ],
)
def test_writer(library: str, version: str) -> None:
    assert writer(version) == f"{library} {version}"
    assert writer(None) is None
