"""Values in the NPZ of `bnstat export`, or in one that NumPy wrote with keys LAYER/ROLE.

A layer's variables may be stored here in another type than in the model (`bfloat16` as
`float32`): they are taken where they are exactly of the model's. Arrays of objects, which are
pickles, are refused.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from bnstat.errors import DamagedError
from bnstat.formats.exchange.npz import HEADER_BYTES, read_header
from bnstat.mending.values.given import Document, Given
from bnstat.model import ROLES, printable
from bnstat.output.documents.npz import member
from bnstat.storage.files import File
from bnstat.storage.in_place import zip_members

_ENDING: Final = ".npy"
_LARGEST: Final = 1 << 30


def is_npz(file: File) -> bool:
    """Whether a zip is one of arrays that are called as the roles of layers are."""
    try:
        names = [info.filename for info in zip_members(file)]
    except _damage():
        return False
    return (
        bool(names)
        and all(name.endswith(_ENDING) for name in names)
        and any(name.removesuffix(_ENDING).rpartition("/")[2] in ROLES for name in names)
    )


def read(file: File) -> Document:
    """The values in a file of that form.

    Raises:
        DamagedError: it is no such NPZ.
    """
    import zipfile

    layers: dict[str, dict[str, Given]] = {}
    try:
        members = zip_members(file)
        with file.open() as stream, zipfile.ZipFile(stream) as archive:
            left = _LARGEST
            for info in members:
                where = f"{file.path}, {printable(info.filename[:200])}"
                name, _, role = info.filename.removesuffix(_ENDING).rpartition("/")
                if role not in ROLES or not name:
                    raise DamagedError(
                        where, "is not LAYER/ROLE", f"the roles are {', '.join(ROLES)}"
                    )
                if role in layers.setdefault(name, {}):
                    raise DamagedError(where, "is there twice")
                with archive.open(info) as content:
                    array = _array(content, left, where)
                left -= array.nbytes
                layers[name][role] = Given(array)
    except _damage() as error:
        raise DamagedError(file.path, f"is a damaged NPZ ({error})") from error
    return Document(file.path, "NPZ", layers, _spelt)


def _array(content: Any, most: int, where: str) -> np.ndarray[Any, np.dtype[np.generic]]:
    """A member's array, of so many bytes at most."""
    head = content.read(HEADER_BYTES)
    header = read_header(head, where)
    if header.dtype is None:
        held = "Python objects" if "O" in header.descr else header.descr
        raise DamagedError(where, f"holds {held}, not numbers")
    size = math.prod(header.shape) * header.dtype.itemsize
    if size > most:
        raise DamagedError(where, f"claims {size} bytes")
    data = head[header.start :]
    data = (data + content.read(max(0, size - len(data))))[:size]
    if len(data) != size:
        raise DamagedError(where, f"has {len(data)} of {size} bytes")
    array = np.frombuffer(data, header.dtype).reshape(header.shape, order=header.order)
    return array.astype(header.dtype.newbyteorder("="), order="C", copy=False)


def _spelt(layer: str) -> str:
    return member(layer, ROLES[0]).removesuffix(f"/{ROLES[0]}{_ENDING}")


def _damage() -> tuple[type[Exception], ...]:
    """What reading a damaged zip, or a damaged array in one, raises."""
    import zipfile
    import zlib

    return (
        zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, ValueError,
        RuntimeError, LookupError, ArithmeticError, MemoryError,
    )  # fmt: skip
