"""Keras's own files: `.h5`, `.weights.h5`, `.keras`, and their configurations."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from bnstat.storage.files import Folder


CONFIG: Final = "config.json"
WEIGHTS: Final = ("model.weights.h5", "model.weights.json")
INDEX: Final = ".weights.json"
"""The ending of the file that lists the shards of large weights."""
_PICKLED: Final = "model.weights.npz"
_SHARD: Final = re.compile(r"(?P<name>.+)_\d{5}\.weights\.h5")


def index_of_shard(name: str) -> str | None:
    """Return the name of the index that lists a shard, or None if `name` is not a shard's."""
    match = _SHARD.fullmatch(name)
    return match["name"] + INDEX if match else None


def is_keras_folder(folder: Folder) -> bool:
    """Return True if a folder contains a Keras model's configuration and weights."""
    return bool(folder.file(CONFIG) and any(map(folder.file, (*WEIGHTS, _PICKLED))))
