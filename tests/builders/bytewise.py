"""Which bytes of two models' files differ."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bnstat.model import Model

Spans = set[int]
"""The offsets of bytes."""


def files(path: Path) -> dict[str, Path]:
    """All files in a folder, or of a prefix, by what follows; a single file under `""`."""
    if path.is_dir():
        found = (one for one in path.rglob("*") if one.is_file())
        return {one.relative_to(path).as_posix(): one for one in found}
    siblings = path.parent.glob(f"{path.name}*")
    return {one.name[len(path.name) :]: one for one in siblings}


def differing(original: Path, copy: Path) -> dict[str, Spans]:
    """File -> offsets at which the copy has another byte; both have the same files and sizes."""
    left, right = files(original), files(copy)
    assert set(left) == set(right)
    found = {}
    for name in left:
        old, new = (np.frombuffer(side[name].read_bytes(), np.uint8) for side in (left, right))
        assert old.size == new.size, name
        if offsets := set(np.flatnonzero(old != new).tolist()):
            found[name] = offsets
    return found


def held(model: Model, names: Iterable[str] | None = None) -> dict[str, Spans]:
    """Name of a file -> offsets at which the model's layers have their values."""
    found: dict[str, Spans] = {}
    for layer in model:
        if names is None or layer.name in names:
            for variable in layer.variables.values():
                for place in variable.extents():
                    offsets = range(place.offset, place.offset + place.length)
                    found.setdefault(place.file.name, set()).update(offsets)
    return found
