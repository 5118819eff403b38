"""Where Keras's models lie, but for those that are a single file."""

from __future__ import annotations

import re
from typing import Final

from bnstat.formats.detection import Format, StoredModel, require_native_reader, step_of, unnamed
from bnstat.storage.files import File, Folder

CONFIG: Final = "config.json"
WEIGHTS: Final = ("model.weights.h5", "model.weights.json")
_PICKLED: Final = "model.weights.npz"
_SHARD: Final = re.compile(r"(?P<name>.+)_\d{5}\.weights\.h5")
_INDEX: Final = ".weights.json"


class Unzipped(Format):
    """A folder with what a `.keras` holds, as `zipped=False` saves it."""

    def model_of_folder(self, folder: Folder) -> StoredModel | None:
        if not is_keras_folder(folder):
            return None
        from bnstat.formats.keras.archive import open_folder

        return unnamed(
            lambda source, reading: open_folder(folder, require_native_reader(source, reading)),
            folder.times,
        )


class ShardedWeights(Format):
    """The files `NAME_00000.weights.h5`, ... and `NAME.weights.json`, which lists them."""

    def model_in_file(self, folder: Folder, file: File) -> StoredModel | None:
        name = file.name if file.name.endswith(_INDEX) else index_of_shard(file.name)
        index = folder.file(name) if name is not None else None
        if index is None:
            return None
        from bnstat.formats.keras.weights import matches, open_contents

        if not matches(index):
            return None
        return StoredModel(
            index.name,
            step_of(index.name),
            folder.modified(index.name),
            lambda source, reading: open_contents(index, require_native_reader(source, reading)),
            lambda: folder.times(index.name.removesuffix(_INDEX) + "_"),
        )

    def first(self, name: str) -> str | None:
        return name if name.endswith(_INDEX) else index_of_shard(name)


def index_of_shard(name: str) -> str | None:
    """The name of the index that a shard of that name belongs to; None where it is no shard's."""
    match = _SHARD.fullmatch(name)
    return match["name"] + _INDEX if match else None


def is_keras_folder(folder: Folder) -> bool:
    """Whether a folder holds a Keras model's configuration and weights."""
    return folder.file(CONFIG) is not None and any(
        folder.file(name) is not None for name in (*WEIGHTS, _PICKLED)
    )
