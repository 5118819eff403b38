"""Orbax checkpoints, of JAX libraries and of Keras: folders of Zarr arrays.

What an Orbax checkpoint holds: the arrays of its trees, by `tensorstore`.

An array is called by the way to it in the tree, joined by dots; under that name the store has its
Zarr metadata (`.zarray`, or `zarr.json` of version 3) and its chunks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import BnstatError, DamagedError, UnsupportedError
from bnstat.formats.arrays import plain_name
from bnstat.formats.contents import Contents, Layer
from bnstat.formats.detection import (
    Format,
    ModelSet,
    StoredModel,
    require_native_reader,
    sorted_by_age,
    unnamed,
)
from bnstat.formats.dtypes import dtype_of_descr, find_dtype
from bnstat.formats.json_text import parse_json
from bnstat.formats.keras.config import layers_by_scope
from bnstat.model import Source, Variable
from bnstat.storage.files import File, Folder

_TREE: Final = "_METADATA"
_STORE: Final = "manifest.ocdbt"
_CHECKPOINT: Final = "_CHECKPOINT_METADATA"
_MOST_ITEMS: Final = 100
_STEP: Final = re.compile(r"(?P<prefix>.+)_(?P<step>\d{1,18})")
"""The folders of a run's steps where they have a prefix; others are numbers."""
_METADATA: Final = {".zarray": "zarr", "zarr.json": "zarr3"}
"""The file that describes an array -> tensorstore's driver for such arrays."""

_STRINGS: Final = "_strings.json"
_MOST_DIMS: Final = 32
_NOT_NUMBERS: Final = frozenset("SUVOMm")
"""The kinds of NumPy that are not numeric: texts, bytes, objects, times."""
_LARGEST: Final = 1 << 30
"""Bytes of an array that is read: a few bytes of metadata can ask for any number of zeros."""

_LARGEST_CHUNK: Final = 1 << 26
"""Bytes that the head of a compressed chunk may claim: tensorstore allocates them at once."""
_BLOSC_SIZE: Final = slice(4, 8)
"""Where the head of a Blosc chunk has its decompressed size, little-endian."""

_FAILURES = (ValueError, OSError, RuntimeError, MemoryError, NotImplementedError, TypeError)
"""What tensorstore raises for what it cannot read."""


class _Array(NamedTuple):
    """An array of a store: its name there, and how it is stored.

    Attributes:
        has_blosc: True if its chunks may be compressed by Blosc.
    """

    name: str
    driver: str
    dtype: str
    shape: tuple[int, ...]
    has_blosc: bool = False


def open_items(items: Mapping[str, Folder], source: Source) -> Contents:
    """The arrays of a checkpoint's items.

    Args:
        items: the items by name; the names stand before the keys where there are several.
        source: where the user pointed.

    Raises:
        UnsupportedError: tensorstore is not installed, or the folder is not on disk.
        DamagedError: a store or a description in it is damaged.
    """
    variables: dict[str, Variable] = {}
    names: dict[str, str] = {}
    layers: list[Layer] = []
    config: object = None
    for item, folder in items.items():
        config = _keras_config(folder) if config is None else config
        store = _Store(folder)
        paths = _paths(folder)
        start = f"{item}/" if len(items) > 1 and item not in _ALONE else ""
        for array in store.arrays():
            key = start + array.name
            reader = partial(store.read, array)
            path = paths.get(array.name) or array.name.split(".")
            names[key] = plain_name(path)
            variables[key] = Variable(key, names[key], array.dtype, array.shape, reader)
    if config is not None:
        told = {name: key for key, name in names.items()}
        layers += layers_by_scope(config, told, source.path)
    return Contents(
        replace(source, format="orbax", writer="Keras" if config is not None else None),
        variables,
        names=names,
        layers=tuple(layers),
    )


_ALONE: Final = frozenset({"default", "pytree", "model_config", "assets"})
"""Items whose names say nothing."""


def _paths(folder: Folder) -> dict[str, list[str]]:
    """Name of an array in the store -> the way to it in the tree."""
    file = folder.file(_TREE)
    parsed = parse_json(file.read(), file.path) if file is not None else None
    tree = parsed.get("tree_metadata") if isinstance(parsed, dict) else None
    paths = {}
    for entry in tree.values() if isinstance(tree, dict) else ():
        keys = entry.get("key_metadata") if isinstance(entry, dict) else None
        parts = (
            [each.get("key") for each in keys if isinstance(each, dict)]
            if isinstance(keys, list)
            else []
        )
        path = [str(key) for key in parts if isinstance(key, str | int) and len(str(key)) < 4000]
        paths[".".join(path)] = path
    return paths


def _keras_config(folder: Folder) -> object:
    """The model's configuration, which Keras stores beside its arrays."""
    file = folder.file(_STRINGS)
    parsed = parse_json(file.read(), file.path) if file is not None else None
    text = parsed.get("config") if isinstance(parsed, dict) else None
    if file is None or not isinstance(text, str):
        return None
    return parse_json(text, file.path)


class _Store:
    """The arrays of an item."""

    def __init__(self, folder: Folder) -> None:
        tree = folder.file(_TREE)
        if tree is None or tree.local_path is None:
            raise UnsupportedError(
                folder.path, "an Orbax checkpoint is read from disk alone", "unpack or copy it"
            )
        self._path = folder.path
        base = os.path.abspath(os.path.dirname(tree.local_path)) + "/"
        plain = {"driver": "file", "path": base}
        is_one = folder.file(_STORE) is not None
        self._spec: dict[str, Any] = {"driver": "ocdbt", "base": plain} if is_one else plain
        self._is_one = is_one

    def arrays(self) -> Iterator[_Array]:
        """All arrays, by their descriptions alone.

        Raises:
            DamagedError: the store or a description is damaged.
        """
        tensorstore = _tensorstore(self._path)
        try:
            store = tensorstore.KvStore.open(self._spec).result()
            keys = sorted(key.decode("utf-8", "replace") for key in store.list().result())
            found = [(key, key.rpartition("/")[2]) for key in keys]
            described = [(key, store.read(key)) for key, end in found if end in _METADATA]
            texts = [(key, bytes(future.result().value)) for key, future in described]
        except _FAILURES as error:
            raise self._damaged(error) from error
        for key, text in texts:
            name, _, end = key.rpartition("/")
            if not name:
                continue
            parsed = parse_json(text, f"{self._path}/{key}")
            array = _described(name, _METADATA[end], parsed)
            if array is None:
                raise DamagedError(f"{self._path}/{key}", "does not describe an array")
            yield array._replace(has_blosc=b"blosc" in text)

    def read(self, array: _Array) -> NDArray[np.generic]:
        """An array.

        Raises:
            DamagedError: its chunks are damaged, or other than described.
            UnsupportedError: it is too large.
        """
        where = f"{self._path}: {array.name}"
        dtype = find_dtype(array.dtype)
        if dtype is None or prod(array.shape) * dtype.itemsize > _LARGEST:
            raise UnsupportedError(where, f"an array of {array.dtype}, {array.shape} is not read")
        spec = dict(self._spec)
        inside = f"{array.name}/"
        kvstore = {**spec, "path": inside if self._is_one else spec["path"] + inside}
        try:
            tensorstore = _tensorstore(self._path)
            if array.has_blosc:
                self._refuse_large_chunks(tensorstore, inside, where)
            opened = tensorstore.open({"driver": array.driver, "kvstore": kvstore}).result()
            found: NDArray[np.generic] = np.asarray(opened.read().result())
        except _FAILURES as error:
            raise self._damaged(error) from error
        if found.shape != array.shape or found.dtype != dtype:
            raise DamagedError(where, "is another array than its description tells")
        return found

    def _refuse_large_chunks(self, tensorstore: Any, inside: str, where: str) -> None:
        """Raise an error if a chunk claims a size for which the process could run out of memory.

        Source of the head of a chunk: Blosc 1, README_HEADER.rst.
        """
        store = tensorstore.KvStore.open(self._spec).result()
        keys = store.list(tensorstore.KvStore.KeyRange(inside, inside + "\xff")).result()
        chunks = [
            key
            for key in keys
            if key.decode("utf-8", "replace").rpartition("/")[2] not in _METADATA
        ]
        for future in [store.read(key) for key in chunks]:
            size = int.from_bytes(bytes(future.result().value)[_BLOSC_SIZE], "little")
            if size > _LARGEST_CHUNK:
                raise DamagedError(where, f"a chunk claims {size:,} bytes")

    def _damaged(self, error: Exception) -> BnstatError:
        reason = str(error).partition("\n")[0].partition(" [")[0][:200]
        return DamagedError(self._path, f"cannot be read by tensorstore ({reason})")


def _described(name: str, driver: str, parsed: object) -> _Array | None:
    """The array that its Zarr metadata tells of; None where they do not."""
    fields: Mapping[str, Any] = parsed if isinstance(parsed, dict) else {}
    kind, shape = fields.get("data_type", fields.get("dtype")), fields.get("shape")
    if not isinstance(kind, str) or not isinstance(shape, list) or len(shape) > _MOST_DIMS:
        return None
    if not all(type(size) is int and 0 <= size < 1 << 63 for size in shape):
        return None
    if driver == "zarr" and kind[:1] in "<>|":
        dtype = dtype_of_descr(kind)
        if dtype is None and kind[1:2] not in _NOT_NUMBERS:
            return None
        kind = kind if dtype is None else dtype.name
    return _Array(name, driver, kind, tuple(shape))


def _tensorstore(path: str) -> Any:
    try:
        import tensorstore
    except ImportError:
        raise UnsupportedError(
            path,
            "is an Orbax checkpoint, which is read with tensorstore, and that is not installed",
            "pip install tensorstore",
        ) from None
    return tensorstore


class Orbax(Format):
    """A folder that is an item, or has some in it."""

    def owner(self, folder: Folder, file: File) -> ModelSet | Folder | None:
        is_part = file.name in (_TREE, _STORE, _CHECKPOINT) and _items(folder)
        return folder if is_part else None

    def models_within(self, folder: Folder) -> ModelSet | None:
        found: dict[str, list[StoredModel]] = {}
        for name in folder.names() if folder.can_list else ():
            match = _STEP.fullmatch(name)
            below = folder.folder(name) if match is not None else None
            if match is None or below is None or (model := self.model_of_folder(below)) is None:
                continue
            model = model._replace(
                name=name, step=int(match["step"]), modified=folder.modified(name)
            )
            found.setdefault(match["prefix"], []).append(model)
        return sorted_by_age(next(iter(found.values()))) if len(found) == 1 else None

    def model_of_folder(self, folder: Folder) -> StoredModel | None:
        found = _items(folder)
        if not found:
            return None
        return unnamed(
            lambda source, reading: open_items(found, require_native_reader(source, reading)),
            folder.times,
        )


def _items(folder: Folder) -> dict[str, Folder]:
    """The items of a checkpoint by name; the name of one alone is empty."""
    if folder.file(_TREE) is not None:
        return {"": folder}
    if folder.file(_CHECKPOINT) is None:
        return {}
    below = {name: folder.folder(name) for name in folder.names()[:_MOST_ITEMS]}
    return {
        name: inner
        for name, inner in below.items()
        if inner is not None and inner.file(_TREE) is not None
    }
