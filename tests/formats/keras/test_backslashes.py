"""Weights that Keras wrote on Windows before version 3, with backslashes in group names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import bnstat
from bnstat.model import ROLES
from tests.builders.oracle import assert_layers
from tests.formats.keras.files import layer, model, norm
from tests.fuzz import handmade

CONFIG = model(layer("Dense", "dense"), norm("bn"), model(norm("deep"), name="inner"))
LAYERS = ["layers", "_layer_checkpoint_dependencies"]


def _fill(file: Any, layers: str) -> None:
    for place in ("batch_normalization", rf"functional\{layers}\batch_normalization"):
        handmade.numbered(file, rf"{layers}\{place}/vars")
    file[f"{layers}\\dense/vars/0"] = np.ones((2, 3), "<f4")
    for place in ("metrics", "optimizer"):
        handmade.numbered(file, rf"{place}\mean/vars")
    file.create_group("vars")


@pytest.mark.parametrize("layers", LAYERS)
def test_an_archive_has_its_configured_layers(layers: str, tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    path.write_bytes(handmade.keras_archive(CONFIG, lambda file: _fill(file, layers)))
    model = bnstat.load(path)
    assert model.keys() == ["bn", "deep"]
    assert_layers(model, dict.fromkeys(model.keys(), handmade.values()))
    assert not [finding for finding in bnstat.check(model) if finding.rule == "BN011"]


@pytest.mark.parametrize("layers", LAYERS)
def test_layers_of_weights_have_the_same_names_as_on_linux(layers: str, tmp_path: Path) -> None:
    names = []
    for name, separator in (("windows", "\\"), ("linux", "/")):
        path = tmp_path / f"{name}.weights.h5"
        with h5py.File(path, "w") as file:
            handmade.numbered(file, f"{layers}{separator}batch_normalization/vars")
        model = bnstat.load(path)
        names += model.keys()
        assert_layers(model, {names[0]: handmade.values()})
    assert len(names) == 2


def test_an_architecture_matches_the_weights(tmp_path: Path) -> None:
    path, config = tmp_path / "m.weights.h5", tmp_path / "config.json"
    path.write_bytes(handmade.hdf5(lambda file: _fill(file, "layers")))
    config.write_text(json.dumps(CONFIG))
    model = bnstat.load(path, config=config)
    assert [layer.name for layer in model] == ["bn", "deep"]


def test_new_values_are_written_to_the_same_datasets(tmp_path: Path) -> None:
    path, copy = tmp_path / "m.keras", tmp_path / "copy.keras"
    path.write_bytes(handmade.keras_archive(CONFIG, lambda file: _fill(file, "layers")))
    values = {"bn": {"moving_mean": np.full(3, 7, "<f4")}}
    bnstat.apply(path, values, copy)
    assert bnstat.load(copy)["bn"].array(ROLES[2]).tolist() == [7, 7, 7]
