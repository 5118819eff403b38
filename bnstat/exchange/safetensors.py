"""The values of a model as safetensors, with keys `LAYER/ROLE`; `apply` reads them as a model.

The metadata entry `bnstat` contains each layer's epsilon and momentum as JSON.

Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
from typing import BinaryIO, Final

from bnstat.errors import UnsupportedError
from bnstat.exchange.naming import DEFAULTS, ExportOptions
from bnstat.formats.arrays.safetensors import DTYPES
from bnstat.model import Model, printable

_CODES: Final = {name: code for code, name in DTYPES.items()}
_READERS: Final = {"pytorch": "pt", "flax": "flax"}
_ALIGNMENT: Final = 8


def dump(model: Model, file: BinaryIO, options: ExportOptions = DEFAULTS) -> None:
    """Write a model as safetensors; see `ExportModule.dump`."""
    arrays = {printable(key): array for key, array in options.arrays(model.layers)}
    settings = {
        printable(options.name(layer)): {
            "epsilon": layer.epsilon,
            "momentum": options.momentum(layer),
        }
        for layer in model.layers
    }
    metadata = {"format": _READERS.get(options.names or "", "np"), "bnstat": json.dumps(settings)}
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for key, array in arrays.items():
        if (name := array.dtype.name) not in _CODES:
            raise UnsupportedError(key, f"safetensors has no type {name}", "export JSON instead")
        begin, end = end, end + array.nbytes
        header[key] = {"dtype": _CODES[name], "shape": array.shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    file.write(len(encoded).to_bytes(8, "little"))
    file.write(encoded)
    for array in arrays.values():
        # ml_dtypes' types have the machine's byte order only.
        is_extension = array.dtype.isbuiltin == 2
        stored = array if is_extension else array.astype(array.dtype.newbyteorder("<"))
        file.write(stored.tobytes())
