"""Where models of TensorFlow.js lie: a `model.json`, its shards beside it."""

from __future__ import annotations

import re
from typing import Final

from bnstat.formats.keras.config import MAX_BYTES
from bnstat.formats.sites import Format, Found, natively, step_of
from bnstat.storage.files import File, Folder

_SHARD: Final = re.compile(r"group\d+-shard\d+of\d+(\.bin)?")
_MODEL: Final = "model.json"


class TensorflowJs(Format):
    """The JSON file, whatever its name; a shard stands for the `model.json` beside it."""

    def in_file(self, folder: Folder, file: File) -> Found | None:
        model = folder.file(_MODEL) if _SHARD.fullmatch(file.name) else file
        if model is None or not _is_model(model):
            return None
        from bnstat.formats.exchange.tfjs.contents import open_model

        return Found(
            model.name,
            step_of(model.name),
            folder.modified(model.name),
            lambda source, reading: open_model(folder, model, natively(source, reading)),
            folder.times,
        )

    def first(self, name: str) -> str | None:
        return _MODEL if name == _MODEL or _SHARD.fullmatch(name) else None


def _is_model(file: File) -> bool:
    if not file.head(64).lstrip().startswith(b"{") or file.size > MAX_BYTES:
        return False
    return b'"weightsManifest"' in file.read()
