"""Keras's first HDF5 format, of Keras 0 to 3: whole models and `save_weights`.

A group per layer of the outermost model, in the root or, in a whole model, in `model_weights`;
its attribute `layer_names` tells their order. A layer's group holds its variables under their
full names, whose slashes become groups: `bn/bn/gamma:0`; all layers of a nested model share the
group of that model. A whole model has its configuration in the root's attribute `model_config`,
and the optimizer's variables in `optimizer_weights`.

- Keras 2 names variables with `:0`, Keras 3 without, Keras 1 by `bn1_running_mean`.
- Keras 2 writes a nested model's layer as `inner/bn/gamma:0`, Keras 3 as
  `inner/inner/bn/gamma`; a layer in TimeDistributed as `wrapper/wrapper/gamma:0` and
  `wrapper/wrapper/bn/gamma`. A model that was built twice in one graph has `bn/bn_1/gamma:0`.
- Keras 0 numbers both: `layer_4/param_0`, with an attribute `nb_layers`.

Source: keras/src/legacy/saving/legacy_h5_format.py; keras/engine/topology.py of Keras 1.2.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from bnstat.formats.contents import Contents, Later, Layer
from bnstat.formats.hdf5.file import Hdf5, is_hdf5
from bnstat.formats.json_text import parse_json
from bnstat.formats.keras.architecture import MATCHED_BY_PLACE, architecture_beside
from bnstat.formats.keras.config import Described, describe
from bnstat.formats.keras.plain import is_plain
from bnstat.model import Source, Variable
from bnstat.storage.files import File
from bnstat.text import natural_key

_MODEL: Final = "model_weights"
_OPTIMIZER: Final = "optimizer_weights"
_INPUT: Final = "InputLayer"
_TOP_LEVEL: Final = "top_level_model_weights"


def matches(file: File) -> bool:
    """Whether this is an HDF5 file that lists its layers as these formats do.

    Raises:
        DamagedError: it is a damaged HDF5 file.
    """
    return is_hdf5(file) and is_legacy(Hdf5(file))


def is_legacy(store: Hdf5) -> bool:
    """Whether an HDF5 file is of this format rather than of Keras 3's `.weights.h5`."""
    marks = ("layer_names", "layer_names0", "nb_layers", "model_config")
    return _MODEL in store.members() or any(store.has_attribute("", mark) for mark in marks)


def open_contents(file: File, source: Source) -> Contents:
    """The variables and layers of a file that `matches`.

    Raises:
        DamagedError: the file is truncated or contradicts itself.
    """
    store = Hdf5(file)
    root = _MODEL if _MODEL in store.members() else ""
    config = store.text("", "model_config")
    described = describe(parse_json(config, file.path), file.path) if config else ()
    opened = Hdf5(file, _closed(described, root))
    weights = _by_group(opened, root)
    version = store.text("", "keras_version") or opened.text(root, "keras_version")
    variables = Later(_named(opened, weights), lambda: _named(store, _by_group(store, root)))
    contents = Contents(
        source=replace(source, format="keras-h5", writer=writer(version)),
        variables=variables,
        search=variables.search,
        layers=tuple(_layers(described, weights)),
    )
    if described:
        return contents

    def configured(described: Sequence[Described]) -> Contents:
        placed = _by_place(described, weights)
        notes = [MATCHED_BY_PLACE] if placed is not weights else []
        return replace(contents, layers=tuple(_layers(described, placed)), notes=notes)

    return replace(contents, configured=configured, beside=architecture_beside(file))


def _closed(described: Sequence[Described], root: str) -> Iterator[str]:
    """The groups that need not be opened to know what is in them: the optimizer's and kernels'."""
    yield _OPTIMIZER
    # Names may hold slashes, so that one layer's group is in another's.
    opened = {
        layer.own_name.partition("/")[0]
        for layer in described
        if not is_plain(layer) or "/" in layer.own_name
    }
    for layer in described:
        if layer.own_name.partition("/")[0] not in opened:
            yield f"{root}/{layer.own_name}" if root else layer.own_name


def _named(store: Hdf5, weights: Mapping[str, Sequence[_Weight]]) -> Mapping[str, Variable]:
    """A file's variables under their full names."""
    full_names = {weight.key: weight.full_name for group in weights.values() for weight in group}
    return {
        key: replace(variable, name=full_names.get(key, variable.name))
        for key, variable in store.variables.items()
    }


def writer(version: str | None) -> str | None:
    """The library that wrote a file, from the version that it left there.

    Both tf.keras and Keras leave a bare number; tf.keras appends `-tf` up to 2.3, and from 2.4
    to 2.15 Keras is tf.keras.
    """
    if not version:
        return None
    numbers = re.match(r"(\d+)\.(\d+)", version)
    release = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    is_tensorflow = version.endswith("-tf") or (2, 4) <= release < (3, 0)
    return f"{'tf.keras' if is_tensorflow else 'Keras'} {version}"


@dataclass(frozen=True, slots=True)
class _Weight:
    """A dataset of a layer's group.

    Attributes:
        key: its path in the file.
        scope: the groups between the layer's group and it: `bn`, `inner/bn`, or empty.
        label: its own name, without `:0`.
    """

    key: str
    scope: str
    label: str

    @property
    def full_name(self) -> str:
        return f"{self.scope}/{self.label}" if self.scope else self.label


_Scopes = Mapping[str, Mapping[str, str]]
"""Scope -> label -> key, of one group."""


def _group_names(store: Hdf5, root: str) -> list[str]:
    """The groups of the outermost model's layers, in stored order."""
    names = store.texts(root, "layer_names")
    if names is None:
        prefix = f"{root}/" if root else ""
        below = (group[len(prefix) :] for group in store.groups if group.startswith(prefix))
        found = {path.partition("/")[0] for path in below} - {"", _OPTIMIZER}
        return sorted(found, key=natural_key)
    return [*names, _TOP_LEVEL]


def _by_group(store: Hdf5, root: str) -> dict[str, list[_Weight]]:
    """The weights of each layer's group, in the order that its `weight_names` tells."""
    groups: dict[str, list[_Weight]] = {name: [] for name in _group_names(store, root)}
    prefix = f"{root}/" if root else ""
    for key in store.variables:
        if not key.startswith(prefix):
            continue
        parts = key[len(prefix) :].split("/")
        # Layers' names may hold slashes: the longest that fits is the one.
        for length in range(len(parts) - 1, 0, -1):
            name = "/".join(parts[:length])
            if name in groups:
                scope = "/".join(parts[length:-1])
                groups[name].append(_Weight(key, scope, parts[-1].removesuffix(":0")))
                break
    for name, weights in groups.items():
        listed = store.texts(prefix + name, "weight_names") or []
        position = {f"{prefix}{name}/{weight}": place for place, weight in enumerate(listed)}
        weights.sort(key=lambda w: (position.get(w.key, len(position)), natural_key(w.key)))
    return groups


def _by_place(
    described: Sequence[Described], weights: Mapping[str, list[_Weight]]
) -> Mapping[str, list[_Weight]]:
    """The weights under the names of an architecture, where the file has others in their place.

    Keras loads them so: the names of layers that nobody named differ from session to session.
    Inputs are layers of a functional model, not of a sequential one.
    """
    names = [name for name in weights if name != _TOP_LEVEL]
    told = {layer.own_name for layer in described}
    if all(name in told for name in names if weights[name]):
        return weights
    for layers in (described, [one for one in described if one.class_name != _INPUT]):
        pairs = list(zip(layers, names, strict=False))
        if len(layers) == len(names) and not any(
            layer.class_name == _INPUT and weights[name] for layer, name in pairs
        ):
            return {layer.own_name: weights[name] for layer, name in pairs}
    return weights


def _layers(
    described: Sequence[Described], weights: Mapping[str, Sequence[_Weight]]
) -> Iterator[Layer]:
    """All layers: in the order of the configuration, then what it does not tell of."""
    for layer in described:
        yield from _described_layers(layer, weights.get(layer.own_name, ()))
    told = {layer.own_name for layer in described}
    for name, group in weights.items():
        if name not in told:
            yield from _bare_layers(name, _scoped(group, [name]))


def _described_layers(top: Described, weights: Sequence[_Weight]) -> Iterator[Layer]:
    """A layer of the outermost model and those in it, with the scopes that are theirs."""
    layers = list(top.walk())
    scopes = _scoped(weights, [layer.own_name for layer in layers])
    owners = _owners(layers, scopes)
    if not top.sublayers and not owners and len(scopes) == 1 and not _is_inside(top, scopes):
        owners = {0: next(iter(scopes))}
    for index, layer in enumerate(layers):
        variables = scopes[owners[index]] if index in owners else {}
        yield Layer(
            layer.name,
            layer.class_name,
            layer.config,
            variables,
            _place(variables, layer.name),
            layer.own_name,
            layer.inputs,
        )
    taken = set(owners.values())
    yield from _bare_layers(
        top.own_name, {scope: own for scope, own in scopes.items() if scope not in taken}
    )


def _bare_layers(group: str, scopes: _Scopes) -> Iterator[Layer]:
    """The layers of a group of which no configuration tells: one per scope."""
    renamed = re.compile(rf"(.*/)?{re.escape(group)}(_\d+)?")
    for scope, variables in scopes.items():
        is_own = not scope or (len(scopes) == 1 and renamed.fullmatch(scope))
        name = group if is_own else _joined(group, scope)
        own_name = name if is_own else scope.rpartition("/")[2]
        yield Layer(name, None, {}, variables, _place(variables, name), own_name)


def _is_inside(top: Described, scopes: _Scopes) -> bool:
    return any(f"/{top.own_name}/" in f"/{scope}" for scope in scopes)


def _place(variables: Mapping[str, str], otherwise: str) -> str:
    """The group that holds the variables."""
    return next((key.rpartition("/")[0] for key in variables.values()), otherwise)


def _scoped(weights: Iterable[_Weight], layers: Sequence[str]) -> _Scopes:
    """Weights by scope.

    Keras 1 has no scopes, but puts the layer's name before the weight's: `bn1_gamma`. That
    name is the scope then, whichever of `layers` it is.
    """
    scopes: dict[str, dict[str, str]] = {}
    longest_first = sorted(set(layers), key=len, reverse=True)
    for weight in weights:
        scope, label = weight.scope, weight.label
        if not scope:
            scope = next((name for name in longest_first if label.startswith(f"{name}_")), "")
            label = label[len(scope) + 1 :] if scope else label
        scopes.setdefault(scope, {})[label] = weight.key
    return scopes


def _owners(layers: Sequence[Described], scopes: _Scopes) -> dict[int, str]:
    """Index of a layer -> its scope, for a layer of the outermost model and all in it."""
    by_name: dict[str, list[int]] = {}
    for index, layer in enumerate(layers):
        by_name.setdefault(layer.own_name, []).append(index)
    owners: dict[int, str] = {}
    best: dict[int, int] = {}
    for scope in scopes:
        fits = [
            (_common(scope, layers[index].name), -index)
            for ending in _endings(scope)
            for index in by_name.get(ending, ())
        ]
        length, negative = max(fits, default=(0, 0))
        if length > best.get(-negative, 0):
            best[-negative] = length
            owners[-negative] = scope
    _pass_to_wrapped(layers, owners)
    _adopt_renamed(layers, owners, scopes)
    return owners


def _pass_to_wrapped(layers: Sequence[Described], owners: dict[int, str]) -> None:
    """Give the layer in a wrapper what Keras 2 keeps under the wrapper's name."""
    for index, layer in enumerate(layers):
        wraps_one = len(layer.sublayers) == 1 and not layer.sublayers[0].sublayers
        if wraps_one and index in owners and index + 1 not in owners:
            owners[index + 1] = owners.pop(index)


def _adopt_renamed(layers: Sequence[Described], owners: dict[int, str], scopes: _Scopes) -> None:
    """Match `bn` with a scope `bn_1` that no layer has, where there is no other choice.

    TensorFlow 1 renames the scopes of a model that is built twice in one graph.
    """
    free: dict[str, list[int]] = {}
    for index, layer in enumerate(layers):
        if index not in owners and not layer.sublayers:
            free.setdefault(layer.own_name, []).append(index)
    claims: dict[int, list[str]] = {}
    for scope in sorted(set(scopes) - set(owners.values())):
        original = re.sub(r"_\d+$", "", scope)
        fits = [index for ending in _endings(original) for index in free.get(ending, ())]
        if original != scope and len(fits) == 1:
            claims.setdefault(fits[0], []).append(scope)
    for index, claimed in claims.items():
        if len(claimed) == 1:
            owners[index] = claimed[0]


def _endings(path: str) -> Iterator[str]:
    """`a/b/c` -> `a/b/c`, `b/c`, `c`."""
    yield path
    while "/" in path:
        path = path.partition("/")[2]
        yield path


def _common(scope: str, name: str) -> int:
    """How many of the last parts of two paths agree."""
    count = 0
    for left, right in zip(reversed(scope.split("/")), reversed(name.split("/")), strict=False):
        if left != right:
            break
        count += 1
    return count


def _joined(group: str, scope: str) -> str:
    """The name of a layer in a group: `net/blk/bn` in `blk` is `blk/bn`, `bn` in it as well."""
    _, found, inside = f"/{scope}/".partition(f"/{group}/")
    return f"{group}/{inside if found else scope}".rstrip("/")
