"""The forms of a file of PyTorch's: a pickle, and the storages that it speaks of.

Source: torch/serialization.py, `_load`, `_legacy_load`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.dtypes import numpy_dtype
from bnstat.formats.exchange.pytorch.file import PICKLE, top_folder
from bnstat.formats.exchange.pytorch.pickled import (
    BudgetError,
    Call,
    CutError,
    Global,
    Persistent,
    PickleError,
    unpickle,
)
from bnstat.formats.exchange.pytorch.tensors import Place, Storage, storage_of
from bnstat.storage.archive import open_archive
from bnstat.storage.files import File, Folder

LARGEST_PICKLE: Final = 1 << 28
_FIRST_PIECE: Final = 1 << 18
_SMALL: Final = 1 << 12
"""Elements of a storage up to which it is fetched together with the others."""

PlaceOf = Callable[[Storage], Place]
"""Tells where a storage is."""


class Saved(NamedTuple):
    """What a file holds.

    Attributes:
        root: the object.
        place_of: where its storages are.
        top: the folder of a zip that holds its pickle, and code if it is of TorchScript.
    """

    root: Any
    place_of: PlaceOf
    top: Folder | None = None


def read_zip(file: File, called: Call) -> Saved:
    """The object in a zip, and where its storages are.

    Args:
        file: the file.
        called: builds what the pickle names.

    Raises:
        DamagedError: the file is truncated, or contradicts itself.
        UnsupportedError: it is larger than what is read.
    """
    folder = open_archive(file)
    top = top_folder(folder) if folder is not None else None
    described = top.file(PICKLE) if top is not None else None
    if top is None or described is None:
        raise DamagedError(file.path, f"lacks {PICKLE}", "save it again")
    if described.size > LARGEST_PICKLE:
        raise UnsupportedError(file.path, f"its {PICKLE} of {described.size} bytes is not read")
    small: set[str] = set()

    def persistent(identity: Any) -> Storage | Global:
        named = storage_of(identity)
        if isinstance(named, Storage) and named.count <= _SMALL:
            small.add(f"data/{named.key}")
        return named

    with errors(file):
        root, _ = unpickle(described.read(), 0, called, persistent)
    order = top.file("byteorder")
    is_big = order is not None and order.head(8).strip() == b"big"

    def place_of(storage: Storage) -> Place:
        # Where a member lies, only its own header tells.
        # Threads may read at the same time, so that the set is copied in one step.
        if wanted := list(small):
            small.clear()
            top.expect(wanted)
        member = top.file(f"data/{storage.key}")
        if member is None:
            raise DamagedError(f"{file.path}: data/{storage.key}", "this storage is missing")
        return Place(member, 0, member.size, is_big)

    return Saved(root, place_of, top)


def read_legacy(file: File, called: Call) -> Saved:
    """The same of a file from before PyTorch 1.6. Raises as `read_zip` does."""
    storages: dict[str, Storage] = {}

    def persistent(identity: Any) -> Storage | Global:
        named = storage_of(identity)
        if isinstance(named, Storage):
            storages.setdefault(named.key, named)
        return named

    with errors(file):
        values, position = _pickles(file, called, persistent)
    _magic, version, facts, root, keys = values
    if version != 1001 or not isinstance(facts, dict):
        raise UnsupportedError(file.path, "of a version of PyTorch's format that is not read")
    is_big = facts.get("little_endian") is False
    places: dict[str, Place] = {}
    for key in keys if isinstance(keys, list) else ():
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None:
            raise DamagedError(file.path, "has a storage that no tensor uses")
        head = file.read(position, 8)
        count = int.from_bytes(head, "big" if is_big else "little")
        length = count * numpy_dtype(storage.dtype, file.path).itemsize
        file.read(position + 8 + length, 0)
        places[storage.key] = Place(file, position + 8, length, is_big)
        position += 8 + length

    def place_of(storage: Storage) -> Place:
        if storage.key not in places:
            raise DamagedError(f"{file.path}: storage {storage.key}", "is missing")
        return places[storage.key]

    return Saved(root, place_of)


def _pickles(file: File, called: Call, persistent: Persistent) -> tuple[list[Any], int]:
    """The five pickles at the start of an older file, and the position after them."""
    length = min(_FIRST_PIECE, file.size)
    while True:
        data, values, position = file.head(length), [], 0
        try:
            for _ in range(5):
                value, position = unpickle(data, position, called, persistent)
                values.append(value)
            return values, position
        except CutError:
            if length >= min(file.size, LARGEST_PICKLE):
                raise
            length = min(4 * length, file.size, LARGEST_PICKLE)


@contextmanager
def errors(file: File) -> Iterator[None]:
    """Turn what a pickle can be found wanting of into errors that name the file."""
    try:
        yield
    except BudgetError as error:
        raise UnsupportedError(
            file.path, f"its pickle is larger than that of any network ({error})"
        ) from error
    except CutError as error:
        raise DamagedError(
            file.path, "is cut short within its pickle", "copy or download it again"
        ) from error
    except PickleError as error:
        raise DamagedError(
            file.path, f"its pickle is damaged or of another kind ({error})"
        ) from error
