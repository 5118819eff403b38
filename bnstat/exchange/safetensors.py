"""A model as safetensors: a length, a JSON header, then the tensors' bytes.

The keys are those of the form: `LAYER/ROLE`, or those of a framework, which loads them as its
own. Arrays are stored bit for bit. The metadata's `bnstat` is JSON of each layer's epsilon and
momentum, where the file tells them.

Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import BinaryIO, Final

from bnstat.errors import UnsupportedError
from bnstat.exchange.form import Form
from bnstat.model import Array, BatchNorm, Model, printable

_TYPES: Final = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "uint16": "U16",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
    "uint64": "U64",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fn": "F8_E4M3",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}
_READERS: Final = {"pytorch": "pt", "flax": "flax"}
_ALIGNED: Final = 8


def dump(
    model: Model,
    file: BinaryIO,
    form: Form,
    *,
    track: Callable[[Sequence[BatchNorm]], Iterable[BatchNorm]] = iter,
) -> None:
    """Write a model as safetensors.

    Args:
        model: what to write.
        file: open for writing bytes; it need not be seekable.
        form: what is written, and under which names.
        track: passes the layers on, such as to show progress.

    Raises:
        BnstatError: a variable cannot be read, or is of a type that the format lacks.
    """
    arrays: dict[str, Array] = {}
    for layer in track(model.layers):
        for part in form.parts:
            array = form.array(layer, part)
            if array is not None:
                arrays[_text(form.key(layer, part))] = array
    header: dict[str, object] = {"__metadata__": _metadata(model, form)}
    end = 0
    for key, array in arrays.items():
        if array.dtype.name not in _TYPES:
            raise UnsupportedError(
                key, f"safetensors has no {array.dtype.name}", "export JSON instead"
            )
        begin, end = end, end + array.nbytes
        header[key] = {
            "dtype": _TYPES[array.dtype.name],
            "shape": array.shape,
            "data_offsets": [begin, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNED)
    file.write(len(encoded).to_bytes(8, "little"))
    file.write(encoded)
    for array in arrays.values():
        file.write(_little(array).tobytes())


def _metadata(model: Model, form: Form) -> dict[str, str]:
    told = {
        _text(form.name(layer)): {"epsilon": layer.epsilon, "momentum": form.momentum(layer)}
        for layer in model.layers
    }
    return {"format": _READERS.get(form.names or "", "np"), "bnstat": json.dumps(told)}


def _little(array: Array) -> Array:
    # The types of ml_dtypes are of the machine's order alone.
    return array if array.dtype.isbuiltin == 2 else array.astype(array.dtype.newbyteorder("<"))


def _text(key: str) -> str:
    """The key as text that any reader takes."""
    return key if key.isprintable() else printable(key)
