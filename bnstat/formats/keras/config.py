"""The layers of a Keras model, read from its configuration. The model is never built.

Keras writes a model as JSON: an object with `class_name` and `config`, whose `config` contains the
constructor's arguments. A Functional or Sequential model has an argument `layers`, in network
order; a wrapper such as TimeDistributed has an argument `layer`. Before Keras 2.2.3 the `config` of
a Sequential model is the list of layers itself.

The configuration also determines the path of each layer in a `.weights.h5`, which does not depend
on the layer's own name. The layers of a model are numbered per class: the first two Dense layers
are `layers/dense` and `layers/dense_1`. A wrapped layer has the name of the wrapper's attribute:
`layers/bidirectional/forward_layer`.

Source: `get_config` of keras/src/models/{functional,sequential}.py; `_save_state` and
`_save_container_state` of keras/src/saving/saving_lib.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeGuard

from bnstat.errors import BnstatError, DamagedError
from bnstat.formats.contents import Layer
from bnstat.formats.keras import CONFIG
from bnstat.storage.files import File
from bnstat.storage.local import LocalFile
from bnstat.text import MAX_JSON, parse_json

_MAX_DEPTH: Final = 64
MAX_NAME: Final = 1000
"""Characters of the name that enclosing models give to all layers inside."""
_MAX_INPUTS: Final = 10_000
"""The limit on a layer's input entries that are searched; a large concatenation has hundreds."""
_KEYS_OUTSIDE_CONFIG: Final = ("name", "trainable", "build_config", "inbound_nodes")
_ATTRIBUTES: Final = {("Bidirectional", "layer"): "forward_layer"}
"""(class, argument) -> the attribute that holds the layer, if argument and attribute differ."""


def walk(layers: Iterable[Layer]) -> Iterator[Layer]:
    """Yield each layer, followed by all nested layers, in network order."""
    for layer in layers:
        yield layer
        yield from walk(layer.sublayers)


def describe(model: object, where: str) -> tuple[Layer, ...]:
    """Return the outermost layers of a parsed configuration in network order.

    `where` names the file in errors. The result is usually empty for a subclassed model.
    """
    if not _is_serialized(model):
        return ()
    return _layers_of(model, Layer("", None, _arguments(model), {}), where, 0)


def layer_from_config(serialized: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the class name and the config of a layer, or `("", {})` for anything else.

    The name of a registered class includes the package: `Custom>X`. The config includes settings
    that the Keras metadata of a SavedModel stores beside the config, such as `trainable`.
    """
    if not _is_serialized(serialized):
        return "", {}
    registered = serialized.get("registered_name")
    packaged = isinstance(registered, str) and ">" in registered
    class_name = registered if packaged else serialized["class_name"]
    outside = {key: serialized[key] for key in _KEYS_OUTSIDE_CONFIG if key in serialized}
    return str(class_name), {**outside, **_arguments(serialized)}


def snake_case(class_name: str) -> str:
    """Convert a class name for paths, like Keras's `to_snake_case`: `MyNorm` -> `my_norm`."""
    name = re.sub(r"\W+", "", class_name.rpartition(">")[2])
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _layers_of(model: Mapping[str, Any], outer: Layer, where: str, depth: int) -> tuple[Layer, ...]:
    """Return the layers directly inside `outer`, which was serialized as `model`."""
    if depth > _MAX_DEPTH or len(outer.name) + len(outer.key) > MAX_NAME:
        raise DamagedError(where, "models are nested too deeply, or their names are too long")
    frozen = {"trainable": False} if outer.config.get("trainable") is False else {}
    layers: list[Layer] = []
    for place, serialized in _serialized_layers(model):
        class_name, config = layer_from_config(serialized)
        own_name = config.get("name")
        if not isinstance(own_name, str) or not own_name:
            own_name = place.rpartition("/")[2]
        if model["class_name"] == "Sequential":
            inputs = [(previous.name, "") for previous in layers[-1:]]
        else:
            inputs = [*input_tensors(config, outer.name)]
        name, key = inside(outer.name, own_name), inside(outer.key, place)
        layer = Layer(name, class_name, config | frozen, {}, key, own_name, tuple(inputs))
        layers.append(replace(layer, sublayers=_layers_of(serialized, layer, where, depth + 1)))
    return tuple(layers)


def _serialized_layers(model: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the path (`layers/dense_1`) and the configuration of each layer in a model."""
    for argument, value in _arguments(model).items():
        attribute = _ATTRIBUTES.get((model["class_name"], argument), argument)
        if isinstance(value, list):
            counts: dict[str, int] = {}
            for item in value:
                if _is_layer(item, is_listed=argument == "layers"):
                    name = snake_case(item["class_name"])
                    count = counts[name] = counts.get(name, -1) + 1
                    yield f"{attribute}/{name}_{count}" if count else f"{attribute}/{name}", item
        elif _is_layer(value, is_listed=False):
            yield attribute, value


def input_tensors(config: Mapping[str, Any], outer: str) -> Iterator[tuple[str, str]]:
    """Yield (layer name, `CALL:OUTPUT`) for each input of each call of a functional layer.

    Keras 1 and 2 write `[["conv", 0, 0, {}]]` for a call; Keras 3 writes the arguments, in which
    each tensor has a `keras_history` such as `["conv", 0, 0]`. `outer` names the enclosing model.
    """
    pending = [config.get("inbound_nodes")]
    for _ in range(_MAX_INPUTS):
        if not pending:
            return
        match pending.pop():
            case dict() as item:
                pending += item.values()
            case [str() as layer, int() as call, output, *_]:
                yield inside(outer, layer), f"{call}:{output}" if isinstance(output, int) else ""
            case list() as item:
                pending += item


def inside(outer: str, name: str) -> str:
    """Return `outer/name`, or only the name if `outer` is empty."""
    return f"{outer}/{name}" if outer else name


def _arguments(serialized: Mapping[str, Any]) -> Mapping[str, Any]:
    config = serialized["config"]
    return {"layers": config} if isinstance(config, list) else config


def _is_serialized(value: object) -> TypeGuard[Mapping[str, Any]]:
    return (
        isinstance(value, dict)
        and isinstance(value.get("class_name"), str)
        and isinstance(value.get("config"), dict | list)
    )


def _is_layer(value: object, is_listed: bool) -> TypeGuard[Mapping[str, Any]]:
    """Return True for a layer, False for an initializer, a dtype policy or an operation.

    Functional models list operations (`x + y`) among their layers, but paths in a weights file do
    not count operations. `is_listed` is True for an element of the argument `layers`.
    """
    if not _is_serialized(value):
        return False
    module = value.get("module")
    if isinstance(module, str) and re.match(r"keras(\.src)?\.ops\b", module):
        return False
    arguments = _arguments(value)
    return is_listed or "layers" in arguments or {"name", "trainable"} <= arguments.keys()


def layers_by_scope(model: object, names: Mapping[str, str], where: str) -> Iterator[Layer]:
    """Yield the layers of a parsed configuration, each with the weights of the matching scope.

    `names` maps the names of weights to keys. The part of a name before the last slash is the
    scope: the layer's name, with or without the names of enclosing models.
    """
    scopes: dict[str, dict[str, str]] = {}
    for name, key in names.items():
        scope, _, label = name.rpartition("/")
        scopes.setdefault(scope, {})[label.removesuffix(":0")] = key
    layers = [*walk(describe(model, where))]
    matches = match_scopes(layers, scopes)
    for index, layer in enumerate(layers):
        scope = matches.get(index, layer.name)
        yield replace(layer, variables=scopes.get(scope, {}), key=scope)


def match_scopes(
    layers: Sequence[Layer], scopes: Iterable[str], is_first_best: bool = False
) -> dict[int, str]:
    """Return a mapping from the index of a layer to the scope of the layer's variables.

    A scope is a variable's name without the last part: `net/bn` of `net/bn/gamma`. A layer matches
    a scope that ends with the layer's own name. If several layers match, the layer whose full name
    shares the most trailing parts with the scope is chosen. In a tie, no layer is chosen, or the
    first layer if `is_first_best`.
    """
    by_name: dict[str, list[int]] = {}
    by_ending: dict[str, list[int]] = {}
    for index, layer in enumerate(layers):
        by_name.setdefault(layer.name, []).append(index)
        for ending in endings(layer.name):
            if len(ending) >= len(layer.own_name):
                by_ending.setdefault(ending, []).append(index)
    best: dict[int, tuple[tuple[int, bool], str]] = {}
    for scope in scopes:
        ending = next((ending for ending in endings(scope) if ending in by_ending), scope)
        candidates = by_name.get(scope) or by_ending.get(ending, [])
        if len(candidates) == 1 or (candidates and is_first_best):
            similarity = (ending.count("/"), scope in by_name)
            previous, _ = best.get(candidates[0], ((-1, False), ""))
            if similarity > previous:
                best[candidates[0]] = similarity, scope
            elif similarity == previous and not is_first_best:
                best[candidates[0]] = similarity, ""
    return {index: scope for index, (_, scope) in best.items() if scope}


def endings(path: str) -> Iterator[str]:
    """Yield `a/b/c`, `b/c` and `c` for `a/b/c`; of a long path, the last 64 endings."""
    parts = path.rsplit("/", _MAX_DEPTH)
    for start in range(len(parts)):
        yield "/".join(parts[start:])


MATCHED_BY_PLACE: Final = "the file and the architecture name layers differently: matched by order"
"""The note for layers whose default names differ because another session built them."""
_WEIGHTS: Final = re.compile(r"(_\d{5})?\.weights\.(h5|json)$|\.(h5|hdf5|hdf|keras)$")
_HINT: Final = "pass the output of model.to_json(), a config.json, a .keras or a full .h5"


def read_architecture(path: str) -> tuple[Layer, ...]:
    """Read the outermost layers from a model, a `config.json`, or a file of `model.to_json()`."""
    file = LocalFile(os.path.join(path, CONFIG) if os.path.isdir(path) else path)
    file.refuse_lfs_pointer()
    model = _serialized_model(file)
    if isinstance(model, str):
        # json.dump(model.to_json(), file) encodes the text a second time.
        model = parse_json(model, path)
    layers = describe(model, path)
    if not layers:
        raise BnstatError(path, "is JSON, but lists no layers of a Keras model", _HINT)
    return layers


def _serialized_model(file: File) -> object:
    from bnstat.formats.hdf5.file import Hdf5, is_hdf5

    if is_hdf5(file):
        text = Hdf5(file).text("", "model_config")
        if text is not None:
            return parse_json(text, file.path)
    elif _starts_as_json(file):
        return read_json(file)
    else:
        from bnstat.storage.archive import open_archive

        folder = open_archive(file)
        member = folder.file(CONFIG) if folder is not None else None
        if member is not None:
            return read_json(member)
    raise BnstatError(file.path, "does not contain the architecture of a Keras model", _HINT)


def read_json(file: File) -> object:
    """Parse a JSON file; raise a `DamagedError` if it is too large or invalid."""
    if file.size > MAX_JSON:
        raise DamagedError(file.path, f"is above the limit of {MAX_JSON} bytes for JSON")
    return parse_json(file.read(), file.path)


def architecture_beside(file: File) -> str | None:
    """Return the path of the architecture that belongs to a weights file, or None.

    The file is `m.json` for `m.h5`, `m_weights.h5` and `m.weights.h5`, or `config.json` for
    `model.weights.h5`.
    """
    stem = _WEIGHTS.sub("", file.name)
    if stem == file.name:
        return None
    names = [f"{stem}.json", f"{re.sub(r'[._-]weights$', '', stem)}.json"]
    if stem == "model":
        names.append(CONFIG)
    for sibling in filter(None, map(file.sibling, dict.fromkeys(names))):
        is_json = sibling.size <= MAX_JSON and _starts_as_json(sibling)
        if is_json and b'"class_name"' in sibling.head(4096):
            return sibling.path
    return None


def _starts_as_json(file: File) -> bool:
    return file.head(64).lstrip().startswith((b"{", b'"{'))
