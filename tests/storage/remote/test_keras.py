"""Remote Keras files: most layers are not fetched until they are requested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

import bnstat
from bnstat.compare import diff
from tests.builders.keras_models import FUNCTIONAL, functional, randomised
from tests.builders.server import Server
from tests.storage.remote.test_http import same

LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras-3", "tf-keras"])
LARGE = 60_000
"""Numbers in one kernel, so that a file is not fetched whole."""


@LIBRARIES
@pytest.mark.parametrize("form", [".h5", ".keras", ".weights.h5"])
def test_a_model_is_the_same_as_on_disk(
    server: Server, library: Any, form: str, tmp_path: Path
) -> None:
    model = functional(library)
    top = library.layers.Dense(LARGE // 2, name="large")(model.output)
    model = randomised(library.Model(model.input, top))
    path = tmp_path / f"m{form}"
    model.save_weights(path) if form == ".weights.h5" else model.save(path)
    far, near = bnstat.load(f"{server.url}/{path.name}", eager=True), bnstat.load(path)
    same(far, near)
    assert len(far) == len(FUNCTIONAL)
    assert [layer.evidence for layer in far] == [layer.evidence for layer in near]
    assert far.explain() == near.explain()
    assert list(far.stored) == list(near.stored)
    for key, variable in near.stored.items():
        np.testing.assert_array_equal(far.stored[key].read(), variable.read())


@LIBRARIES
@pytest.mark.parametrize("form", [".h5", ".keras"])
def test_folded_layers_are_found_in_the_kernels(
    server: Server, library: Any, form: str, tmp_path: Path
) -> None:
    layers = library.layers

    def network(folded: bool) -> Any:
        x = inputs = library.Input((8, 8, 3))
        for index in range(2):
            x = layers.Conv2D(8, 3, use_bias=folded or index == 1, name=f"conv_{index}")(x)
            if not folded or index == 1:
                x = layers.BatchNormalization(name=f"bn_{index}")(x)
        x = layers.Dense(LARGE // 8, name="large")(x)
        return randomised(library.Model(inputs, x))

    old, new = network(False), network(True)
    norm, conv = old.get_layer("bn_0"), old.get_layer("conv_0")
    gamma, beta, mean, variance = (np.asarray(array) for array in norm.get_weights())
    scale = gamma / np.sqrt(variance + norm.epsilon)
    for layer in new.layers:
        if layer.weights and layer.name != "conv_0":
            layer.set_weights(old.get_layer(layer.name).get_weights())
    kernel = conv.get_weights()[0] * scale
    new.get_layer("conv_0").set_weights([kernel, beta - mean * scale])
    paths = [tmp_path / f"{name}{form}" for name in ("old", "new")]
    for model, path in zip((old, new), paths, strict=True):
        model.save(path)
    near = diff(*(bnstat.load(path) for path in paths))
    far = diff(*(bnstat.load(f"{server.url}/{path.name}", eager=True) for path in paths))
    assert [one.layer for one in far.folded] == ["bn_0"]
    assert (far.folded, far.misfolded) == (near.folded, near.misfolded)
    assert [layer.new for layer in far.layers] == [layer.new for layer in near.layers] == ["bn_1"]
