"""The values of a model as NPZ, NumPy's archive of arrays, with the keys `LAYER/ROLE`.

Arrays are stored bit for bit. A type that NumPy lacks is converted exactly to another type:
bfloat16 and 8-bit floats as float32, 4-bit integers as int8. Names of members cannot contain a zero
byte or a lone surrogate, so these characters are written as escapes.
"""

from __future__ import annotations

import re
import zipfile
from types import SimpleNamespace
from typing import BinaryIO, Final, cast

import numpy as np

from bnstat.errors import UnsupportedError
from bnstat.exchange.decimals import portable
from bnstat.exchange.naming import DEFAULTS, ExportOptions
from bnstat.exchange.values import Document, document_of
from bnstat.formats.arrays import npz
from bnstat.model import ROLES, Model, Source, printable
from bnstat.storage.files import File

_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_ENDING: Final = ".npy"
_LONGEST_NAME: Final = 65535
_LARGEST: Final = 1 << 30


def dump(model: Model, file: BinaryIO, options: ExportOptions = DEFAULTS) -> None:
    """Write a model as NPZ; see `ExportModule.dump`."""
    # Devices such as `/dev/null` report wrong positions, so zipfile must not see `tell`.
    stream = cast(BinaryIO, SimpleNamespace(write=file.write, flush=file.flush))
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for key, array in options.arrays(model.layers):
            info = zipfile.ZipInfo(f"{_member(key)}{_ENDING}", _EPOCH)
            with archive.open(info, "w", force_zip64=True) as target:
                np.lib.format.write_array(target, portable(array), allow_pickle=False)


def _member(key: str) -> str:
    """Return a tensor's key as the name of a ZIP member, to which the caller adds `.npy`."""
    if re.search("[\0\ud800-\udfff]", key):
        key = printable(key)
    if len(key.encode()) + len(_ENDING) > _LONGEST_NAME:
        raise UnsupportedError(
            f"{printable(key[:40])}...", "this name is too long for an NPZ file", "use JSON instead"
        )
    return key


def matches(file: File) -> bool:
    """Return True for an NPZ file with an array that is named ROLE or LAYER/ROLE."""
    if not npz.matches(file):
        return False
    names = (info.filename.removesuffix(_ENDING) for info in npz.members(file))
    return any(name.rpartition("/")[2] in ROLES for name in names)


def read(file: File) -> Document:
    """Read the values in a file; see `ExportModule.read`."""
    size = sum(info.file_size for info in npz.members(file))
    if size > _LARGEST:
        raise UnsupportedError(file.path, f"its arrays take {size} bytes; bnstat reads up to 1 GiB")
    variables = npz.open_contents(file, Source(file.path, "npz")).variables
    arrays = {key: variable.read() for key, variable in variables.items()}
    return document_of(arrays, file.path, _member)
