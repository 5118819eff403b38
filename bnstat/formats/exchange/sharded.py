"""Safetensors and PyTorch files in several parts, as Hugging Face's libraries save large models.

The index tells in its `weight_map` which part has which tensor.

Source: transformers/modeling_utils.py, `save_pretrained`; huggingface_hub/serialization.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from bnstat.errors import DamagedError, NotFoundError, UnknownFormatError
from bnstat.formats.contents import Contents
from bnstat.formats.json_text import parse_json
from bnstat.model import Source, Variable
from bnstat.storage.files import File

_MAP: Final = "weight_map"


def open_sharded(index: File, source: Source) -> Contents:
    """Return the tensors that an index lists, from the parts beside it.

    Raises:
        DamagedError: the index or a part contradicts itself, or a part lacks what is listed.
        NotFoundError: a part is missing.
        BnstatError: a part is a link that leads out of the folder.
    """
    wanted: dict[str, list[str]] = {}
    for key, name in _weight_map(index).items():
        wanted.setdefault(name, []).append(key)
    variables: dict[str, Variable] = {}
    names: dict[str, str] = {}
    for name, keys in wanted.items():
        part = index.part(name)
        if part is None:
            raise NotFoundError(f"{index.path}: {name}", "this part of the model is missing")
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
