"""Variants of Keras's first HDF5 format that current versions do not write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from bnstat.formats.keras.h5 import writer
from tests.formats.keras.files import batch_norms, contents_of

STATISTICS = ("gamma:0", "beta:0", "moving_mean:0", "moving_variance:0")


def batch_norm(name: str) -> dict[str, object]:
    config = {"name": name, "trainable": True, "momentum": 0.9, "epsilon": 0.5, "axis": [3]}
    return {"class_name": "BatchNormalization", "config": config}


def sequential(*layers: dict[str, object], name: str = "net") -> dict[str, object]:
    return {"class_name": "Sequential", "config": {"name": name, "layers": layers}}


def write(
    path: Path,
    groups: dict[str, Sequence[str]],
    config: dict[str, object] | None = None,
) -> Path:
    """Write groups of weights; with a configuration, a whole model."""
    with h5py.File(path, "w") as file:
        root = file
        if config is not None:
            file.attrs["model_config"] = json.dumps(config)
            root = file.create_group("model_weights")
        root.attrs["layer_names"] = np.array(list(groups), "S")
        for name, weights in groups.items():
            group = root.create_group(name)
            group.attrs["weight_names"] = np.array(weights, "S")
            for index, weight in enumerate(weights):
                group[weight] = np.full(3, index, np.float32)
    return path


def scoped(scope: str, labels: Sequence[str] = STATISTICS) -> list[str]:
    return [f"{scope}/{label}" for label in labels]


GROUPS = {
    "scopes that TensorFlow renamed": (
        [batch_norm("bn"), sequential(batch_norm("a"), batch_norm("b"), name="inner")],
        {"bn": scoped("bn_1_2"), "inner": [*scoped("a_1"), *scoped("b_1")]},
        {"bn": "bn/bn_1_2", "inner/a": "inner/a_1", "inner/b": "inner/b_1"},
    ),
    "names with a count that are not renamed": (
        [sequential(batch_norm("bn"), batch_norm("bn_1"), name="inner")],
        {"inner": [*scoped("bn_1"), *scoped("bn")]},
        {"inner/bn": "inner/bn", "inner/bn_1": "inner/bn_1"},
    ),
    "variables that TensorFlow renamed": (
        [batch_norm("bn")],
        {"bn": [label.replace(":", "_1:") for label in scoped("bn")]},
        {"bn": "bn/bn"},
    ),
    "a layer that was renamed after it was built": (
        [batch_norm("new_name")],
        {"new_name": scoped("old_name")},
        {"new_name": "new_name/old_name"},
    ),
    "layers of one name in models of models": (
        [
            sequential(
                sequential(batch_norm("bn"), name="left"),
                sequential(batch_norm("bn"), name="right"),
                name="outer",
            )
        ],
        {"outer": [*scoped("right/bn"), *scoped("left/bn")]},
        {"outer/left/bn": "outer/left/bn", "outer/right/bn": "outer/right/bn"},
    ),
}


@pytest.mark.parametrize("case", GROUPS)
def test_layers_and_their_groups(tmp_path: Path, case: str) -> None:
    layers, groups, expected = GROUPS[case]
    found = batch_norms(contents_of(write(tmp_path / "m.h5", groups, sequential(*layers))))
    places = {name: layer.roles["gamma"].rpartition("/")[0] for name, layer in found.items()}
    assert places == {name: f"model_weights/{place}" for name, place in expected.items()}
    for layer in found.values():
        assert layer.evidence == "config"
        assert list(layer.roles) == ["gamma", "beta", "moving_mean", "moving_variance"]


def test_names_with_slashes(tmp_path: Path) -> None:
    groups = {"conv1": ["conv1/kernel:0"], "conv1/bn": scoped("conv1/bn"), "bn": scoped("bn")}
    config = sequential(batch_norm("conv1/bn"), batch_norm("bn"))
    for path in (
        write(tmp_path / "whole.h5", groups, config),
        write(tmp_path / "weights.h5", groups),
    ):
        contents = contents_of(path)
        found = batch_norms(contents)
        assert list(found) == ["conv1/bn", "bn"]
        assert found["conv1/bn"].roles["beta"].endswith("conv1/bn/conv1/bn/beta:0")


def test_keras_1_in_a_nested_model(tmp_path: Path) -> None:
    labels = ("gamma", "beta", "running_mean", "running_std")
    weights = [f"{layer}_{label}" for layer in ("bn_1", "bn_10") for label in labels]
    config = sequential(sequential(batch_norm("bn_1"), batch_norm("bn_10"), name="inner"))
    found = batch_norms(contents_of(write(tmp_path / "m.h5", {"inner": weights}, config)))
    assert {name: layer.roles for name, layer in found.items()} == {
        f"inner/{layer}": {
            "gamma": f"model_weights/inner/{layer}_gamma",
            "beta": f"model_weights/inner/{layer}_beta",
            "moving_mean": f"model_weights/inner/{layer}_running_mean",
            "moving_variance": f"model_weights/inner/{layer}_running_std",
        }
        for layer in ("bn_1", "bn_10")
    }


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
    assert layer.roles == {
        "gamma": "layer_2/param_0",
        "beta": "layer_2/param_1",
        "moving_mean": "layer_2/param_2",
    }
    assert layer.extra == {"running_std": "layer_2/param_3"}
    assert any("standard deviation" in note for note in layer.notes)


def test_layers_of_other_scripts(tmp_path: Path) -> None:
    names = [f"归一化_{index}" for index in range(30)]
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.attrs["layer_names"] = names
        for name in names:
            for label in STATISTICS:
                file[f"{name}/{name}/{label}"] = np.ones(3, np.float32)
    assert list(batch_norms(contents_of(tmp_path / "m.h5"))) == names


def test_a_layer_without_statistics(tmp_path: Path) -> None:
    groups = {"bn": scoped("bn", STATISTICS[:2]), "other": []}
    config = sequential(batch_norm("bn"), batch_norm("other"))
    found = batch_norms(contents_of(write(tmp_path / "m.h5", groups, config)))
    assert {name: set(layer.roles) for name, layer in found.items()} == {
        "bn": {"gamma", "beta"},
        "other": set(),
    }


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (None, None),
        ("1.2.2", "Keras 1.2.2"),
        ("2.2.4", "Keras 2.2.4"),
        ("2.3.1", "Keras 2.3.1"),
        ("2.1.6-tf", "tf.keras 2.1.6-tf"),
        ("2.2.4-tf", "tf.keras 2.2.4-tf"),
        ("2.4.0", "tf.keras 2.4.0"),
        ("2.15.0", "tf.keras 2.15.0"),
        ("3.15.1", "Keras 3.15.1"),
        ("unknown", "Keras unknown"),
    ],
)
def test_writer(version: str | None, expected: str | None) -> None:
    assert writer(version) == expected
