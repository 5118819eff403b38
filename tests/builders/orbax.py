"""Orbax checkpoints, laid out as Orbax 0.12 does. Their arrays are written by tensorstore."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Tree = Mapping[tuple[str, ...], np.ndarray]

FLAX = {
    ("params", "BatchNorm_0", "scale"): "gamma",
    ("params", "BatchNorm_0", "bias"): "beta",
    ("batch_stats", "BatchNorm_0", "mean"): "moving_mean",
    ("batch_stats", "BatchNorm_0", "var"): "moving_variance",
}
"""Path of a variable in Flax's tree -> role."""


def write_item(folder: Path, tree: Tree, layout: str = "ocdbt-zarr") -> Path:
    """Write an item of a checkpoint: the arrays of a tree, and its metadata."""
    import tensorstore

    store, driver = layout.split("-")
    folder.mkdir(parents=True)
    for path, array in tree.items():
        name = ".".join(path)
        place: Any = {"driver": "file", "path": f"{folder}/{name}/"}
        if store == "ocdbt":
            base = {"driver": "file", "path": f"{folder}/"}
            place = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        kind = {"dtype": tensorstore.dtype(array.dtype), "shape": array.shape}
        opened = tensorstore.open({"driver": driver, "kvstore": place}, create=True, **kind)
        opened.result().write(array).result()
    value = {"value_type": "np.ndarray", "skip_deserialize": False}
    keys = {path: [{"key": key, "key_type": 2} for key in path] for path in tree}
    metadata = {str(path): {"key_metadata": keys[path], "value_metadata": value} for path in tree}
    (folder / "_METADATA").write_text(json.dumps({"tree_metadata": metadata}))
    (folder / "_CHECKPOINT_METADATA").write_text("{}")
    return folder
