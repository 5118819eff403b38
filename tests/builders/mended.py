"""New values for the layers of a model, and a comparison of two models byte by byte."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnstat.model import Model

NewValues = dict[str, dict[str, NDArray[np.generic]]]


def new_values(model: Model, seed: int = 11) -> NewValues:
    """Return random arrays for all roles; the same array for layers that share a variable."""
    random = np.random.default_rng(seed)
    by_key: dict[str, NDArray[np.generic]] = {}
    values: NewValues = {}
    for layer in model:
        for role, variable in layer.variables.items():
            old = np.asarray(layer.array(role))
            if variable.key not in by_key:
                # Values of float16 are exact in every dtype of the tests.
                fresh = random.uniform(0.5, 2.0, old.shape).astype(np.float16)
                by_key[variable.key] = fresh.astype(old.dtype)
            values.setdefault(layer.name, {})[role] = by_key[variable.key]
    return values


def assign(layers: Iterable[Any], values: Mapping[str, Mapping[str, Any]]) -> None:
    for layer in layers:
        for role, array in values.get(layer.name, {}).items():
            getattr(layer, role).assign(array)


Spans = set[int]
"""The offsets of bytes."""


def files(path: Path) -> dict[str, Path]:
    """Return the files of a folder or prefix by the rest of their name; a single file by `""`."""
    if path.is_dir():
        found = (file for file in path.rglob("*") if file.is_file())
        return {file.relative_to(path).as_posix(): file for file in found}
    return {file.name[len(path.name) :]: file for file in path.parent.glob(f"{path.name}*")}


def differing(original: Path, copy: Path) -> dict[str, Spans]:
    """Return file -> offsets of different bytes. Both models have the same files and sizes."""
    left, right = files(original), files(copy)
    assert set(left) == set(right)
    by_file = {}
    for name in left:
        old, new = (np.frombuffer(side[name].read_bytes(), np.uint8) for side in (left, right))
        assert old.size == new.size, name
        if offsets := set(np.flatnonzero(old != new).tolist()):
            by_file[name] = offsets
    return by_file


def held(model: Model, names: Iterable[str] | None = None) -> dict[str, Spans]:
    """Return name of a file -> offsets of the values of a model's layers."""
    by_file: dict[str, Spans] = {}
    for layer in model:
        if names is None or layer.name in names:
            for variable in layer.variables.values():
                for extent in variable.extents():
                    offsets = range(extent.offset, extent.offset + extent.length)
                    by_file.setdefault(extent.file.name, set()).update(offsets)
    return by_file
