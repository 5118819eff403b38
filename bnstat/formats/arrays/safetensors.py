"""Safetensors: a length, a JSON header, then the tensors' bytes.

    u64 length of the header, little-endian
    {"NAME": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}, ...,
     "__metadata__": {"format": "pt"}}
    bytes, to which the offsets count from the header's end

Source: https://github.com/huggingface/safetensors, "Format".

Safetensors and PyTorch files in several parts, as Hugging Face's libraries save large models.

The index tells in its `weight_map` which part has which tensor.

Source: transformers/modeling_utils.py, `save_pretrained`; huggingface_hub/serialization.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import DamagedError, NotFoundError, UnknownFormatError
from bnstat.formats.contents import Contents
from bnstat.formats.dtypes import (
    SAFETENSORS,
    bytes_needed,
    extents,
    find_dtype,
    from_little_endian,
    numpy_dtype,
)
from bnstat.formats.json_text import MAX_BYTES, parse_json
from bnstat.model import Source, Variable
from bnstat.storage.files import File

_WRITERS: Final = {"pt": "PyTorch", "tf": "TensorFlow", "flax": "Flax", "np": "NumPy", "mlx": "MLX"}
_METADATA: Final = "__metadata__"
_MOST_DIMS: Final = 32


def matches(file: File) -> bool:
    """Whether the file begins with a length and JSON of that length, or did before it was cut."""
    head = file.head(9)
    return len(head) == 9 and head[8:] == b"{" and 2 <= _length(head) <= MAX_BYTES


def open_contents(file: File, source: Source) -> Contents:
    """The tensors of a file that `matches`, by their names.

    Raises:
        DamagedError: the file is truncated, or its header contradicts itself.
    """
    header, start = read_header(file)
    metadata = header.pop(_METADATA, None)
    told = metadata.get("format") if isinstance(metadata, dict) else None
    variables = {name: variable(file, start, name, entry) for name, entry in header.items()}
    lengths = (end - begin for begin, end in (entry["data_offsets"] for entry in header.values()))
    if sum(lengths) > file.size - start:
        raise DamagedError(file.path, "its tensors overlap", "save it again with safetensors")
    return Contents(
        replace(
            source,
            format="safetensors",
            writer=_WRITERS.get(told) if isinstance(told, str) else None,
        ),
        variables,
    )


def read_header(file: File) -> tuple[dict[str, Any], int]:
    """The header, and the offset at which the tensors' bytes begin.

    Raises:
        DamagedError: it is cut short, or is no JSON object.
    """
    length = _length(file.head(8))
    header = parse_json(file.read(8, min(length, MAX_BYTES + 1)), file.path)
    if not isinstance(header, dict):
        raise DamagedError(file.path, "its header is no JSON object")
    return header, 8 + length


def variable(file: File, start: int, name: str, entry: object) -> Variable:
    """The tensor that an entry of the header describes.

    Args:
        file: the file.
        start: where the tensors' bytes begin.
        name: the tensor's name.
        entry: its entry.

    Raises:
        DamagedError: the entry is incomplete, or the file is too short for it.
    """
    where = f"{file.path}: {name}"
    fields: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    kind = fields.get("dtype")
    shape, offsets = _sizes(fields.get("shape")), _sizes(fields.get("data_offsets"))
    if not isinstance(kind, str) or shape is None or offsets is None or len(offsets) != 2:
        raise DamagedError(where, "its entry in the header is not one of a tensor")
    begin, end = offsets
    if not begin <= end <= file.size - start:
        raise DamagedError(
            where,
            f"its bytes {begin} to {end} are not in the file, which has {file.size - start}",
            "copy or download it again",
        )
    dtype = SAFETENSORS.get(kind, kind)
    place = (file, start + begin, end - begin)
    return Variable(
        name,
        name,
        dtype,
        shape,
        partial(_read, *place, dtype, shape, where),
        lambda: extents(*place, find_dtype(dtype), shape),
    )


def _read(
    file: File, begin: int, length: int, dtype: str, shape: tuple[int, ...], where: str
) -> NDArray[np.generic]:
    kind = numpy_dtype(dtype, where)
    needed = bytes_needed(shape, kind)
    if length != needed:
        raise DamagedError(where, f"{length} bytes where its shape needs {needed}")
    return from_little_endian(file.read(begin, length), kind, shape)


def _sizes(value: object) -> tuple[int, ...] | None:
    """A list of numbers that can be sizes; None for anything else."""
    if not isinstance(value, list) or len(value) > _MOST_DIMS:
        return None
    fits = all(type(size) is int and 0 <= size < 1 << 63 for size in value)
    return tuple(value) if fits else None


def _length(head: bytes) -> int:
    return int.from_bytes(head[:8], "little")


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
    from bnstat.formats.pytorch import file as pytorch

    part.refuse_lfs_pointer()
    if matches(part):
        return open_contents(part, source)
    if pytorch.matches(part):
        return pytorch.open_contents(part, source)
    raise UnknownFormatError(part.path, "is neither a safetensors nor a PyTorch file")


def _weight_map(index: File) -> Mapping[str, str]:
    parsed: Any = parse_json(index.read(), index.path)
    entries = parsed.get(_MAP) if isinstance(parsed, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(n, str) for n in entries.values()):
        raise DamagedError(index.path, f"its {_MAP} does not tell the part of each tensor")
    return entries
