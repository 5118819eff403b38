"""Keras's first HDF5 format, of Keras 0 to 3, for whole models and for weights alone.

Each layer of the outermost model has a group in the root or, in a whole model, in `model_weights`.
The attribute `layer_names` lists these groups in order. A layer's group contains its variables
under full names, in which each slash separates groups: `bn/bn/gamma:0`. All layers of a nested
model share the group of that model. A whole model has its configuration in the root's attribute
`model_config`, and the optimizer's variables in `optimizer_weights`.

- Keras 2 appends `:0` to names, Keras 3 does not, Keras 1 uses `bn1_running_mean`.
- A variable in a nested model is `inner/bn/gamma:0` in Keras 2, `inner/inner/bn/gamma` in Keras 3.
  In TimeDistributed, the names are `wrapper/wrapper/gamma:0` and `wrapper/wrapper/bn/gamma`. In a
  model that was built twice in one graph, a name is `bn/bn_1/gamma:0`.
- Keras 0 numbers layers and variables: `layer_4/param_0`, with an attribute `nb_layers`.

Source: keras/src/legacy/saving/legacy_h5_format.py; keras/engine/topology.py of Keras 1.2.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from bnstat.formats.contents import Contents, Layer
from bnstat.formats.hdf5.file import Hdf5, is_hdf5
from bnstat.formats.keras.config import (
    MATCHED_BY_PLACE,
    architecture_beside,
    describe,
    match_scopes,
    walk,
)
from bnstat.model import Source
from bnstat.storage.files import File
from bnstat.text import natural_key, parse_json

_MODEL: Final = "model_weights"
_OPTIMIZER: Final = "optimizer_weights"
_INPUT: Final = "InputLayer"
_TOP_LEVEL: Final = "top_level_model_weights"
_MOST_PREFIXES: Final = 64
"""The limit on the prefixes of a weight's name that are searched for a layer of Keras 1."""


def matches(file: File) -> bool:
    """Return True for an HDF5 file of this format; False for Keras 3's `.weights.h5`."""
    return is_hdf5(file) and is_legacy(Hdf5(file))


def is_legacy(store: Hdf5) -> bool:
    """Return True if an HDF5 file has this format rather than Keras 3's `.weights.h5`."""
    marks = {"layer_names", "layer_names0", "nb_layers", "model_config"}
    return _MODEL in store.members() or any(each.name in marks for each in store.attributes(""))


def open_contents(file: File, source: Source) -> Contents:
    """Return the variables and layers of a file for which `matches` is True."""
    store = Hdf5(file)
    root = _MODEL if _MODEL in store.members() else ""
    groups = _weights_by_group(store, root)
    names = {key: name for weights in groups.values() for key, name in weights.items()}
    variables = {
        key: replace(variable, name=names.get(key, variable.name))
        for key, variable in store.variables.items()
    }
    config = store.text("", "model_config")
    described = describe(parse_json(config, file.path), file.path) if config else ()
    version = store.text("", "keras_version") or store.text(root, "keras_version")
    source = replace(source, format="keras-h5", writer=writer(version))
    full_names = {
        key: _name_in_group(group, name)
        for group, weights in groups.items()
        for key, name in weights.items()
    }
    contents = Contents(source, variables, full_names, tuple(_layers(described, groups)))
    if described:
        return contents

    def configured(described: Sequence[Layer]) -> Contents:
        renamed = _rename_groups(described, groups)
        notes = [MATCHED_BY_PLACE] if renamed is not groups else []
        return replace(contents, layers=tuple(_layers(described, renamed)), notes=notes)

    return replace(contents, configured=configured, beside=architecture_beside(file))


def writer(version: str | None) -> str | None:
    """Return the library and version (`Keras 2.3.1`) for the version that a file stores.

    Up to version 2.3, only tf.keras appends `-tf`. From 2.4 to 2.15, every file is from tf.keras.
    """
    if not version:
        return None
    numbers = re.match(r"(\d+)\.(\d+)", version)
    release = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    is_tensorflow = version.endswith("-tf") or (2, 4) <= release < (3, 0)
    return f"{'tf.keras' if is_tensorflow else 'Keras'} {version}"


_Groups = Mapping[str, Mapping[str, str]]
"""Name of a layer's group -> key of each weight -> the weight's name in the group: `bn/gamma`."""

_Scopes = Mapping[str, Mapping[str, str]]
"""Scope -> label -> key, for one group."""


def _weights_by_group(store: Hdf5, root: str) -> _Groups:
    """Return the groups below `root`; each lists weights in the order of `weight_names`."""
    prefix = f"{root}/" if root else ""
    names = store.texts(root, "layer_names")
    if names is None:
        below = (group[len(prefix) :] for group in store.groups if group.startswith(prefix))
        top_groups = {path.partition("/")[0] for path in below} - {"", _OPTIMIZER}
        names = sorted(top_groups, key=natural_key)
    else:
        names = [*names, _TOP_LEVEL]
    groups: dict[str, dict[str, str]] = {name: {} for name in names}
    for key in store.variables:
        if not key.startswith(prefix):
            continue
        parts = key[len(prefix) :].split("/")
        # Names of layers may contain slashes: the longest that fits is the layer's.
        for length in range(len(parts) - 1, 0, -1):
            name = "/".join(parts[:length])
            if name in groups:
                groups[name][key] = "/".join(parts[length:]).removesuffix(":0")
                break
    for name, weights in groups.items():
        listed = store.texts(prefix + name, "weight_names") or []
        position = {f"{prefix}{name}/{weight}": place for place, weight in enumerate(listed)}
        keys = sorted(weights, key=lambda key: (position.get(key, len(position)), natural_key(key)))
        groups[name] = {key: weights[key] for key in keys}
    return groups


def _rename_groups(described: Sequence[Layer], groups: _Groups) -> _Groups:
    """Return the groups, renamed to the layers of an architecture if their names differ.

    Default names differ from session to session, so Keras pairs the groups with the layers by
    order. Only functional models have groups for input layers; other input layers are skipped. If
    the numbers of groups and layers differ, return the groups unchanged.
    """
    names = [name for name in groups if name != _TOP_LEVEL]
    known = {layer.own_name for layer in described}
    if all(name in known for name in names if groups[name]):
        return groups
    for layers in (described, [layer for layer in described if layer.class_name != _INPUT]):
        pairs = list(zip(layers, names, strict=False))
        is_shifted = any(layer.class_name == _INPUT and groups[name] for layer, name in pairs)
        if len(layers) == len(names) and not is_shifted:
            return {layer.own_name: groups[name] for layer, name in pairs}
    return groups


def _layers(described: Sequence[Layer], groups: _Groups) -> Iterator[Layer]:
    """Yield the configured layers in order, then layers for groups without a configuration."""
    for layer in described:
        yield from _described_layers(layer, groups.get(layer.own_name, {}))
    known = {layer.own_name for layer in described}
    for name, weights in groups.items():
        if name not in known:
            yield from _other_layers(name, _scopes(weights, [name, *_keras_1_norms(weights)]))


def _described_layers(top: Layer, weights: Mapping[str, str]) -> Iterator[Layer]:
    """Yield a layer of the outermost model and its nested layers, each with its variables."""
    layers = [*walk([top])]
    scopes = _scopes(weights, [layer.own_name for layer in layers])
    matches = match_scopes(layers, scopes, is_first_best=True)
    for index, layer in enumerate(layers):
        # Keras 2 names the scope of a wrapped layer after the wrapper.
        wraps_one = len(layer.sublayers) == 1 and not layer.sublayers[0].sublayers
        if wraps_one and index in matches and index + 1 not in matches:
            matches[index + 1] = matches.pop(index)
    _match_renamed(layers, matches, scopes)
    if not top.sublayers and not matches and len(scopes) == 1:
        [scope] = scopes
        if f"/{top.own_name}/" not in f"/{scope}":
            matches = {0: scope}
    for index, layer in enumerate(layers):
        variables = scopes[matches[index]] if index in matches else {}
        yield replace(layer, variables=variables, key=_group_of(variables, layer.name))
    matched = {*matches.values()}
    others = {scope: variables for scope, variables in scopes.items() if scope not in matched}
    yield from _other_layers(top.own_name, others)


def _other_layers(group: str, scopes: _Scopes) -> Iterator[Layer]:
    """Yield one layer for each scope of a group; the layers have no configuration."""
    renamed = re.compile(rf"(.*/)?{re.escape(group)}(_\d+)?")
    for scope, variables in scopes.items():
        name, own_name = group, group
        if scope and not (len(scopes) == 1 and renamed.fullmatch(scope)):
            name = _name_in_group(group, f"{scope}/").rstrip("/")
            own_name = scope.rpartition("/")[2]
        yield Layer(name, None, {}, variables, _group_of(variables, name), own_name)


def _name_in_group(group: str, name: str) -> str:
    """Return `blk/bn/gamma` for both `net/blk/bn/gamma` and `bn/gamma` in the group `blk`."""
    _, is_repeated, inside = f"/{name}".partition(f"/{group}/")
    return f"{group}/{inside if is_repeated else name}"


def _keras_1_norms(weights: Mapping[str, str]) -> list[str]:
    """Return the names of the batch norms of Keras 1 among the weights of a nested model."""
    ending = "_running_mean"
    return [name.removesuffix(ending) for name in weights.values() if name.endswith(ending)]


def _group_of(variables: Mapping[str, str], default: str) -> str:
    return next((key.rpartition("/")[0] for key in variables.values()), default)


def _scopes(weights: Mapping[str, str], layers: Sequence[str]) -> _Scopes:
    """Sort the weights of one HDF5 group by scope; return scope -> label (`gamma`) -> key.

    Keras 1 has no scopes, but prefixes each weight with the layer's name: `bn1_gamma`. The scope is
    then the longest name in `layers` that is such a prefix.
    """
    scopes: dict[str, dict[str, str]] = {}
    known = set(layers)
    for key, name in weights.items():
        scope, slash, label = name.rpartition("/")
        if not slash:
            scope = next((prefix for prefix in _prefixes(name) if prefix in known), "")
            label = name[len(scope) + 1 :] if scope else name
        scopes.setdefault(scope, {})[label] = key
    return scopes


def _prefixes(name: str) -> Iterator[str]:
    """Yield `a_b` and `a` for `a_b_c`; of a name with many underscores, the longest prefixes."""
    parts = name.rsplit("_", _MOST_PREFIXES)
    for end in range(len(parts) - 1, 0, -1):
        yield "_".join(parts[:end])


def _match_renamed(layers: Sequence[Layer], matches: dict[int, str], scopes: _Scopes) -> None:
    """Match each remaining layer (`bn`) with a renamed scope (`bn_1`), if unambiguous.

    TensorFlow 1 renames the scopes of a model that is built twice in one graph.
    """
    free = [i for i, layer in enumerate(layers) if i not in matches and not layer.sublayers]
    renamed = {
        scope: original
        for scope in sorted(scopes.keys() - set(matches.values()))
        if (original := re.sub(r"_\d+$", "", scope)) != scope
    }
    originals = match_scopes([layers[index] for index in free], renamed.values())
    scope_of = {original: scope for scope, original in renamed.items()}
    matches.update((free[index], scope_of[scope]) for index, scope in originals.items())
