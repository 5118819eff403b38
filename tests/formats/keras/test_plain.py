"""Layers that are left closed until somebody asks for their kernels, and those that are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

import bnstat
from bnstat.formats.contents import Later
from bnstat.formats.hdf5.file import Hdf5
from bnstat.formats.keras import plain
from bnstat.formats.keras.config import describe
from bnstat.formats.keras.plain import is_plain
from bnstat.storage.local import LocalFile
from tests.formats.keras.files import contents_of

PLAIN_WEIGHTS = {"kernel", "bias", "depthwise_kernel", "pointwise_kernel"}
LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras3", "tf_keras"])
SAVED = pytest.mark.parametrize("suffix", [".h5", ".keras"])
GIVEN: dict[str, dict[str, Any]] = {
    "Activation": {"activation": "relu"},
    "Dense": {"units": 2},
    "Dropout": {"rate": 0.1},
    "Rescaling": {"scale": 2.0},
    "Reshape": {"target_shape": (-1,)},
}


def layer_of(library: Any, name: str) -> tuple[Any, tuple[int, ...]]:
    """A layer of that class, and the shape that it is built for."""
    rank = next((number for number in (1, 2, 3) if f"{number}D" in name), 1)
    given = dict(GIVEN.get(name, {}))
    if "Pooling" in name and not name.startswith("Global"):
        given["pool_size"] = 2
    if "Conv" in name:
        given["kernel_size"] = 2
        if not name.startswith("Depthwise"):
            given["filters"] = 3
    return getattr(library.layers, name)(**given), (None, *[6] * rank, 4)


@LIBRARIES
@pytest.mark.parametrize("name", sorted(plain._ARGUMENTS))
def test_what_is_plain_holds_kernels_and_biases_alone(library: Any, name: str) -> None:
    if not hasattr(library.layers, name):
        pytest.skip("the library has no such layer")
    if name == "InputLayer":
        model = library.Sequential([library.Input((4,), name="input")])
        x = library.Input((4,))
        model = library.Model(x, x)
    else:
        layer, shape = layer_of(library, name)
        x = library.Input(shape[1:])
        several = name in ("Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract")
        model = library.Model(x, layer([x, x] if several or name == "Concatenate" else x))
        labels = {weight.name.partition(":")[0].rpartition("/")[2] for weight in layer.weights}
        assert labels <= PLAIN_WEIGHTS
    serialized = {"class_name": "Functional", "config": model.get_config()}
    if library is keras:
        serialized = keras.saving.serialize_keras_object(model)
    found = [each for each in describe(serialized, "here") if each.class_name == name]
    assert found
    assert all(map(is_plain, found))


def network(library: Any, *more: Any, norm: str = "bn") -> Any:
    layers = library.layers
    model = library.Sequential(
        [
            library.Input((8, 8, 3)),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(name=norm),
            layers.Flatten(),
            *more,
            layers.Dense(2, name="head"),
        ]
    )
    rng = np.random.default_rng(0)
    model.set_weights([1 + rng.random(each.shape) for each in model.get_weights()])
    return model


@LIBRARIES
@SAVED
def test_closed_variables_are_there_for_whoever_asks(
    library: Any, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"m{suffix}"
    model = network(library)
    model.compile("adam", "mse")
    model.fit(np.zeros((2, 8, 8, 3)), np.zeros((2, 2)), verbose=0)
    model.save(path)
    variables = contents_of(path).variables
    assert isinstance(variables, Later)
    known = {key.rpartition("/")[2] for key in variables.search(())}
    assert not any("kernel" in label for label in known)
    kernel = np.asarray(model.get_layer("conv").kernel)
    whole = {key: each for key, each in variables.items() if each.shape == kernel.shape}
    same = [key for key, each in whole.items() if np.array_equal(each.read(), kernel)]
    assert len(same) == 1
    assert np.array_equal(contents_of(path).variables[same[0]].read(), kernel)
    assert len(variables) == len(list(variables))
    if suffix == ".h5":
        assert list(variables) == list(Hdf5(LocalFile(str(path))).variables)


@LIBRARIES
@SAVED
@pytest.mark.parametrize("name", ["Dense", "Conv2D", "Add", "Dropout"])
def test_a_class_of_that_name_with_batch_norm_in_it_is_opened(
    library: Any, suffix: str, name: str, tmp_path: Path
) -> None:
    class Norm(library.layers.Layer):  # type: ignore[misc]
        def __init__(self, units: int = 3, **given: Any) -> None:
            super().__init__(**given)
            self.units = units
            self.norm = library.layers.BatchNormalization(name="inner")

        def build(self, shape: Any) -> None:
            self.norm.build(shape)
            self.built = True

        def call(self, x: Any) -> Any:
            return self.norm(x)

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "units": self.units}

    own = type(name, (Norm,), {"__module__": "ours"})
    model = network(library, own(name="ours"))
    model.save(tmp_path / f"m{suffix}")
    found = bnstat.load(tmp_path / f"m{suffix}")
    assert len(found) == 2
    inner = model.get_layer("ours").norm
    assert any(
        np.array_equal(layer.moving_variance, np.asarray(inner.moving_variance)) for layer in found
    )


def test_layers_inside_of_others_groups_are_found(tmp_path: Path) -> None:
    """A slash in a layer's name puts its group into that of another."""
    network(tf_keras, norm="conv/bn").save(tmp_path / "m.h5")
    assert [layer.name for layer in bnstat.load(tmp_path / "m.h5")] == ["conv/bn"]
