"""Safetensors and PyTorch files in several parts, as Hugging Face's libraries save large models.

`NAME.safetensors.index.json` (or `NAME.bin.index.json`) tells in its `weight_map` which of
`NAME-00001-of-00003.safetensors`, ... has which tensor.

Source: transformers/modeling_utils.py, `save_pretrained`; huggingface_hub/serialization.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from bnstat.errors import DamagedError, NotFoundError, UnknownFormatError
from bnstat.formats.contents import Contents
from bnstat.formats.keras.config import MAX_BYTES, parse_json
from bnstat.formats.sites import Format, Found, natively, step_of
from bnstat.model import Source, Variable
from bnstat.storage.files import File, Folder

_INDEX: Final = re.compile(r"(?P<stem>.+)(?P<ending>\.(?:safetensors|bin))\.index\.json")
_PART: Final = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}(?P<ending>\.(?:safetensors|bin))")
_MAP: Final = "weight_map"


class Sharded(Format):
    """An index and its parts; each of them stands for the model."""

    def in_file(self, folder: Folder, file: File) -> Found | None:
        if (match := _PART.fullmatch(file.name)) is not None:
            index = folder.file(f"{match['stem']}{match['ending']}.index.json")
        else:
            match = _INDEX.fullmatch(file.name)
            index = file if match is not None else None
        if index is None or match is None or not _is_index(index):
            return None
        stem = match["stem"]
        return Found(
            index.name,
            step_of(stem),
            folder.modified(index.name),
            lambda source, reading: open_sharded(folder, index, natively(source, reading)),
            lambda: folder.times(stem),
        )

    def first(self, name: str) -> str | None:
        if (match := _PART.fullmatch(name)) is not None:
            return f"{match['stem']}{match['ending']}.index.json"
        return name if _INDEX.fullmatch(name) else None


def _is_index(file: File) -> bool:
    return file.size <= MAX_BYTES and f'"{_MAP}"'.encode() in file.read()


def open_sharded(folder: Folder, index: File, source: Source) -> Contents:
    """The tensors that an index lists, from the parts beside it.

    Raises:
        DamagedError: the index or a part contradicts itself, or a part lacks what is listed.
        NotFoundError: a part is missing.
    """
    wanted: dict[str, list[str]] = {}
    for key, name in _weight_map(index).items():
        wanted.setdefault(name, []).append(key)
    variables: dict[str, Variable] = {}
    names: dict[str, str] = {}
    for name, keys in wanted.items():
        part = folder.file(name) if "/" not in name and "\\" not in name else None
        if part is None:
            raise NotFoundError(f"{folder.path}/{name}", "this part of the model is missing")
        held = _open(part, source)
        source = replace(held.source, writer=source.writer or held.source.writer)
        for key in keys:
            if key not in held.variables:
                raise DamagedError(part.path, f"has no {key}, which {index.name} says it has")
            variables[key] = held.variables[key]
            names[key] = held.name_of(key)
    return Contents(source, variables, names=names)


def _open(part: File, source: Source) -> Contents:
    from bnstat.formats.exchange import safetensors
    from bnstat.formats.exchange.pytorch import file as pytorch

    part.refuse_lfs_pointer()
    if safetensors.recognises(part):
        return safetensors.open_contents(part, source)
    if pytorch.recognises(part):
        return pytorch.open_contents(part, source)
    raise UnknownFormatError(part.path, "is neither a safetensors nor a PyTorch file")


def _weight_map(index: File) -> Mapping[str, str]:
    parsed: Any = parse_json(index.read(), index.path)
    entries = parsed.get(_MAP) if isinstance(parsed, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(n, str) for n in entries.values()):
        raise DamagedError(index.path, f"its {_MAP} does not tell the part of each tensor")
    return entries
