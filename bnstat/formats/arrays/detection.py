"""Models of several files: sharded safetensors and PyTorch, TensorFlow.js, distributed PyTorch.

Safetensors and PyTorch files may be split into `NAME-00001-of-00003.safetensors` and so on, with an
index `NAME.safetensors.index.json`. A TensorFlow.js model is a `model.json` with shards beside it.
torch.distributed.checkpoint writes `.metadata` and, for tensors that several machines hold, pieces
`__0_0.distcp`.

Sources: transformers/modeling_utils.py, `save_pretrained`; tfjs-core/src/io/types.ts.
"""

from __future__ import annotations

import re
from typing import Final

from bnstat.errors import UnsupportedError
from bnstat.formats.contents import Contents, Reading
from bnstat.formats.detection import (
    Finder,
    ModelSet,
    StoredModel,
    require_native_reader,
    step_of,
    unnamed,
)
from bnstat.model import Source
from bnstat.storage.files import File, Folder
from bnstat.text import MAX_JSON

_INDEX_NAME: Final = re.compile(r"(?P<stem>.+)(?P<ending>\.(?:safetensors|bin))\.index\.json")
_PART_NAME: Final = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}(?P<ending>\.(?:safetensors|bin))")

_SHARD: Final = re.compile(r"group\d+-shard\d+of\d+(\.bin)?")
_MODEL: Final = "model.json"

_DISTRIBUTED: Final = ".metadata"
_PIECE: Final = ".distcp"


class Sharded(Finder):
    """An index and its shards; the path of any of these files opens the model."""

    def model_in_file(self, folder: Folder, file: File) -> StoredModel | None:
        if (match := _PART_NAME.fullmatch(file.name)) is not None:
            index = folder.file(f"{match['stem']}{match['ending']}.index.json")
        else:
            match = _INDEX_NAME.fullmatch(file.name)
            index = file if match is not None else None
        if index is None or match is None or not _is_json_with(index, b'"weight_map"'):
            return None
        from bnstat.formats.arrays.safetensors import open_sharded

        stem = match["stem"]
        return StoredModel(
            index.name,
            step_of(stem),
            folder.modified(index.name),
            lambda source, reading: open_sharded(index, require_native_reader(source, reading)),
            lambda: folder.times(stem),
        )

    def first(self, name: str) -> str | None:
        if (match := _PART_NAME.fullmatch(name)) is not None:
            return f"{match['stem']}{match['ending']}.index.json"
        return name if _INDEX_NAME.fullmatch(name) else None


class TensorflowJs(Finder):
    """A JSON file of any name; the path of a shard opens the `model.json` beside it."""

    def model_in_file(self, folder: Folder, file: File) -> StoredModel | None:
        model = folder.file(_MODEL) if _SHARD.fullmatch(file.name) else file
        if model is None or not _is_json_with(model, b'"weightsManifest"'):
            return None
        from bnstat.formats.tfjs import open_model

        return StoredModel(
            model.name,
            step_of(model.name),
            folder.modified(model.name),
            lambda source, reading: open_model(model, require_native_reader(source, reading)),
            folder.times,
        )

    def first(self, name: str) -> str | None:
        return _MODEL if name == _MODEL or _SHARD.fullmatch(name) else None


class DistributedPyTorch(Finder):
    """A folder of torch.distributed.checkpoint, which is recognised but not read."""

    def owner(self, folder: Folder, file: File) -> ModelSet | Folder | None:
        is_part = file.name == _DISTRIBUTED or file.name.endswith(_PIECE)
        return folder if is_part and self.is_present_in(folder) else None

    def is_present_in(self, folder: Folder) -> bool:
        return folder.file(_DISTRIBUTED) is not None and bool(folder.matching("", _PIECE))

    def model_of_folder(self, folder: Folder) -> StoredModel | None:
        if not self.is_present_in(folder):
            return None

        def refuse(source: Source, reading: Reading) -> Contents:
            raise UnsupportedError(
                source.path,
                "is a distributed PyTorch checkpoint in pieces, which bnstat cannot read",
                "convert it to one file: python -m torch.distributed.checkpoint.format_utils "
                "dcp_to_torch FOLDER FILE",
            )

        return unnamed(refuse, folder.times)


def _is_json_with(file: File, word: bytes) -> bool:
    if file.size > MAX_JSON or not file.head(64).lstrip().startswith(b"{"):
        return False
    return word in file.read()
