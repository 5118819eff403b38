"""Groups that stay closed, because a layer's class tells what is in them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

import bnstat
from bnstat.formats.keras import archive, h5, plain
from bnstat.formats.keras.config import Described, describe
from bnstat.model import ROLES
from tests.builders.keras_models import functional, randomised

LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras-3", "tf-keras"])
NEEDED: dict[str, tuple[Any, ...]] = {
    "Activation": ("relu",),
    "Concatenate": (),
    "Dense": (2,),
    "Dropout": (0.5,),
    "InputLayer": ((4, 4),),
    "Rescaling": (2.0,),
    "Reshape": ((16,),),
}
"""Class -> the arguments that it cannot do without, where they are not those of a convolution."""
MERGES = ("Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract")
HELD = {"kernel", "bias", "depthwise_kernel", "pointwise_kernel", "seed_generator_state"}


def made(library: ModuleType, name: str) -> Any:
    arguments = NEEDED.get(name, (2, 2) if name.startswith(("Conv", "Sep")) else ())
    if name.startswith(("Depthwise", "Average", "Max")) and name[-1] == "D":
        arguments = (2,)
    return getattr(library.layers, name)(*arguments)


def told(library: ModuleType, layer: Any, form: str) -> Described:
    """A layer as the configuration of a model in that form tells it."""
    serialize = library.saving.serialize_keras_object
    if form == ".h5":
        legacy = library.src.legacy.saving if library is keras else library.src.saving.legacy
        serialize = legacy.serialization.serialize_keras_object
    config = {"name": "net", "layers": [json.loads(json.dumps(serialize(layer), default=float))]}
    [found] = describe({"class_name": "Sequential", "config": config}, "")
    return found


@LIBRARIES
@pytest.mark.parametrize("form", [".h5", ".keras"])
@pytest.mark.parametrize("name", sorted(plain._ARGUMENTS))
def test_a_plain_layer_holds_kernels_and_biases(library: ModuleType, name: str, form: str) -> None:
    layer = made(library, name)
    assert plain.is_plain(told(library, layer, form))
    rank = int(found[1]) if (found := re.search(r"(\d)D", name)) else 1
    if not isinstance(layer, library.layers.InputLayer):
        ones = np.ones((2, *(4,) * rank, 4), np.float32)
        layer([ones, ones] if name in ("Concatenate", *MERGES) else ones)
    names = {weight.name.rpartition("/")[2].partition(":")[0] for weight in layer.weights}
    assert names <= HELD


@LIBRARIES
@pytest.mark.parametrize("form", [".h5", ".keras"])
@pytest.mark.parametrize("name", ["BatchNormalization", "LayerNormalization", "Normalization"])
def test_a_norm_is_not_plain(library: ModuleType, name: str, form: str) -> None:
    assert not plain.is_plain(told(library, getattr(library.layers, name)(), form))


def namesakes(library: ModuleType) -> list[Any]:
    """Layers of a program's own, called as Keras's, with batch norm in them."""
    layers = library.layers

    class Conv2D(layers.Layer):  # type: ignore[misc, name-defined]
        def __init__(self, filters: int = 4, **rest: Any) -> None:
            super().__init__(**rest)
            self.filters = filters
            self.inside = layers.Conv2D(filters, 1)
            self.norm = layers.BatchNormalization()

        def build(self, shape: Any) -> None:
            self.inside.build(shape)
            self.norm.build((*tuple(shape)[:-1], self.filters))
            self.built = True

        def call(self, x: Any) -> Any:
            return self.norm(self.inside(x))

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "filters": self.filters}

    class Add(Conv2D):
        pass

    return [Conv2D(name="first"), Add(name="second")]


def with_namesakes(library: ModuleType) -> Any:
    x = inputs = library.Input((6, 6, 3))
    x = library.layers.Conv2D(4, 1, activation="relu", name="conv")(x)
    for layer in namesakes(library):
        x = layer(x)
    x = library.layers.BatchNormalization(name="bn")(x)
    return randomised(library.Model(inputs, library.layers.Dense(2, name="dense")(x)))


def trained(library: ModuleType) -> Any:
    model = functional(library)
    model.compile("adam", "mse")
    model.fit(np.ones((2, 6, 6, 3), np.float32), np.ones((2, 2), np.float32), verbose=0)
    return model


def outcome(path: Path) -> Any:
    """All that a model tells, of a file and of what else is in it."""
    model = bnstat.load(path)
    layers = [*model, *model.incomplete]
    return (
        [
            (one.name, one.evidence, one.epsilon, one.momentum, one.axis, one.notes)
            for one in layers
        ],
        [
            None if (array := layer.array(role)) is None else (array.dtype, array.tobytes())
            for layer in layers
            for role in ROLES
        ],
        model.notes,
        model.explain(),
        [(key, each.name, each.shape, each.read().tobytes()) for key, each in model.stored.items()],
    )


@pytest.mark.slow
@LIBRARIES
@pytest.mark.parametrize("form", [".h5", ".keras", ".weights.h5"])
@pytest.mark.parametrize("build", [trained, with_namesakes])
def test_closed_groups_change_nothing(
    library: ModuleType, form: str, build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"m{form}"
    model = build(library)
    model.save_weights(path) if form == ".weights.h5" else model.save(path)
    found = outcome(path)
    monkeypatch.setattr(h5, "is_plain", lambda layer: False)
    monkeypatch.setattr(archive, "is_plain", lambda layer: False)
    assert len(found[0]) >= 3
    assert outcome(path) == found


def test_an_activation_may_be_a_layer() -> None:
    config = {"name": "a", "activation": {"class_name": "Mine", "config": {}}}
    serialized = {"class_name": "Activation", "module": "keras.layers", "config": config}
    model = {"class_name": "Sequential", "config": {"layers": [serialized]}}
    [layer] = describe(model, "")
    assert not plain.is_plain(layer)
