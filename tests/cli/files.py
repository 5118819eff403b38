"""Model files made by hand, for tests of commands."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from bnstat.model import BatchNorm


def write_h5(path: Path, *layers: BatchNorm) -> str:
    """Write layers as a weights-only Keras 2 file, and return its path."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        for layer in layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{role}:0" for role in layer.variables]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, role in zip(names, layer.variables, strict=True):
                group.create_dataset(name, data=np.asarray(layer.array(role)))
    return str(path)
