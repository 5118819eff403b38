"""Keras models of several files: unzipped `.keras` archives and sharded weights."""

from __future__ import annotations

from bnstat.formats.detection import Finder, StoredModel, require_native_reader, step_of, unnamed
from bnstat.formats.keras import INDEX, index_of_shard, is_keras_folder
from bnstat.storage.files import File, Folder


class Unzipped(Finder):
    """A folder with the members of a `.keras` file, as `zipped=False` saves it."""

    def model_of_folder(self, folder: Folder) -> StoredModel | None:
        if not is_keras_folder(folder):
            return None
        from bnstat.formats.keras.archive import open_folder

        return unnamed(
            lambda source, reading: open_folder(folder, require_native_reader(source, reading)),
            folder.times,
        )


class ShardedWeights(Finder):
    """The shards `NAME_00000.weights.h5`, ... and the index `NAME.weights.json`."""

    def model_in_file(self, folder: Folder, file: File) -> StoredModel | None:
        name = self.first(file.name)
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
            lambda: folder.times(index.name.removesuffix(INDEX) + "_"),
        )

    def first(self, name: str) -> str | None:
        return name if name.endswith(INDEX) else index_of_shard(name)
