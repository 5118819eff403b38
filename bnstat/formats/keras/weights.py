r"""The `.weights.h5` of Keras 2.12 and later, as one file or sharded over several files.

Every layer is a group, whose path is the layer's attribute path in the model. Its variables are the
datasets `vars/0`, `vars/1`, ... of that group: trainable variables first, then the others, each in
creation order and without names. A group's name is the layer's class and a count, or the
attribute that holds the layer. Since Keras 3.6, `vars` has an attribute `name`: the layer's name.

Keras 2.12 writes `_layer_checkpoint_dependencies` instead of `layers`. Before version 3, Keras on
Windows joins the parts of a path with backslashes. HDF5 then stores a single group with the name
`layers\dense`, which contains `vars`.

Weights saved with `max_shard_size` have an index, `NAME.weights.json`. Its `weight_map` lists
which of the files `NAME_00000.weights.h5`, ... contain the `vars` of each group; the variables of
one group may be spread over several files.

Source: keras/src/saving/saving_lib.py, `H5IOStore` and `ShardedH5IOStore`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain
from typing import Final

from bnstat.errors import DamagedError, NotFoundError
from bnstat.formats.contents import Contents, Layer
from bnstat.formats.detection import is_json_with
from bnstat.formats.hdf5.file import Hdf5, is_hdf5
from bnstat.formats.keras import index_of_shard
from bnstat.formats.keras.config import (
    MATCHED_BY_PLACE,
    MAX_NAME,
    architecture_beside,
    read_json,
    walk,
)
from bnstat.formats.keras.h5 import is_legacy
from bnstat.model import Source, Variable
from bnstat.storage.files import File
from bnstat.text import natural_key

_VARS: Final = "vars"
_OLD_LAYERS: Final = "_layer_checkpoint_dependencies"
_ROOTS: Final = {_VARS, "layers", _OLD_LAYERS}
_NOT_LAYERS: Final = ("optimizer", "metrics")


@dataclass(frozen=True)
class Weights:
    """The contents of a weights file, or of all its shards.

    Attributes:
        groups: path of a layer's group, spelled as in Keras 3 -> label (`0`, `1`, ...) -> dataset
            path. Groups of the optimizer and of metrics are omitted.
        names: path of a layer's group -> the layer's own name, if the file contains it.
    """

    variables: Mapping[str, Variable]
    groups: Mapping[str, Mapping[str, str]]
    names: Mapping[str, str]


def matches(file: File) -> bool:
    """Return True for a `.weights.h5` or for the index of sharded weights."""
    if not is_hdf5(file):
        return _is_index(file)
    store = Hdf5(file)
    if is_legacy(store):
        return False
    return not store.members().isdisjoint(_ROOTS) or any(map(_is_holder, store.groups))


def open_contents(file: File, source: Source) -> Contents:
    """Return the variables and layers of a weights file; an index or a shard opens all shards."""
    weights = read_weights(file)
    source = replace(source, format="keras-weights")
    return Contents(
        source,
        weights.variables,
        layers=join((), weights),
        layers_in_order=len({path.rpartition("/")[0] for path in weights.groups}) <= 1,
        configured=partial(_configured, source, weights),
        beside=architecture_beside(file),
    )


def read_weights(file: File) -> Weights:
    """Read a `.weights.h5`; if the file is an index or a shard, read all shards."""
    index = _index_of(file)
    if index is None:
        return _gather({file.name: file}, {})
    shards = _parse_index(index)
    files: dict[str, File] = {}
    names = _file_names(shards)
    index.expect(names)
    for name in names:
        shard = index.part(name)
        if shard is None:
            what = f"its shard {name} is missing"
            raise NotFoundError(index.path, what, "copy the shard beside the index")
        shard.refuse_lfs_pointer()
        files[name] = shard
    return _gather(files, shards)


def shard_names(file: File) -> tuple[str, list[str]]:
    """Return the names of the index and its shards, or the file's name and `[]` if unsharded."""
    index = _index_of(file)
    return (index.name, _file_names(_parse_index(index))) if index else (file.name, [])


def _file_names(shards: Mapping[str, Sequence[str]]) -> list[str]:
    return sorted({*chain.from_iterable(shards.values())})


def _index_of(file: File) -> File | None:
    """Return the index, given a shard or the index itself; None for other files."""
    index: File | None = file
    if is_hdf5(file):
        name = index_of_shard(file.name)
        index = file.sibling(name) if name is not None else None
    return index if index is not None and _is_index(index) else None


def _is_index(file: File) -> bool:
    return is_json_with(file, b'"weight_map"', b'.h5"')


def _parse_index(index: File) -> dict[str, list[str]]:
    """Return path of a group `vars` -> names of the files that contain the group's variables."""
    parsed = read_json(index)
    entries = parsed.get("weight_map") if isinstance(parsed, dict) else None
    if not isinstance(entries, dict):
        raise DamagedError(index.path, "its weight_map is not a JSON object")
    shards: dict[str, list[str]] = {}
    for group, files in entries.items():
        names = [files] if isinstance(files, str) else files
        is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not is_list or any(re.search(r"[/\\]|^\.{,2}$", name) for name in names):
            raise DamagedError(index.path, f"its weight_map has no valid file names for {group!r}")
        shards[group.lstrip("/")] = names
    return shards


def _gather(files: Mapping[str, File], shards: Mapping[str, Sequence[str]]) -> Weights:
    """Merge the weights of several files.

    `shards` maps a group to the files that supply the group's variables, by default all files.
    """
    variables: dict[str, Variable] = {}
    groups: dict[str, dict[str, str]] = {}
    names: dict[str, str] = {}
    for file, store in ((name, Hdf5(file)) for name, file in files.items()):
        for key, variable in store.variables.items():
            holder, _, label = key.rpartition("/")
            if file not in shards.get(holder, files):
                continue
            variables[key] = variable
            path = _layer_path(holder)
            if _is_holder(holder) and path.split("/")[0] not in _NOT_LAYERS:
                groups.setdefault(path, {})[label] = key
        for holder in store.groups:
            if _is_holder(holder) and (name := store.text(holder, "name")):
                # Every layer below repeats the name.
                names.setdefault(_layer_path(holder), name[-MAX_NAME:])
    for path in groups:
        groups[path] = dict(sorted(groups[path].items(), key=lambda item: natural_key(item[0])))
    return Weights(variables, groups, names)


def _is_holder(group: str) -> bool:
    return group.rpartition("/")[2] == _VARS


def _layer_path(holder: str) -> str:
    """Return the path of the layer that owns a group `vars`, spelled as in Keras 3."""
    parts = holder.replace("\\", "/").split("/")[:-1]
    return "/".join("layers" if part == _OLD_LAYERS else part for part in parts)


def _configured(source: Source, weights: Weights, described: Sequence[Layer]) -> Contents:
    """Return the contents with the layers of an architecture.

    If the file has layer names that the architecture lacks, layers are matched by their paths, as
    Keras does when it loads weights.
    """
    names = {layer.key: layer.own_name for layer in walk(described)}
    stored = {path: name for path, name in weights.names.items() if path in weights.groups}
    others = {path: name for path, name in weights.names.items() if path not in names}
    inside_custom_layers = {name for path, name in others.items() if _nearest(path, names)}
    notes = []
    if not {*stored.values()} <= {*names.values(), *inside_custom_layers}:
        notes = [] if stored.keys().isdisjoint(names) else [MATCHED_BY_PLACE]
        weights = replace(weights, names=others)
    return Contents(source, weights.variables, layers=join(described, weights), notes=notes)


def join(described: Sequence[Layer], weights: Weights) -> tuple[Layer, ...]:
    """Return the layers of a configuration in order, each with the variables of the matching group.

    A layer and a group match if their paths are equal and the file does not store another name for
    the group. The remaining layers and groups are matched by name. A group without a match, for
    example in a custom layer, becomes a layer without a configuration after its enclosing layer.
    """
    layers = [*walk(described)]
    known = {
        layer.key: layer.name
        for layer in layers
        if weights.names.get(layer.key, layer.own_name) == layer.own_name
    }
    full_names = _full_names(weights, known)
    own_names = {path: name for path, name in weights.names.items() if path in weights.groups}
    placed = known.keys() & weights.groups.keys()
    matches = {index: layer.key for index, layer in enumerate(layers) if layer.key in placed}
    _match_names(matches, [layer.name for layer in layers], full_names)
    _match_names(matches, [layer.own_name for layer in layers], own_names)

    unmatched: dict[str, list[Layer]] = {}
    for path in sorted(weights.groups.keys() - set(matches.values()), key=natural_key):
        name = full_names[path]
        own_name = own_names.get(path) or name.rpartition("/")[2]
        layer = Layer(name, None, {}, weights.groups[path], path, own_name)
        unmatched.setdefault(_nearest(path, known), []).append(layer)
    with_variables = {(layers[index].own_name, layers[index].class_name) for index in matches}
    joined: list[Layer] = []
    for index, layer in enumerate(layers):
        path = matches.get(index, layer.key)
        # A layer that two models share is stored once, and is listed once.
        if index in matches or (layer.own_name, layer.class_name) not in with_variables:
            variables = weights.groups[path] if index in matches else {}
            joined.append(replace(layer, variables=variables, key=path))
        joined += unmatched.pop(layer.key, [])
    return (*joined, *unmatched.get("", ()))


def _match_names(matches: dict[int, str], layers: Sequence[str], groups: Mapping[str, str]) -> None:
    """Match a layer and a group by name if no other unmatched layer or group has the name.

    Add the pairs to `matches`: index of a layer -> path of a group. `groups` is path -> name.
    """
    names = {index: name for index, name in enumerate(layers) if index not in matches}
    free = {path: groups[path] for path in groups.keys() - matches.values()}
    path_of = {name: path for path, name in free.items()}
    of_groups, of_layers = Counter(free.values()), Counter(names.values())
    for index, name in names.items():
        if of_groups[name] == of_layers[name] == 1:
            matches[index] = path_of[name]


def _nearest(path: str, known: Container[str]) -> str:
    """Return the longest prefix of a path that is in `known`, or an empty string."""
    while path and path not in known:
        path = path.rpartition("/")[0]
    return path


def _full_names(weights: Weights, known: Mapping[str, str]) -> dict[str, str]:
    """Return group path -> layer name, prefixed by the names of enclosing models and layers.

    `known` maps the paths of matched groups to layer names. If the file stores no layer names, use
    the path components. If the file stores names, omit the components of groups without a name,
    which are lists or dictionaries.
    """

    @cache
    def full_name(path: str) -> str:
        if not path or path in known:
            return known.get(path, "")
        parent, _, part = path.rpartition("/")
        own_name = weights.names.get(path)
        if own_name is None and (path in weights.groups or not weights.names):
            own_name = "" if part == "layers" else part
        return "/".join(filter(None, (full_name(parent), own_name)))

    top = weights.names.get("", "model")
    return {path: full_name(path) if path else top for path in weights.groups}
