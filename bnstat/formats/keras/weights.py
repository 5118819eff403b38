"""Keras 3's `.weights.h5`, of Keras 2.12 and later, alone or sharded over several files.

Every layer is a group, at the path by which its model holds it; its variables are the datasets
`vars/0`, `vars/1`, ... of that group, trainable ones first, each kind in order of creation.
Nothing names them. Groups are called by the layer's class and a count, or by the attribute that
holds the layer; the layer's own name is, since Keras 3.6, the attribute `name` of `vars`. Keras
2.12 writes `_layer_checkpoint_dependencies` where later ones write `layers`.

Source: keras/src/saving/saving_lib.py, `H5IOStore`.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

from bnstat.formats.contents import Contents, Layer
from bnstat.formats.hdf5.file import Hdf5, is_hdf5
from bnstat.formats.keras.architecture import MATCHED_BY_PLACE, architecture_beside
from bnstat.formats.keras.config import Described
from bnstat.formats.keras.groups import VARS, Weights, is_index, last, read_weights
from bnstat.formats.keras.h5 import is_legacy
from bnstat.model import Source
from bnstat.natural import natural_key
from bnstat.storage.files import File

_T = TypeVar("_T")

_ROOTS: Final = {VARS, "layers", "_layer_checkpoint_dependencies"}


def recognises(file: File) -> bool:
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
    """The variables and layers of a file that `recognises`.

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
