r"""The groups of Keras 3's weight files, and the shards that they may be spread over.

Weights saved with `max_shard_size` are `NAME.weights.json`, whose `weight_map` tells in which of
the files `NAME_00000.weights.h5`, ... each group's `vars` are; those of one group may be spread
over several. What the groups mean is in `weights`.

Before version 3, Keras on Windows joins the parts of a group's path with backslashes. HDF5 takes
the result for the name of one group: `layers\dense`, which contains `vars`.

Source: keras/src/saving/saving_lib.py, `H5IOStore` and `ShardedH5IOStore`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from bnstat.errors import DamagedError, NotFoundError
from bnstat.formats.contents import Search
from bnstat.formats.hdf5.file import Hdf5, is_hdf5
from bnstat.formats.json_text import MAX_BYTES, parse_json
from bnstat.formats.keras.sites import index_of_shard
from bnstat.formats.later import Later
from bnstat.model import Variable
from bnstat.natural import natural_key
from bnstat.storage.files import File

VARS: Final = "vars"
_OPTIMIZER: Final = "optimizer"
_NOT_LAYERS: Final = (_OPTIMIZER, "metrics")


@dataclass(frozen=True)
class Weights:
    """What such a file, or a set of shards, holds.

    Attributes:
        variables: all variables by dataset path.
        groups: path of a layer's group -> its variables, index -> dataset path. The optimizer's
            and metrics' are left out. Paths are written as Keras 3 writes them on Linux.
        names: path of a layer's group -> the layer's own name, where the file tells it.
        search: as that of `Contents`.
    """

    variables: Mapping[str, Variable]
    groups: Mapping[str, Mapping[str, str]]
    names: Mapping[str, str]
    search: Search | None = None


def read_weights(file: File, closed: Collection[str] = ()) -> Weights:
    """Read a `.weights.h5`, a `.weights.json` or one shard of it.

    Args:
        file: the file.
        closed: paths of groups that need not be opened before their variables are asked for;
            so are the optimizer's. `Weights` tells of none of them but among its variables.

    Raises:
        DamagedError: a file is truncated or contradicts itself.
        NotFoundError: a shard is missing.
    """
    index = _index_of(file)
    shards = {} if index is None else _parse_index(index)
    files = {file.name: file} if index is None else _shard_files(index, shards)

    def read(closed: Collection[str]) -> Weights:
        return _gather({name: Hdf5(each, closed) for name, each in files.items()}, shards)

    opened = read((_OPTIMIZER, *closed))
    variables = Later(opened.variables, lambda: read(()).variables)
    return replace(opened, variables=variables, search=variables.search)


def shard_names(file: File) -> tuple[str, list[str]]:
    """The file that stands for all of a model's weights, and the names of those it lists.

    Args:
        file: any file; one that has nothing to do with shards stands for itself.

    Raises:
        DamagedError: the index of the shards contradicts itself.
    """
    index = _index_of(file)
    if index is None:
        return file.name, []
    return index.name, sorted({name for names in _parse_index(index).values() for name in names})


def _index_of(file: File) -> File | None:
    """The index that a file is, or that it is a shard of."""
    if not is_hdf5(file):
        return file if is_index(file) else None
    index_name = index_of_shard(file.name)
    index = file.sibling(index_name) if index_name is not None else None
    return index if index is not None and is_index(index) else None


def _shard_files(index: File, shards: Mapping[str, Sequence[str]]) -> dict[str, File]:
    files: dict[str, File] = {}
    for name in sorted({name for names in shards.values() for name in names}):
        file = index.part(name)
        if file is None:
            raise NotFoundError(
                index.path, f"its shard {name} is missing", "copy it beside the index"
            )
        file.refuse_lfs_pointer()
        files[name] = file
    return files


def is_index(file: File) -> bool:
    """Whether a file lists the shards of weights."""
    if file.size > MAX_BYTES or not file.head(64).lstrip().startswith(b"{"):
        return False
    text = file.read()
    return b'"weight_map"' in text and b'.h5"' in text


def _parse_index(index: File) -> dict[str, list[str]]:
    """Group of variables -> the names of the files that hold them."""
    parsed = parse_json(index.read(), index.path)
    shards: dict[str, list[str]] = {}
    entries = parsed.get("weight_map") if isinstance(parsed, dict) else None
    if not isinstance(entries, dict):
        raise DamagedError(index.path, "its weight_map is not an object")
    for group, files in entries.items():
        names = [files] if isinstance(files, str) else files
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DamagedError(index.path, f"names no files for {group!r}")
        if any(re.search(r"[/\\]", name) or name in ("", ".", "..") for name in names):
            raise DamagedError(index.path, "names a file outside of its folder")
        shards[group.lstrip("/")] = names
    return shards


def _gather(stores: Mapping[str, Hdf5], shards: Mapping[str, Sequence[str]]) -> Weights:
    """The union of several files: of each group's variables, those where the index has them."""
    variables: dict[str, Variable] = {}
    groups: dict[str, dict[str, str]] = {}
    names: dict[str, str] = {}
    for file, store in stores.items():
        for key, variable in store.variables.items():
            holder, _, label = key.rpartition("/")
            if file not in shards.get(holder, stores):
                continue
            variables[key] = variable
            path = _layer_path(holder)
            if last(holder) == VARS and path.split("/")[0] not in _NOT_LAYERS:
                groups.setdefault(path, {})[label] = key
        for holder in store.groups:
            if last(holder) == VARS and (name := store.text(holder, "name")):
                names.setdefault(_layer_path(holder), name)
    for path in groups:
        groups[path] = dict(sorted(groups[path].items(), key=lambda item: natural_key(item[0])))
    return Weights(variables, groups, names)


def _layer_path(holder: str) -> str:
    """`layers/dense/vars` -> `layers/dense`, in the words of Keras 2.13 and later."""
    parts = holder.replace("\\", "/").split("/")[:-1]
    return "/".join("layers" if p == "_layer_checkpoint_dependencies" else p for p in parts)


def last(path: str) -> str:
    """The last part of a path."""
    return path.rpartition("/")[2]
