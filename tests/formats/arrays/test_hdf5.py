"""HDF5 files of named arrays that Keras did not write."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

import bnstat
from bnstat.model import ROLES


def write(path: Path, scopes: tuple[str, ...], key: str = "{}/{}", **options: object) -> Path:
    with h5py.File(path, "w") as file:
        for seed, scope in enumerate(scopes):
            random = np.random.default_rng(seed)
            for role in ROLES:
                data = random.random(5, np.float32)
                file.create_dataset(key.format(scope, role), data=data, **options)
        file["dense/kernel"] = np.ones((2, 2))
        file["norm/gamma"], file["norm/beta"] = np.ones(3), np.ones(3)
        file["about"] = "written by hand"
    return path


@pytest.mark.parametrize("key", ["{}/{}", "{}/{}:0", "{}_{}", "params/{}/{}"])
@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}], ids=["plain", "gzip"])
def test_layers_by_name(tmp_path: Path, key: str, options: dict[str, object]) -> None:
    path = write(tmp_path / "arrays.h5", ("bn1", "bn10", "bn2"), key, **options)
    model = bnstat.load(path)
    assert model.source.format == "hdf5"
    assert [layer.name.rpartition("/")[2] for layer in model] == ["bn1", "bn2", "bn10"]
    with h5py.File(path) as file:
        for layer in model:
            assert set(layer.variables) == set(ROLES)
            for role in ROLES:
                stored = file[layer.variables[role].key][:]
                assert layer.array(role).tobytes() == stored.tobytes()  # type: ignore[union-attr]
    assert not model.incomplete
