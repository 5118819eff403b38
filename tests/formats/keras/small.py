"""Keras files with one batch norm each, which tests modify."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bnstat.model import ROLES
from tests.formats.keras.files import batch_norms, contents_of

VARS = "layers/batch_normalization/vars"
LAYER = {
    "class_name": "BatchNormalization",
    "config": {"name": "bn", "scale": True, "center": True, "epsilon": 0.5, "momentum": 0.9},
}


def write_weights(path: Path, change: Callable[[h5py.File], None] = lambda _: None) -> Path:
    """Write a `.weights.h5` with one batch norm of three channels."""
    with h5py.File(path, "w") as file:
        holder = file.create_group(VARS)
        holder.attrs["name"] = "bn"
        for index in range(4):
            holder[str(index)] = np.full(3, index, np.float32)
        change(file)
    return path


def write_h5(path: Path, layers: object = (LAYER,), **attributes: object) -> Path:
    """Write a whole model in Keras's first HDF5 format, with one batch norm."""
    with h5py.File(path, "w") as file:
        config = {"class_name": "Sequential", "config": {"name": "net", "layers": layers}}
        file.attrs["model_config"] = json.dumps(config)
        for name, value in attributes.items():
            file.attrs[name] = value
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = ["bn"]
        for index, label in enumerate(("gamma", "beta", "moving_mean", "moving_variance")):
            group[f"bn/bn/{label}:0"] = np.full(3, index, np.float32)
    return path


def write_archive(path: Path, **members: bytes) -> Path:
    """Write a `.keras` with one batch norm; `members` replace its files."""
    weights = write_weights(path.with_suffix(".h5")).read_bytes()
    config = json.dumps({"class_name": "Sequential", "config": {"layers": [LAYER]}})
    contents = {
        "metadata.json": b'{"keras_version": "3.0.0"}',
        "config.json": config.encode(),
        "model.weights.h5": weights,
    } | {name.replace("__", "."): data for name, data in members.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


def read_all(path: Path) -> dict[str, list[Any]]:
    """Return every array of every batch-norm layer."""
    contents = contents_of(path)
    return {
        name: [
            contents.variables[layer.roles[role]].read().tolist()
            for role in ROLES
            if role in layer.roles
        ]
        for name, layer in batch_norms(contents).items()
    }


WHOLE = {"bn": [[float(index)] * 3 for index in range(4)]}
