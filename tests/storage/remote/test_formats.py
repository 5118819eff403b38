"""Archives, Keras files and real model files, from a web server as from disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

import bnstat
from bnstat.model import ROLES
from tests.builders.keras_models import FUNCTIONAL, functional, randomised
from tests.builders.server import Server, serving
from tests.storage.remote.conftest import DATA
from tests.storage.remote.test_http import same

LARGEST = 60_000_000


@pytest.mark.parametrize("form", ["zip", "tar", "gztar"])
def test_an_archive(server: Server, form: str) -> None:
    archive = shutil.make_archive(str(server.folder / "m"), form, DATA / "saved_model")
    far = bnstat.load(f"{server.url}/{Path(archive).name}", eager=True)
    same(far, bnstat.load(archive))
    assert len(server.asked) <= 12


@pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras-3", "tf-keras"])
@pytest.mark.parametrize("form", [".h5", ".keras", ".weights.h5"])
def test_keras_models(server: Server, library: Any, form: str, tmp_path: Path) -> None:
    model = functional(library)
    # One kernel is so large that the file is not fetched whole.
    top = library.layers.Dense(30_000, name="large")(model.output)
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


def outcome(path: str | Path) -> object:
    """The arrays of a model's layers, or the kind of the error."""
    try:
        model = bnstat.load(path, eager=True)
    except bnstat.BnstatError as error:
        return type(error)
    return {
        (layer.name, role): None if (array := layer.array(role)) is None else array.tobytes()
        for layer in model
        for role in ROLES
    }


def test_files_from_the_wild(real: Path) -> None:
    pytest.importorskip("aiohttp", reason="the driver for https:// is not installed")
    compared = 0
    with serving(real) as server:
        for path in sorted(real.rglob("*")):
            if path.is_file() and path.stat().st_size < LARGEST:
                name = path.relative_to(real).as_posix()
                assert outcome(f"{server.url}/{name}") == outcome(path), name
                compared += 1
    assert compared > 20
