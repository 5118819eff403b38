"""The tensors of a PyTorch file: a state dict, a checkpoint that contains one, or a whole model.

Source: torch/serialization.py, `_load`, `_legacy_load`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.contents import Contents, Layer
from bnstat.formats.detection import first_in_zip
from bnstat.formats.dtypes import Scales, numpy_dtype, within_budget
from bnstat.formats.pytorch import pickled, tensors
from bnstat.formats.pytorch.pickled import Global, Opaque
from bnstat.formats.pytorch.state import collect, with_settings
from bnstat.formats.pytorch.tensors import Array, Storage, Tensor
from bnstat.model import Source, Variable
from bnstat.storage.archive import Slice, open_archive
from bnstat.storage.files import File, Folder, Range

_PICKLE: Final = "data.pkl"
LARGEST_PICKLE: Final = 1 << 28
_FIRST_PIECE: Final = 1 << 18
_SMALL: Final = 1 << 12
"""Storages with up to this many elements are fetched together."""
_HARMLESS: Final = (
    "torch.device",
    "torch.serialization._get_layout",
    "torch.jit._pickle.build_intlist",
    "torch.nn.backends.thnn._get_thnn_function_backend",
    *tensors.BUILDERS,
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)
"""Functions and classes without tensors. No note is printed if their objects are not built."""
_MODULES: Final = ("torch.nn.modules.", "__torch__.")
"""Modules whose objects are not built, but whose tensors are read."""
_MOST_NAMED: Final = 6

Unpickle = Callable[[bytes, int], tuple[Any, int]]
Locate = Callable[[str], File | None]
"""Takes the key of a storage; returns the storage's bytes as a file, or None if missing."""
Content = Callable[[Storage], tuple[File, bool]]
"""Takes a storage; returns the storage's bytes, and True if they are big-endian."""


def open_contents(file: File, source: Source) -> Contents:
    """Return the tensors of a file, keyed by their paths: `state_dict/layer1.0.bn1.weight`."""
    unbuilt: dict[str, None] = {}
    storages: dict[str, Storage] = {}

    def called(function: Global, arguments: tuple[Any, ...]) -> Any:
        built = tensors.call(function, arguments)
        name = str(function)
        if isinstance(built, Opaque) and not name.startswith(_MODULES) and name not in _HARMLESS:
            unbuilt.setdefault(name)
        return built

    def persistent(identity: Any) -> Storage | Global:
        storage = tensors.storage_of(identity)
        if isinstance(storage, Storage):
            storages.setdefault(storage.key, storage)
        return storage

    unpickle = partial(pickled.unpickle, call=called, persistent=persistent)
    top, is_big_endian = None, False
    with pickle_errors(file):
        if first_in_zip(file) is None:
            root, locate = _read_legacy(file, unpickle, storages)
        else:
            top, pickle = find_pickle(file)
            if pickle.size > LARGEST_PICKLE:
                reason = f"its pickle is above the limit of {LARGEST_PICKLE} bytes"
                raise UnsupportedError(file.path, reason)
            root, _ = unpickle(pickle.read(), 0)
            locate, is_big_endian = _storages_in_zip(top, storages)
        collected = collect(root)

    def content(storage: Storage) -> tuple[File, bool]:
        stored = locate(storage.key)
        if stored is None:
            raise DamagedError(f"{file.path}: storage {storage.key}", "is missing")
        return stored, is_big_endian

    variables = {
        key: _variable(key, collected.names[key], tensor, content, f"{file.path}: {key}")
        for key, tensor in collected.tensors.items()
    }
    sizes = {key: tensor.nbytes for key, tensor in collected.tensors.items()}
    variables = within_budget(file, variables, sizes)
    pruned = dict(_pruned(variables))
    variables |= pruned
    notes = []
    if unbuilt:
        more = f" and {len(unbuilt) - _MOST_NAMED} more" if len(unbuilt) > _MOST_NAMED else ""
        names = ", ".join([*unbuilt][:_MOST_NAMED])
        notes = [f"contains objects that were not loaded, because that runs code: {names}{more}"]
    step = collected.step if source.step is None else source.step
    return Contents(
        replace(source, format="pytorch", writer=collected.writer, step=step),
        variables,
        names={key: variable.name for key, variable in variables.items()},
        layers=[_without_masks(layer, pruned) for layer in with_settings(collected.layers, top)],
        variables_in_order=collected.in_order,
        notes=notes,
    )


_UNMASKED: Final = "_orig"


def _pruned(variables: Mapping[str, Variable]) -> Iterator[tuple[str, Variable]]:
    """Yield (key, tensor times mask) for the tensors that `torch.nn.utils.prune` keeps with a mask.

    `bn.weight_orig` and `bn.weight_mask` replace `bn.weight`; see torch/nn/utils/prune.py.
    """
    for key, variable in variables.items():
        mask = variables.get(f"{key.removesuffix(_UNMASKED)}_mask")
        if not key.endswith(_UNMASKED) or mask is None or mask.shape != variable.shape:
            continue
        name, reader = variable.name.removesuffix(_UNMASKED), partial(_product, variable, mask)
        yield key, replace(variable, name=name, reader=reader, finder=tuple)


def _product(variable: Variable, mask: Variable) -> NDArray[np.generic]:
    array = variable.read()
    with np.errstate(all="ignore"):
        return np.asarray(np.multiply(array, mask.read()), array.dtype)


def _without_masks(layer: Layer, pruned: Mapping[str, Variable]) -> Layer:
    variables = {
        label.removesuffix(_UNMASKED) if key in pruned else label: key
        for label, key in layer.variables.items()
    }
    return replace(layer, variables=variables)


def find_pickle(file: File) -> tuple[Folder, File]:
    """Return the folder in a zip that contains `data.pkl`, and `data.pkl`; raise if missing.

    PyTorch gives the folder the name of the zip.
    """
    top = open_archive(file)
    for folder in () if top is None else (top, *map(top.folder, top.names()[:2])):
        if folder is not None and (pickle := folder.file(_PICKLE)) is not None:
            return folder, pickle
    raise DamagedError(file.path, f"lacks {_PICKLE}", "save the model again")


def _storages_in_zip(top: Folder, storages: Mapping[str, Storage]) -> tuple[Locate, bool]:
    """Return a function that locates storages, and True if the storages are big-endian."""
    order = top.file("byteorder")

    @cache
    def fetch_small() -> None:
        # Only a member's own header records where its bytes are.
        top.expect(f"data/{key}" for key, each in storages.items() if each.count <= _SMALL)

    def locate(key: str) -> File | None:
        fetch_small()
        return top.file(f"data/{key}")

    return locate, order is not None and order.head(8).strip() == b"big"


def _read_legacy(
    file: File, unpickle: Unpickle, storages: Mapping[str, Storage]
) -> tuple[Any, Locate]:
    """Return the object and the `Locate` of a file from before 1.6, which is little-endian."""
    (_magic, version, _machine, root, keys), position = _pickles(file, unpickle)
    if version != 1001:
        raise UnsupportedError(file.path, "has an unknown version of PyTorch's format")
    contents: dict[str, File] = {}
    for key in keys if isinstance(keys, list) else ():
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None:
            raise DamagedError(file.path, "has a storage that no tensor uses")
        count = int.from_bytes(file.read(position, 8), "little")
        length = count * numpy_dtype(storage.dtype, file.path).itemsize
        contents[storage.key] = Slice(file, position + 8, length, storage.key)
        position += 8 + length
    return root, contents.get


def _pickles(file: File, unpickle: Unpickle) -> tuple[list[Any], int]:
    """Return the five objects at the start of a file from before 1.6, and the offset after them."""
    length = min(_FIRST_PIECE, file.size)
    while True:
        data, values, position = file.head(length), [], 0
        try:
            for _ in range(5):
                value, position = unpickle(data, position)
                values.append(value)
            return values, position
        except pickled.CutError:
            if length >= min(file.size, LARGEST_PICKLE):
                raise
            length = min(4 * length, file.size, LARGEST_PICKLE)


@contextmanager
def pickle_errors(file: File) -> Iterator[None]:
    """Convert errors while reading a pickle to errors that name the file."""
    try:
        yield
    except pickled.BudgetError as error:
        reason = f"its pickle is larger than any network needs ({error})"
        raise UnsupportedError(file.path, reason) from error
    except pickled.CutError as error:
        reason = "is cut short within its pickle"
        raise DamagedError(file.path, reason, "copy or download it again") from error
    except pickled.PickleError as error:
        reason = f"its pickle is damaged or not one that PyTorch writes ({error})"
        raise DamagedError(file.path, reason) from error


def _variable(
    key: str, name: str, tensor: Tensor | Array, content: Content, where: str
) -> Variable:
    if isinstance(tensor, Array):
        return Variable(key, name, tensor.dtype, tensor.shape, partial(tensor.read, where))

    def read(stored: Tensor = tensor) -> NDArray[np.generic]:
        return stored.read(*content(stored.storage), where)

    def extents() -> Sequence[Range]:
        return tensor.extents(*content(tensor.storage))

    if tensor.quantizer is None:
        return Variable(key, name, tensor.dtype, tensor.shape, read, extents)
    scale, zero, axis = tensor.quantizer

    def scales() -> Scales:
        # PyTorch rounds a single scale to float32, but not a tensor of scales.
        with np.errstate(over="ignore"):
            factors, zeros = (
                (read(part) if isinstance(part, Tensor) else np.array([part], np.float32))
                .astype(np.float64)
                .ravel()
                for part in (scale, zero)
            )
        return Scales(factors, zeros, axis)

    return Variable(
        key,
        name,
        "float32",
        tensor.shape,
        lambda: scales().unpack(read(), where),
        extents,
        lambda: scales().step(tensor.shape, where),
    )
