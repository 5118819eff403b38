"""Orbax checkpoints of JAX libraries and of Keras: folders of Zarr arrays, read by `tensorstore`.

A checkpoint consists of one or several items, each a tree of arrays. An array's name is its path in
the tree, joined by dots. Under this name, the item's store contains the array's Zarr metadata
(`.zarray` in version 2, `zarr.json` in version 3) and chunks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import BnstatError, DamagedError, UnsupportedError
from bnstat.formats.contents import Contents, name_of_path
from bnstat.formats.detection import Finder, ModelSet, StoredModel, sorted_by_age
from bnstat.formats.dtypes import as_shape, dtype_of_descr, find_dtype
from bnstat.model import Source, Variable
from bnstat.storage.files import File, Folder
from bnstat.text import parse_json

_TREE: Final = "_METADATA"
_STORE: Final = "manifest.ocdbt"
_CHECKPOINT: Final = "_CHECKPOINT_METADATA"
_STRINGS: Final = "_strings.json"
_STEP: Final = re.compile(r"(?P<prefix>.+)_(?P<step>\d{1,18})")
"""The name of a step's folder if it has a prefix; otherwise the name is a number."""
_UNNAMED_ITEMS: Final = frozenset({"default", "pytree", "model_config", "assets"})
_MOST_ITEMS: Final = 100

_METADATA: Final = {".zarray": "zarr", "zarr.json": "zarr3"}
"""The file that describes an array -> tensorstore's driver for the array."""
_NOT_NUMBERS: Final = frozenset("SUVOMm")
_LARGEST: Final = 1 << 30
"""The limit on the bytes of an array, because small metadata can claim any number of zeros."""
_LARGEST_CHUNK: Final = 1 << 26
"""The limit on the bytes of a chunk of a smaller array, because tensorstore allocates them."""
_BLOSC_SIZE: Final = slice(4, 8)
_FAILURES: Final = (ValueError, OSError, RuntimeError, MemoryError, TypeError)
"""The errors that tensorstore raises for damaged or unsupported data."""


class Orbax(Finder):
    """Finds checkpoints: a folder that is an item, or that contains items."""

    def owner(self, folder: Folder, file: File) -> ModelSet | Folder | None:
        is_part = file.name in (_TREE, _STORE, _CHECKPOINT) and _items(folder)
        return folder if is_part else None

    def models_within(self, folder: Folder) -> ModelSet | None:
        by_prefix: dict[str, list[StoredModel]] = {}
        for name in folder.names() if folder.can_list else ():
            match = _STEP.fullmatch(name)
            below = folder.folder(name) if match is not None else None
            model = self.model_of_folder(below) if below is not None else None
            if match is not None and model is not None:
                step, modified = int(match["step"]), folder.modified(name)
                model = model._replace(name=name, step=step, modified=modified)
                by_prefix.setdefault(match["prefix"], []).append(model)
        return sorted_by_age(next(iter(by_prefix.values()))) if len(by_prefix) == 1 else None

    def model_of_folder(self, folder: Folder) -> StoredModel | None:
        items = _items(folder)
        if not items:
            return None
        return StoredModel(lambda source, _: open_items(items, source), times=folder.times)


def _items(folder: Folder) -> dict[str, Folder]:
    """Return item name -> folder of the item; the name is empty if `folder` itself is an item."""
    if folder.file(_TREE) is not None:
        return {"": folder}
    if folder.file(_CHECKPOINT) is None:
        return {}
    below = [(name, folder.folder(name)) for name in folder.names()[:_MOST_ITEMS]]
    return {name: item for name, item in below if item is not None and item.file(_TREE) is not None}


def open_items(items: Mapping[str, Folder], source: Source) -> Contents:
    """Return the arrays of all items; keys begin with an item's name if there are several."""
    variables: dict[str, Variable] = {}
    names: dict[str, str] = {}
    config: object = None
    for item, folder in items.items():
        strings = _json(folder, _STRINGS)
        if config is None and isinstance(text := strings.get("config"), str):
            config = parse_json(text, f"{folder.path}/{_STRINGS}")
        store = _Store(folder)
        paths = _paths(folder)
        start = f"{item}/" if len(items) > 1 and item not in _UNNAMED_ITEMS else ""
        for name, driver, metadata in store.arrays():
            dtype, shape = _described(driver, metadata, f"{folder.path}/{name}")
            key = start + name
            names[key] = name_of_path(paths.get(name) or name.split("."))
            reader = partial(store.read, name, driver, dtype, shape, b"blosc" in metadata)
            variables[key] = Variable(key, names[key], dtype, shape, reader)
    source = replace(source, format="orbax")
    if config is None:
        return Contents(source, variables, names=names)
    from bnstat.formats.keras.config import layers_by_scope

    keys = {name: key for key, name in names.items()}
    layers = tuple(layers_by_scope(config, keys, source.path))
    return Contents(replace(source, writer="Keras"), variables, names=names, layers=layers)


def _json(folder: Folder, name: str) -> Mapping[str, Any]:
    """Return the JSON object in the file `name`, or `{}` if there is no file or no object."""
    file = folder.file(name)
    parsed = parse_json(file.read(), file.path) if file is not None else None
    return parsed if isinstance(parsed, dict) else {}


def _paths(folder: Folder) -> dict[str, list[str]]:
    """Return array name in the store -> keys of the path in the tree."""
    tree = _json(folder, _TREE).get("tree_metadata")
    paths = {}
    for entry in tree.values() if isinstance(tree, dict) else ():
        parts = entry.get("key_metadata") if isinstance(entry, dict) else None
        if not isinstance(parts, list):
            continue
        keys = [part.get("key") for part in parts if isinstance(part, dict)]
        path = [str(key) for key in keys if isinstance(key, str | int) and len(str(key)) < 4000]
        paths[".".join(path)] = path
    return paths


def _described(driver: str, metadata: bytes, where: str) -> tuple[str, tuple[int, ...]]:
    """Return the name of the dtype, and the shape, from an array's Zarr metadata."""
    parsed = parse_json(metadata, where)
    fields: Mapping[str, Any] = parsed if isinstance(parsed, dict) else {}
    kind, shape = fields.get("data_type", fields.get("dtype")), as_shape(fields.get("shape"))
    if isinstance(kind, str) and driver == "zarr" and kind[:1] in "<>|":
        dtype = dtype_of_descr(kind)
        if dtype is not None:
            kind = dtype.name
        elif kind[1:2] not in _NOT_NUMBERS:
            kind = None
    if not isinstance(kind, str) or shape is None:
        raise DamagedError(where, "does not describe an array")
    return kind, shape


class _Store:
    def __init__(self, folder: Folder) -> None:
        tree = folder.file(_TREE)
        if tree is None or tree.local_path is None:
            reason = "bnstat reads Orbax checkpoints only from disk"
            raise UnsupportedError(folder.path, reason, "copy the folder to disk")
        self._path = folder.path
        base = os.path.abspath(os.path.dirname(tree.local_path)) + "/"
        self._spec: dict[str, Any] = {"driver": "file", "path": base}
        if folder.file(_STORE) is not None:
            self._spec = {"driver": "ocdbt", "base": self._spec}
        try:
            import tensorstore
        except ImportError:
            reason = "reading an Orbax checkpoint needs tensorstore, which is not installed"
            raise UnsupportedError(self._path, reason, "pip install tensorstore") from None
        self._tensorstore: Any = tensorstore

    def arrays(self) -> Iterator[tuple[str, str, bytes]]:
        """Yield the name, tensorstore's driver and the Zarr metadata of each array."""
        try:
            store = self._tensorstore.KvStore.open(self._spec).result()
            keys = sorted(key.decode("utf-8", "replace") for key in store.list().result())
            parts = [(key, *key.rpartition("/")[::2]) for key in keys]
            futures = [(name, end, store.read(key)) for key, name, end in parts if end in _METADATA]
            texts = [(name, end, bytes(future.result().value)) for name, end, future in futures]
        except _FAILURES as error:
            raise self._damaged(error) from error
        return ((name, _METADATA[end], text) for name, end, text in texts if name)

    def read(
        self, name: str, driver: str, kind: str, shape: tuple[int, ...], has_blosc: bool
    ) -> NDArray[np.generic]:
        """Return the elements of an array; `has_blosc` is True if Blosc may compress the chunks."""
        where = f"{self._path}: {name}"
        dtype = find_dtype(kind)
        size = 0 if dtype is None else prod(shape) * dtype.itemsize
        if dtype is None or size > _LARGEST:
            reason = f"bnstat does not read an array of type {kind} and shape {shape}"
            raise UnsupportedError(where, reason)
        inside = f"{name}/"
        store = {**self._spec, "path": self._spec.get("path", "") + inside}
        try:
            if has_blosc:
                self._refuse_large_chunks(inside, where)
            opened = self._tensorstore.open({"driver": driver, "kvstore": store}).result()
            chunk = prod(opened.chunk_layout.read_chunk.shape or ()) * dtype.itemsize
            if chunk > max(size, _LARGEST_CHUNK):
                raise DamagedError(where, f"has {size:,} bytes, but claims a chunk of {chunk:,}")
            numbers: NDArray[np.generic] = np.asarray(opened.read().result())
        except _FAILURES as error:
            raise self._damaged(error) from error
        if numbers.shape != shape or numbers.dtype != dtype:
            raise DamagedError(where, "its shape or dtype differs from the metadata")
        return numbers

    def _refuse_large_chunks(self, inside: str, where: str) -> None:
        """Raise if a chunk claims a huge size in its header (Blosc 1, README_HEADER.rst)."""
        store = self._tensorstore.KvStore.open(self._spec).result()
        keys = store.list(self._tensorstore.KvStore.KeyRange(inside, inside + "\xff")).result()
        names = (key.decode("utf-8", "replace").rpartition("/")[2] for key in keys)
        chunks = [key for key, name in zip(keys, names, strict=True) if name not in _METADATA]
        for future in [store.read(key) for key in chunks]:
            size = int.from_bytes(bytes(future.result().value)[_BLOSC_SIZE], "little")
            if size > _LARGEST_CHUNK:
                raise DamagedError(where, f"a chunk claims a decompressed size of {size:,} bytes")

    def _damaged(self, error: Exception) -> BnstatError:
        reason = str(error).partition("\n")[0].partition(" [")[0][:200]
        return DamagedError(self._path, f"cannot be read by tensorstore ({reason})")
