"""Safetensors, also in several shards: a length, a JSON header, then the tensors' bytes.

    u64 length of the header, little-endian
    {"NAME": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}, ...,
     "__metadata__": {"format": "pt"}}
    the tensors' bytes; `data_offsets` count from the end of the header

The `weight_map` of an index maps each tensor to the file that contains it.

Sources: https://github.com/huggingface/safetensors, "Format"; huggingface_hub/serialization.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from bnstat.errors import DamagedError, NotFoundError, UnknownFormatError
from bnstat.formats.contents import Contents
from bnstat.formats.dtypes import as_shape, as_sizes, contiguous_variable
from bnstat.model import Source, Variable
from bnstat.storage.files import File
from bnstat.text import MAX_JSON, parse_json

_WRITERS: Final = {"pt": "PyTorch", "tf": "TensorFlow", "flax": "Flax", "np": "NumPy", "mlx": "MLX"}

DTYPES: Final = {
    "BOOL": "bool", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
    "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E4M3FNUZ": "float8_e4m3fnuz",
}  # fmt: skip
"""Code of a type -> NumPy's name."""


def matches(file: File) -> bool:
    """Return True if the file begins with a length and a JSON object, even if it is cut short."""
    head = file.head(9)
    return len(head) == 9 and head[8:] == b"{" and 2 <= _length(head) <= MAX_JSON


def _length(head: bytes) -> int:
    return int.from_bytes(head[:8], "little")


def open_contents(file: File, source: Source) -> Contents:
    """Return the tensors, keyed by their names."""
    length = _length(file.head(8))
    header = parse_json(file.read(8, min(length, MAX_JSON + 1)), file.path)
    if not isinstance(header, dict):
        raise DamagedError(file.path, "its header is not a JSON object")
    metadata = header.pop("__metadata__", None)
    writer = metadata.get("format") if isinstance(metadata, dict) else None
    start = 8 + length
    variables = {name: _variable(file, start, name, entry) for name, entry in header.items()}
    offsets = [entry["data_offsets"] for entry in header.values()]
    if sum(end - begin for begin, end in offsets) > file.size - start:
        raise DamagedError(file.path, "its tensors overlap", "save it again with safetensors")
    writer = _WRITERS.get(writer) if isinstance(writer, str) else None
    return Contents(replace(source, format="safetensors", writer=writer), variables)


def _variable(file: File, start: int, name: str, entry: object) -> Variable:
    where = f"{file.path}: {name}"
    fields: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    code = fields.get("dtype")
    shape, offsets = as_shape(fields.get("shape")), as_sizes(fields.get("data_offsets"))
    if not isinstance(code, str) or shape is None or offsets is None or len(offsets) != 2:
        raise DamagedError(where, "its entry in the header does not describe a tensor")
    begin, end = offsets
    if not begin <= end <= file.size - start:
        reason = f"its bytes {begin} to {end} are not in the {file.size - start} after the header"
        raise DamagedError(where, reason, "copy or download it again")
    dtype = DTYPES.get(code, code)
    return contiguous_variable(file, start + begin, end - begin, dtype, shape, name)


def open_sharded(index: File, source: Source) -> Contents:
    """Return the tensors that an index lists, from the files beside it."""
    from bnstat.formats.pytorch import file as pytorch

    parsed: Any = parse_json(index.read(), index.path)
    entries = parsed.get("weight_map") if isinstance(parsed, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(n, str) for n in entries.values()):
        raise DamagedError(index.path, "its weight_map does not name a file for each tensor")
    keys_of_files: dict[str, list[str]] = {}
    for key, name in entries.items():
        keys_of_files.setdefault(name, []).append(key)
    variables: dict[str, Variable] = {}
    names: dict[str, str] = {}
    index.expect(keys_of_files)
    for name, keys in keys_of_files.items():
        file = index.part(name)
        if file is None:
            reason = "this part of the model is missing"
            raise NotFoundError(f"{index.path}: {name}", reason, "copy it beside the index")
        file.refuse_lfs_pointer()
        if matches(file):
            contents = open_contents(file, source)
        elif pytorch.matches(file):
            contents = pytorch.open_contents(file, source)
        else:
            raise UnknownFormatError(file.path, "is neither a safetensors nor a PyTorch file")
        source = replace(contents.source, writer=source.writer or contents.source.writer)
        for key in keys:
            if key not in contents.variables:
                reason = f"lacks {key}, which {index.name} assigns to this file"
                raise DamagedError(file.path, reason)
            variables[key] = contents.variables[key]
            names[key] = contents.name_of(key)
    return Contents(source, variables, names=names)
