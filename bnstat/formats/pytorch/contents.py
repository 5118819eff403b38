"""What a file of PyTorch's holds: state dicts, checkpoints around them, whole models.

The forms of a file of PyTorch's: a pickle, and the storages that it speaks of.

Source: torch/serialization.py, `_load`, `_legacy_load`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.contents import Contents
from bnstat.formats.dtypes import Scales, beyond_budget, numpy_dtype, refuse
from bnstat.formats.pytorch.file import PICKLE, is_legacy, top_folder
from bnstat.formats.pytorch.pickled import (
    BudgetError,
    Call,
    CutError,
    Global,
    Opaque,
    Persistent,
    PickleError,
    unpickle,
)
from bnstat.formats.pytorch.script import with_settings
from bnstat.formats.pytorch.state import Found, collect
from bnstat.formats.pytorch.tensors import (
    BUILDERS,
    Array,
    Place,
    Storage,
    Tensor,
    call,
    find_tensor,
    read_tensor,
    storage_of,
)
from bnstat.model import Source, Variable
from bnstat.storage.archive import open_archive
from bnstat.storage.files import File, Folder, Range

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


_HARMLESS: Final = (
    "torch.device",
    "torch.serialization._get_layout",
    "torch.jit._pickle.build_intlist",
    "torch.nn.backends.thnn._get_thnn_function_backend",
    *BUILDERS,
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)
"""What may stay unbuilt without a word: it holds no tensors."""

_MODULES: Final = ("torch.nn.modules.", "__torch__.")
"""PyTorch's own modules and those of TorchScript, whose tensors are read all the same."""

_MOST_NAMED: Final = 6


def contents_of(file: File, source: Source) -> Contents:
    """The tensors of a file that `matches`.

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

    read = read_legacy if is_legacy(file) else read_zip
    saved = read(file, called)
    place_of = saved.place_of
    with errors(file):
        found = collect(saved.root)
    variables = {
        key: _variable(key, found.names[key], tensor, place_of, f"{file.path}: {key}")
        for key, tensor in found.tensors.items()
    }
    sizes = {key: tensor.nbytes for key, tensor in found.tensors.items()}
    for key in beyond_budget(sizes, file.size):
        variables[key] = replace(variables[key], reader=partial(refuse, f"{file.path}: {key}"))
    return Contents(
        replace(source, format="pytorch", writer=found.writer, step=_training_step(source, found)),
        variables,
        names=found.names,
        layers=with_settings(found.layers, saved.top),
        variables_in_order=found.in_order,
        notes=_unbuilt_note(list(unbuilt)),
    )


def _variable(
    key: str, name: str, tensor: Tensor | Array, place_of: PlaceOf, where: str
) -> Variable:
    if isinstance(tensor, Array):
        return Variable(key, name, tensor.dtype, tensor.shape, partial(tensor.read, where))
    is_quantized = tensor.quantizer is not None
    return Variable(
        key,
        name,
        "float32" if is_quantized else tensor.dtype,
        tensor.shape,
        partial(_read, tensor, place_of, where),
        partial(_find, tensor, place_of),
        partial(_step, tensor, place_of, where) if is_quantized else None,
    )


def _read(tensor: Tensor, place_of: PlaceOf, where: str) -> NDArray[np.generic]:
    stored = read_tensor(tensor, place_of(tensor.storage), where)
    return _scales(tensor, place_of, where).unpack(stored, where) if tensor.quantizer else stored


def _step(tensor: Tensor, place_of: PlaceOf, where: str) -> NDArray[np.generic]:
    return _scales(tensor, place_of, where).step(tensor.shape, where)


def _scales(tensor: Tensor, place_of: PlaceOf, where: str) -> Scales:
    """How a tensor is quantized. One scale PyTorch takes as float32, several as they are."""
    scale, zero, axis = tensor.quantizer or (1.0, 0, 0)
    with np.errstate(over="ignore"):
        scales, zeros = (
            read_tensor(each, place_of(each.storage), where).astype(np.float64).ravel()
            if isinstance(each, Tensor)
            else np.array([each], np.float32).astype(np.float64)
            for each in (scale, zero)
        )
    return Scales(scales, zeros, axis)


def _find(tensor: Tensor, place_of: PlaceOf) -> Sequence[Range]:
    places = find_tensor(tensor, place_of(tensor.storage))
    return [place._replace(part=None) for place in places] if tensor.quantizer else places


def _training_step(source: Source, found: Found) -> int | None:
    return found.step if source.step is None else source.step


def _unbuilt_note(names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    listed = ", ".join(names[:_MOST_NAMED])
    return [f"holds objects of classes that were not loaded, for that runs code: {listed}{more}"]
