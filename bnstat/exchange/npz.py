"""A model as NPZ, NumPy's archive of arrays: `numpy.load(file, allow_pickle=False)` reads it.

The keys are `<layer>/<role>`, or those of another form. Arrays are stored as in the model, bit for
bit; those of a type that NumPy does not have by itself are stored in one that holds the same
numbers exactly: bfloat16 and 8-bit floats as float32, 4-bit integers as int8. The same model
always gives the same bytes.

The archive is a ZIP of uncompressed `.npy` members
(https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html), whose names cannot hold
a zero byte or a lone surrogate: these are written as escapes.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO, Final, cast

import numpy as np

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.exchange.form import PLAIN, Form
from bnstat.exchange.values import Document, Given
from bnstat.formats.arrays.npz import HEADER_BYTES, read_header
from bnstat.model import ROLES, BatchNorm, Model, printable
from bnstat.output.numbers import portable
from bnstat.storage.archive import zip_members
from bnstat.storage.files import File

_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_LONGEST_NAME: Final = 65535


def dump(
    model: Model,
    file: BinaryIO,
    form: Form = PLAIN,
    *,
    track: Callable[[Sequence[BatchNorm]], Iterable[BatchNorm]] = iter,
) -> None:
    """Write a model as NPZ.

    Args:
        model: what to write.
        file: open for writing bytes; it need not be seekable.
        form: what is written, and under which names.
        track: passes the layers on, such as to show progress.

    Raises:
        BnstatError: a variable cannot be read, or a layer's name is too long for a ZIP.
    """
    with zipfile.ZipFile(cast(BinaryIO, _Forward(file)), "w", zipfile.ZIP_STORED) as archive:
        for layer in track(model.layers):
            for part in form.parts:
                array = form.array(layer, part)
                if array is not None:
                    info = zipfile.ZipInfo(_member(form.key(layer, part), layer.name), _EPOCH)
                    with archive.open(info, "w", force_zip64=True) as target:
                        np.lib.format.write_array(target, portable(array), allow_pickle=False)


class _Forward:
    """A stream that only goes forward, for a device such as `/dev/null` tells wrong positions."""

    def __init__(self, file: BinaryIO) -> None:
        self.write = file.write
        self.flush = file.flush


def member(layer: str, role: str) -> str:
    """The name of the archive's member that holds a role of a layer.

    Raises:
        UnsupportedError: the layer's name is too long for a ZIP.
    """
    return _member(f"{layer}/{role}", layer)


def _member(key: str, layer: str) -> str:
    name = f"{key}.npy"
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        name = printable(name)
        encoded = name.encode()
    if len(encoded) > _LONGEST_NAME:
        raise UnsupportedError(
            f"{printable(layer[:40])}...",
            "this layer's name is too long for an NPZ file",
            "export JSON instead",
        )
    return name


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
