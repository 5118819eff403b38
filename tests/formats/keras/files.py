"""Keras files with one batch norm each, which tests modify, and how to read Keras files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bnstat.discovery.configuration import from_layers
from bnstat.discovery.merge import Sighting
from bnstat.formats.contents import Contents
from bnstat.model import ROLES, Source
from bnstat.storage.local import LocalFile
from tests.fuzz import handmade

FORMATS = ("keras.h5", "keras.weights", "keras.v3")
VARS = "layers/batch_normalization/vars"
LABELS = tuple(f"{role}:0" for role in ROLES)
WHOLE = {"bn": [array.tolist() for array in handmade.values().values()]}


def recognised_by(path: Path) -> list[str]:
    file = LocalFile(path)
    return [name for name in FORMATS if import_module(f"bnstat.formats.{name}").matches(file)]


def contents_of(path: Path) -> Contents:
    """Read a file by the only format that recognises it."""
    [name] = recognised_by(path)
    module = import_module(f"bnstat.formats.{name}")
    return module.open_contents(LocalFile(path), Source(str(path), ""))


def batch_norms(contents: Contents) -> dict[str, Sighting]:
    """Return the batch-norm layers by their longer names, in their order."""
    sightings = from_layers(contents)
    assert len({sighting.longer_name for sighting in sightings}) == len(sightings)
    for sighting in sightings:
        assert f"/{sighting.longer_name}".endswith(f"/{sighting.name}")
    return {sighting.longer_name: sighting for sighting in sightings}


def read_all(path: Path) -> dict[str, list[Any]]:
    contents = contents_of(path)
    return {
        name: [contents.variables[key].read().tolist() for key in layer.roles.values()]
        for name, layer in batch_norms(contents).items()
    }


def layer(class_name: str, name: str, **config: object) -> dict[str, Any]:
    return {"class_name": class_name, "config": {"name": name, "trainable": True, **config}}


def norm(name: str = "bn", **config: object) -> dict[str, Any]:
    settings = {"scale": True, "center": True, "epsilon": 0.5, "momentum": 0.9, "axis": [3]}
    return layer("BatchNormalization", name, **{**settings, **config})


def model(*layers: object, kind: str = "Functional", name: str = "net", **more: object) -> Any:
    return {"class_name": kind, "config": {"name": name, "layers": [*layers], **more}}


def write_weights(path: Path, change: Callable[[Any], None] = lambda _: None) -> Path:
    """Write a `.weights.h5` with one batch norm."""
    with h5py.File(path, "w") as file:
        handmade.numbered(file, VARS).attrs["name"] = "bn"
        change(file)
    return path


def scoped(scope: str, labels: Sequence[str] = LABELS) -> list[str]:
    return [f"{scope}/{label}" for label in labels]


def write_h5(
    path: Path,
    config: object = model(norm()),
    groups: Mapping[str, Sequence[str]] = {"bn": scoped("bn")},
    **attributes: object,
) -> Path:
    """Write weights in Keras's first HDF5 format; with a configuration, a whole model."""
    with h5py.File(path, "w") as file:
        file.attrs.update(attributes)
        root = file
        if config is not None:
            file.attrs["model_config"] = config if isinstance(config, str) else json.dumps(config)
            root = file.create_group("model_weights")
        root.attrs["layer_names"] = np.array(list(groups), "S")
        for name, weights in groups.items():
            group = root.create_group(name)
            group.attrs["weight_names"] = np.array(weights, "S")
            for weight, array in zip(weights, 9 * [*handmade.values().values()], strict=False):
                group[weight] = array
    return path


def write_archive(path: Path, **members: bytes) -> Path:
    """Write a `.keras` with one batch norm; `members` replace its files."""
    contents = {
        "metadata.json": b'{"keras_version": "3.0.0"}',
        "config.json": json.dumps(model(norm())).encode(),
        "model.weights.h5": write_weights(path.with_suffix(".h5")).read_bytes(),
    } | {name.replace("__", "."): data for name, data in members.items()}
    path.write_bytes(handmade.zipped([*contents.items()]))
    return path
