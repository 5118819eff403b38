"""Remote Keras files are read as on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

import bnstat
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
