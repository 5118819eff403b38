r"""Keras 3's `.weights.h5`, of Keras 2.12 and later, alone or sharded over several files.

Every layer is a group, at the path by which its model holds it; its variables are the datasets
`vars/0`, `vars/1`, ... of that group, trainable ones first, each kind in order of creation.
Nothing names them. Groups are called by the layer's class and a count, or by the attribute that
holds the layer; the layer's own name is, since Keras 3.6, the attribute `name` of `vars`. Keras
2.12 writes `_layer_checkpoint_dependencies` where later ones write `layers`.

Source: keras/src/saving/saving_lib.py, `H5IOStore`.

The groups of Keras 3's weight files, and the shards that they may be spread over.

Weights saved with `max_shard_size` are `NAME.weights.json`, whose `weight_map` tells in which of
the files `NAME_00000.weights.h5`, ... each group's `vars` are; those of one group may be spread
over several. What the groups mean is in `weights`.

Before version 3, Keras on Windows joins the parts of a group's path with backslashes. HDF5 takes
the result for the name of one group: `layers\dense`, which contains `vars`.

Source: keras/src/saving/saving_lib.py, `H5IOStore` and `ShardedH5IOStore`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

from bnstat.errors import DamagedError, NotFoundError
from bnstat.formats.contents import Contents, Later, Layer, Search
from bnstat.formats.hdf5.file import Hdf5, is_hdf5
from bnstat.formats.json_text import MAX_BYTES, parse_json
from bnstat.formats.keras.architecture import MATCHED_BY_PLACE, architecture_beside
from bnstat.formats.keras.config import Described
from bnstat.formats.keras.detection import index_of_shard
from bnstat.formats.keras.h5 import is_legacy
from bnstat.model import Source, Variable
from bnstat.storage.files import File
from bnstat.text import natural_key

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


_T = TypeVar("_T")

_ROOTS: Final = {VARS, "layers", "_layer_checkpoint_dependencies"}


def matches(file: File) -> bool:
    """Whether this is such an HDF5 file, or the index of a sharded one.

    Raises:
        DamagedError: it is a damaged HDF5 file.
    """
    if is_hdf5(file):
        store = Hdf5(file)
        if is_legacy(store):
            return False
        if not store.members().isdisjoint(_ROOTS):
            return True
        return any(last(group) == VARS for group in store.groups)
    return is_index(file)


def open_contents(file: File, source: Source) -> Contents:
    """The variables and layers of a file that `matches`.

    One shard of sharded weights gives all of them, where its index lies beside it.

    Raises:
        DamagedError: a file is truncated or contradicts itself.
        NotFoundError: a shard is missing.
    """
    weights = read_weights(file)
    return Contents(
        source=replace(source, format="keras-weights"),
        variables=weights.variables,
        search=weights.search,
        layers=join((), weights),
        layers_in_order=len({path.rpartition("/")[0] for path in weights.groups}) <= 1,
        configured=partial(_configured, weights, replace(source, format="keras-weights")),
        beside=architecture_beside(file),
    )


def _configured(weights: Weights, source: Source, described: Sequence[Described]) -> Contents:
    """The same as an architecture tells it.

    Where the file calls layers by names that the architecture does not have, as of a model that
    was built once more in the same session, they are matched as Keras loads them: by their place.
    """
    layers = {layer.path: layer.own_name for top in described for layer in top.walk()}
    named = {name for path, name in weights.names.items() if path in weights.groups}
    notes = []
    if not named <= {*layers.values(), *_inside(weights, layers)}:
        renamed = {path for path in weights.names.keys() & layers.keys() if path in weights.groups}
        weights = replace(
            weights,
            names={path: name for path, name in weights.names.items() if path not in layers},
        )
        if renamed:
            notes = [MATCHED_BY_PLACE]
    return Contents(
        source=source,
        variables=weights.variables,
        search=weights.search,
        layers=join(described, weights),
        notes=notes,
    )


def _inside(weights: Weights, told: Container[str]) -> set[str]:
    """The names of the layers that are in a layer of the user's own."""
    return {
        name for path, name in weights.names.items() if path not in told and _nearest(path, told)
    }


def join(described: Sequence[Described], weights: Weights) -> tuple[Layer, ...]:
    """The layers of a model: what its configuration tells of them, with what the file holds.

    A described layer and a group are one where the paths agree, unless the file names the layer
    otherwise; else where the names agree. Groups that the configuration does not tell of, as
    those inside a layer of the user's own, are layers without a configuration and follow the
    described layer that they are in.

    Args:
        described: the layers right below the model, as `keras_config.describe` gives them; none
            where there is no configuration.
        weights: what the file holds.

    Returns:
        The layers in the order of the configuration; without one, in natural order of the paths.
    """
    layers = [layer for top in described for layer in top.walk()]
    told = {
        layer.path: layer.name
        for layer in layers
        if weights.names.get(layer.path, layer.own_name) == layer.own_name
    }
    names = _full_names(weights, told)
    owners = _owners(layers, weights, told, names)
    saved = {(layers[index].own_name, layers[index].class_name) for index in owners}
    bare: dict[str, list[Layer]] = {}
    for path in sorted(weights.groups.keys() - set(owners.values()), key=natural_key):
        own_name = weights.names.get(path) or names[path].rpartition("/")[2]
        layer = Layer(names[path], None, {}, weights.groups[path], path, own_name)
        bare.setdefault(_nearest(path, told), []).append(layer)
    joined: list[Layer] = []
    for index, described_layer in enumerate(layers):
        shared_with_another = (described_layer.own_name, described_layer.class_name) in saved
        if index in owners or not shared_with_another:
            path = owners.get(index, described_layer.path)
            joined.append(
                Layer(
                    described_layer.name,
                    described_layer.class_name,
                    described_layer.config,
                    weights.groups[path] if index in owners else {},
                    path,
                    described_layer.own_name,
                    described_layer.inputs,
                )
            )
        joined += bare.pop(described_layer.path, [])
    return (*joined, *bare.get("", ()))


def _owners(
    layers: Sequence[Described],
    weights: Weights,
    told: Mapping[str, str],
    names: Mapping[str, str],
) -> dict[int, str]:
    """Index of a described layer -> path of its group."""
    owners = {
        index: layer.path
        for index, layer in enumerate(layers)
        if layer.path in told and layer.path in weights.groups
    }
    for layer_names, group_names in (
        ([layer.name for layer in layers], names),
        ([layer.own_name for layer in layers], weights.names),
    ):
        free_groups = weights.groups.keys() - set(owners.values())
        paths = _by_unique_name((group_names.get(path), path) for path in free_groups)
        indices = _by_unique_name(
            (name, index) for index, name in enumerate(layer_names) if index not in owners
        )
        owners |= {index: paths[name] for name, index in indices.items() if name in paths}
    return owners


def _by_unique_name(pairs: Iterable[tuple[str | None, _T]]) -> dict[str, _T]:
    """Name -> what has it, for the names that only one thing has."""
    named: dict[str, list[_T]] = {}
    for name, thing in pairs:
        if name:
            named.setdefault(name, []).append(thing)
    return {name: things[0] for name, things in named.items() if len(things) == 1}


def _nearest(path: str, told: Container[str]) -> str:
    """The innermost described layer around a path; empty where there is none."""
    while path and path not in told:
        path = path.rpartition("/")[0]
    return path


def _full_names(weights: Weights, told: Mapping[str, str]) -> dict[str, str]:
    """The name of each group's layer, after those of the models and layers that it is in.

    Where the file tells no names at all, the parts of the path stand for them. Where it does,
    groups without a name are lists and dictionaries, which do not count.
    """
    names = {"": ""}

    def name(path: str) -> str:
        if path not in names:
            parent, _, part = path.rpartition("/")
            if path in told:
                names[path] = told[path]
            else:
                own = weights.names.get(path)
                if own is None and (path in weights.groups or not weights.names):
                    own = "" if part == "layers" else part
                names[path] = "/".join(filter(None, (name(parent), own)))
        return names[path]

    for path in weights.groups:
        name(path)
    names[""] = weights.names.get("", "model")
    return names
