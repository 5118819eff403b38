"""What a file of PyTorch's holds: state dicts, checkpoints around them, whole models.

Source: torch/serialization.py, `_load`, `_legacy_load`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.contents import Contents
from bnstat.formats.exchange.pytorch.file import PICKLE, is_legacy, top_folder
from bnstat.formats.exchange.pytorch.pickled import CutError, Global, Opaque, PickleError, unpickle
from bnstat.formats.exchange.pytorch.state import Found, collect
from bnstat.formats.exchange.pytorch.tensors import (
    Place,
    Storage,
    Tensor,
    call,
    find_tensor,
    read_tensor,
    storage_of,
)
from bnstat.formats.tensorflow.dtypes import numpy_dtype
from bnstat.model import Source, Variable
from bnstat.storage.archive import open_archive
from bnstat.storage.files import File
from bnstat.storage.ranges import Range

_LARGEST_PICKLE: Final = 1 << 28
_FIRST_PIECE: Final = 1 << 18

_HARMLESS: Final = (
    "torch.device",
    "torch.serialization._get_layout",
    "torch.jit._pickle.build_intlist",
    "torch.nn.backends.thnn._get_thnn_function_backend",
    "_codecs.encode",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)
"""What may stay unbuilt without a word: it holds no tensors."""

_MODULES: Final = ("torch.nn.modules.", "__torch__.")
"""PyTorch's own modules and those of TorchScript, whose tensors are read all the same."""

_MOST_NAMED: Final = 6


def contents_of(file: File, source: Source) -> Contents:
    """The tensors of a file that `recognises`.

    A tensor's key is the way to it: `state_dict/layer1.0.bn1.weight`.

    Raises:
        DamagedError: the file is truncated, or contradicts itself.
        UnsupportedError: it is larger than what is read, or of a kind that is not.
    """
    unbuilt: dict[str, None] = {}

    def called(function: Global, arguments: tuple[Any, ...]) -> Any:
        built = call(function, arguments)
        name = str(function)
        if isinstance(built, Opaque) and not name.startswith(_MODULES) and name not in _HARMLESS:
            unbuilt.setdefault(name)
        return built

    if is_legacy(file):
        root, place_of = _read_legacy(file, called)
    else:
        root, place_of = _read_zip(file, called)
    found = collect(root)
    variables = {
        key: Variable(
            key,
            found.names[key],
            tensor.dtype,
            tensor.shape,
            partial(_read, tensor, place_of, f"{file.path}: {key}"),
            partial(_find, tensor, place_of),
        )
        for key, tensor in found.tensors.items()
    }
    return Contents(
        replace(source, format="pytorch", writer=found.writer, step=_step(source, found)),
        variables,
        names=found.names,
        layers=found.layers,
        variables_in_order=True,
        notes=_unbuilt_note(list(unbuilt)),
    )


def _read(tensor: Tensor, place_of: Callable[[Storage], Place], where: str) -> NDArray[np.generic]:
    return read_tensor(tensor, place_of(tensor.storage), where)


def _find(tensor: Tensor, place_of: Callable[[Storage], Place]) -> Sequence[Range]:
    return find_tensor(tensor, place_of(tensor.storage))


def _step(source: Source, found: Found) -> int | None:
    return found.step if source.step is None else source.step


def _unbuilt_note(names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    listed = ", ".join(names[:_MOST_NAMED])
    return [f"holds objects of classes that were not loaded, for that runs code: {listed}{more}"]


def _read_zip(
    file: File, called: Callable[[Global, tuple[Any, ...]], Any]
) -> tuple[Any, Callable[[Storage], Place]]:
    folder = open_archive(file)
    top = top_folder(folder) if folder is not None else None
    described = top.file(PICKLE) if top is not None else None
    if top is None or described is None:
        raise DamagedError(file.path, f"lacks {PICKLE}", "save it again")
    if described.size > _LARGEST_PICKLE:
        raise UnsupportedError(file.path, f"its {PICKLE} of {described.size} bytes is not read")
    with _errors(file):
        root, _ = unpickle(described.read(), 0, called, storage_of)
    order = top.file("byteorder")
    is_big = order is not None and order.head(8).strip() == b"big"

    def place_of(storage: Storage) -> Place:
        member = top.file(f"data/{storage.key}")
        if member is None:
            raise DamagedError(f"{file.path}: data/{storage.key}", "this storage is missing")
        return Place(member, 0, member.size, is_big)

    return root, place_of


def _read_legacy(
    file: File, called: Callable[[Global, tuple[Any, ...]], Any]
) -> tuple[Any, Callable[[Storage], Place]]:
    storages: dict[str, Storage] = {}

    def persistent(identity: Any) -> Storage | Global:
        named = storage_of(identity)
        if isinstance(named, Storage):
            storages.setdefault(named.key, named)
        return named

    with _errors(file):
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

    return root, place_of


def _pickles(
    file: File,
    called: Callable[[Global, tuple[Any, ...]], Any],
    persistent: Callable[[Any], Any],
) -> tuple[list[Any], int]:
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
            if length >= min(file.size, _LARGEST_PICKLE):
                raise
            length = min(4 * length, file.size, _LARGEST_PICKLE)


@contextmanager
def _errors(file: File) -> Iterator[None]:
    """Turns what a pickle can be found wanting of into errors that name the file."""
    try:
        yield
    except CutError as error:
        raise DamagedError(
            file.path, "is cut short within its pickle", "copy or download it again"
        ) from error
    except PickleError as error:
        raise DamagedError(
            file.path, f"its pickle is damaged or of another kind ({error})"
        ) from error
