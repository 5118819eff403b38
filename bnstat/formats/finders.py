"""Finders of models that consist of several files.

- Safetensors and PyTorch: `NAME-00001-of-00003.safetensors`, ... and an index
  `NAME.safetensors.index.json`.
- Keras: `NAME_00000.weights.h5`, ... and an index `NAME.weights.json`; or the members of a
  `.keras` as files, by `save(..., zipped=False)`.
- TensorFlow.js: a `model.json` with shards beside it; before version 1.0, a
  `weights_manifest.json` in place of the `model.json`, and a graph in `tensorflowjs_model.pb`.
- torch.distributed.checkpoint: `__0_0.distcp`, ... and `.metadata`.

Sources: transformers/modeling_utils.py, `save_pretrained`; keras/src/saving/saving_lib.py;
tfjs-core/src/io/types.ts; tensorflowjs/converters/tf_saved_model_conversion.py of
tfjs-converter 0.8.0.
"""

from __future__ import annotations

import re
from typing import Final

from bnstat.errors import NotFoundError, UnsupportedError
from bnstat.formats.contents import Contents, Reading
from bnstat.formats.detection import (
    Finder,
    ModelSet,
    StoredModel,
    imported,
    is_json_with,
    sorted_by_age,
    step_of,
)
from bnstat.formats.keras import INDEX, index_of_shard, is_keras_folder
from bnstat.model import Source
from bnstat.storage.files import File, Folder

_PART: Final = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}(?P<ending>\.(safetensors|bin))")
_PARTS_INDEX: Final = re.compile(r"(?P<stem>.+)\.(safetensors|bin)\.index\.json")

_SHARD: Final = re.compile(r"group\d+-shard\d+of\d+(\.bin)?")
_MODEL: Final = "model.json"
GRAPH: Final = "tensorflowjs_model.pb"
"""The name of the graph of a TensorFlow.js model before version 1.0."""
_MANIFEST: Final = "weights_manifest.json"

_DISTRIBUTED: Final = ".metadata"
_PIECE: Final = ".distcp"


class _Indexed(Finder):
    """Finds models that have an index of their files; the path of any of them opens the model.

    Attributes:
        marks: byte strings that every index contains.
        opener: the dotted name, below `bnstat.formats`, of the function that opens an index.
    """

    marks: tuple[bytes, ...]
    opener: str

    def index_of(self, name: str) -> str | None:
        return self.first(name)

    def prefix(self, index: str) -> str:
        """Return the prefix that all file names of an index's model have in common."""
        return ""

    def model_in_file(self, folder: Folder, file: File) -> StoredModel | None:
        name = self.index_of(file.name)
        if name is None:
            return None
        index = file if name == file.name else folder.file(name)
        if index is None or not is_json_with(index, *self.marks):
            return None
        return StoredModel(
            lambda source, _: imported(self.opener)(index, source),
            name,
            step_of(name),
            folder.modified(name),
            lambda: folder.times(self.prefix(name)),
        )


class Sharded(_Indexed):
    """Finds sharded safetensors and PyTorch models."""

    marks = (b'"weight_map"',)
    opener = "arrays.safetensors.open_sharded"

    def first(self, name: str) -> str | None:
        if (part := _PART.fullmatch(name)) is not None:
            return f"{part['stem']}{part['ending']}.index.json"
        return name if _PARTS_INDEX.fullmatch(name) else None

    def prefix(self, index: str) -> str:
        return _PARTS_INDEX.sub(r"\g<stem>", index)


class ShardedWeights(_Indexed):
    """Finds sharded weights of Keras models."""

    marks = (b'"weight_map"', b'.h5"')
    opener = "keras.weights.open_contents"

    def first(self, name: str) -> str | None:
        return name if name.endswith(INDEX) else index_of_shard(name)

    def prefix(self, index: str) -> str:
        return index.removesuffix(INDEX) + "_"


class TensorflowJs(_Indexed):
    """Finds TensorFlow.js models; the path of a shard opens the `model.json` beside the shard."""

    marks = (b'"weightsManifest"',)
    opener = "tfjs.open_model"

    def first(self, name: str) -> str | None:
        return _MODEL if name == _MODEL or _SHARD.fullmatch(name) else None

    def index_of(self, name: str) -> str | None:
        return self.first(name) or name


class EarlyTensorflowJs(_Indexed):
    """Finds TensorFlow.js models from before version 1.0; the path of any file opens the model."""

    marks = (b'"paths"', b'"weights"')
    opener = "tfjs.open_manifest"

    def first(self, name: str) -> str | None:
        return _MANIFEST if name in (GRAPH, _MANIFEST) else None

    def model_in_file(self, folder: Folder, file: File) -> StoredModel | None:
        if file.name != GRAPH or folder.file(_MANIFEST) is not None:
            return super().model_in_file(folder, file)

        def refuse(source: Source, reading: Reading) -> Contents:
            problem = f"its weights are missing: there is no {_MANIFEST} beside it"
            raise NotFoundError(file.path, problem, "copy or download all files of the model")

        return StoredModel(refuse, GRAPH, None, folder.modified(GRAPH))

    def owner(self, folder: Folder, file: File) -> ModelSet | None:
        """Return the model of a shard; None if there is a `model.json` that may list the shard."""
        manifest = folder.file(_MANIFEST) if _SHARD.fullmatch(file.name) else None
        if manifest is None or folder.file(_MODEL) is not None:
            return None
        model = self.model_in_file(folder, manifest)
        return None if model is None else sorted_by_age([model])


class Unzipped(Finder):
    """Finds folders that contain the members of a `.keras` file."""

    def model_of_folder(self, folder: Folder) -> StoredModel | None:
        if not is_keras_folder(folder):
            return None
        open_folder = imported("keras.v3.open_folder")
        return StoredModel(lambda source, _: open_folder(folder, source), times=folder.times)


class DistributedPyTorch(Finder):
    """Finds folders of torch.distributed.checkpoint, which are recognised but not read."""

    def owner(self, folder: Folder, file: File) -> ModelSet | Folder | None:
        is_part = file.name == _DISTRIBUTED or file.name.endswith(_PIECE)
        return folder if is_part and self.is_present_in(folder) else None

    def is_present_in(self, folder: Folder) -> bool:
        return folder.file(_DISTRIBUTED) is not None and bool(folder.matching("", _PIECE))

    def model_of_folder(self, folder: Folder) -> StoredModel | None:
        def refuse(source: Source, reading: Reading) -> Contents:
            what = "bnstat does not read distributed PyTorch checkpoints"
            command = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE"
            raise UnsupportedError(source.path, what, f"convert it to one file: {command}")

        return StoredModel(refuse, times=folder.times) if self.is_present_in(folder) else None
