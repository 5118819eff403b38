"""The layers of a Keras model, out of its configuration.

Keras writes a model as JSON: an object with `class_name` and `config`, whose `config` holds the
constructor's arguments. Those of a Functional or Sequential model hold its `layers` in the order
of the network, those of a wrapper such as TimeDistributed its inner `layer`, each in the same
form. Before Keras 2.2.3 a Sequential model's `config` is that list itself.

The same walk tells where Keras keeps each layer's variables in a `.weights.h5`: below `layers/`
and the snake case of the layer's class, counted per class within its model; a wrapped layer
below the name of the wrapper's attribute. Layers' own names play no part in it.

Source: `get_config` of keras/src/models/{functional,sequential}.py; `_save_state` and
`_save_container_state` of keras/src/saving/saving_lib.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard

from bnstat.errors import DamagedError
from bnstat.formats.contents import Layer

_MAX_DEPTH: Final = 64
_MOST_INPUTS: Final = 10_000
"""Parts of a layer's inputs that are looked at; those of a large concatenation have hundreds."""

_SEQUENTIAL: Final = "Sequential"
_BESIDE: Final = ("name", "trainable", "build_config", "inbound_nodes")
_ATTRIBUTES: Final = {("Bidirectional", "layer"): "forward_layer"}
"""(class, argument) -> attribute that holds the layer, where they are not called the same."""


@dataclass(frozen=True, slots=True)
class Described:
    """A layer or nested model as a configuration describes it.

    Attributes:
        name: its own name, the names of the models and wrappers around it before it.
        own_name: its own name, which may hold slashes of its own.
        class_name: its class, with the package where it is registered under one: `Custom>X`.
        config: the constructor's arguments; `trainable` is false below a frozen model.
        path: where a `.weights.h5` keeps it: `layers/sequential/layers/batch_normalization`.
        sublayers: the layers in it, in the order of the network.
        module: where Keras finds the class, as Keras 3 tells it; empty otherwise.
        inputs: the names of the layers of the same model whose outputs the layer is called on,
            one for each input of each call; empty if the configuration does not record them.
    """

    name: str
    own_name: str
    class_name: str
    config: Mapping[str, Any]
    path: str
    sublayers: tuple[Described, ...] = field(repr=False)
    module: str = ""
    inputs: tuple[str, ...] = ()

    def walk(self) -> Iterator[Described]:
        """This layer, then all below it, in the order of the network."""
        yield self
        for layer in self.sublayers:
            yield from layer.walk()


def describe(model: object, where: str) -> tuple[Described, ...]:
    """The layers right below a model, each with those below it.

    Args:
        model: a parsed configuration, `{"class_name": ..., "config": ...}`.
        where: the file, for messages.

    Returns:
        The layers in the order of the network; none where the configuration does not list
        them, as that of a subclassed model does not.

    Raises:
        DamagedError: models are nested beyond reason.
    """
    if not _is_serialized(model):
        return ()
    return _below(model, "", "", False, where, 0)


def layer_from_config(serialized: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Class name and configuration of one serialized layer.

    Args:
        serialized: `{"class_name": ..., "config": {...}}`, as in a model's configuration or in
            the Keras metadata of a SavedModel, which holds `trainable` beside the config.

    Returns:
        The class name, with its package where it is registered under one (`Custom>X`), and the
        config, `trainable`, `name`, `inbound_nodes` and Keras 3's `build_config` among it; both
        empty where there are none.
    """
    if not _is_serialized(serialized):
        return "", {}
    registered = serialized.get("registered_name")
    packaged = isinstance(registered, str) and ">" in registered
    class_name = registered if packaged else serialized["class_name"]
    beside = {key: serialized[key] for key in _BESIDE if key in serialized}
    return str(class_name), {**beside, **_arguments(serialized)}


def snake_case(class_name: str) -> str:
    """A class's name as Keras spells it in paths: `BatchNormalization` -> `batch_normalization`.

    Source: `to_snake_case` of keras/src/utils/naming.py.
    """
    name = re.sub(r"\W+", "", class_name.rpartition(">")[2])
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _below(
    model: Mapping[str, Any], name: str, path: str, frozen: bool, where: str, depth: int
) -> tuple[Described, ...]:
    """The layers right below a serialized model or wrapper of that name and path."""
    if depth > _MAX_DEPTH:
        raise DamagedError(where, f"its models are nested deeper than {_MAX_DEPTH}")
    frozen = frozen or _arguments(model).get("trainable") is False
    found: list[Described] = []
    is_sequential = model["class_name"] == _SEQUENTIAL
    for place, serialized in _places(model):
        class_name, config = layer_from_config(serialized)
        module = serialized.get("module")
        own_name = config.get("name")
        if not isinstance(own_name, str) or not own_name:
            own_name = place.rpartition("/")[2]
        full_name = f"{name}/{own_name}" if name else own_name
        full_path = f"{path}/{place}" if path else place
        if is_sequential:
            inputs = [each.name for each in found[-1:]]
        else:
            called_on = _called_on(serialized.get("inbound_nodes"))
            inputs = [f"{name}/{each}" if name else each for each in called_on]
        found.append(
            Described(
                name=full_name,
                own_name=own_name,
                class_name=class_name,
                config={**config, "trainable": False} if frozen else config,
                path=full_path,
                sublayers=_below(serialized, full_name, full_path, frozen, where, depth + 1),
                module=module if isinstance(module, str) else "",
                inputs=tuple(inputs),
            )
        )
    return tuple(found)


def _places(model: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The serialized layers among a layer's arguments, each with its place below the layer."""
    for argument, value in _arguments(model).items():
        place = _ATTRIBUTES.get((model["class_name"], argument), argument)
        if isinstance(value, list):
            counts: dict[str, int] = {}
            for item in value:
                if _is_layer(item, listed=argument == "layers"):
                    yield f"{place}/{_counted(snake_case(item['class_name']), counts)}", item
        elif _is_layer(value, listed=False):
            yield place, value


def _called_on(inbound_nodes: object) -> Iterator[str]:
    """Yield the name of the layer behind each input of each call of a functional layer.

    Keras 1 and 2 write `[["conv", 0, 0, {}]]` for a call; Keras 3 writes the arguments, in which
    each tensor has a `keras_history` such as `["conv", 0, 0]`.
    """
    pending = [inbound_nodes]
    for _ in range(_MOST_INPUTS):
        if not pending:
            return
        item = pending.pop()
        if isinstance(item, dict):
            pending += item.values()
        elif isinstance(item, list):
            is_tensor = len(item) >= 3 and isinstance(item[0], str) and isinstance(item[1], int)
            if is_tensor:
                yield item[0]
            else:
                pending += item


def _arguments(serialized: Mapping[str, Any]) -> Mapping[str, Any]:
    config = serialized["config"]
    return {"layers": config} if isinstance(config, list) else config


def _is_serialized(value: object) -> TypeGuard[Mapping[str, Any]]:
    return (
        isinstance(value, dict)
        and isinstance(value.get("class_name"), str)
        and isinstance(value.get("config"), dict | list)
    )


def _is_layer(value: object, listed: bool) -> TypeGuard[Mapping[str, Any]]:
    """Whether an argument is a layer, not an initializer, a dtype policy or an operation.

    A functional model lists bare operations (`x + y`) among its layers; they hold no variables
    and are not counted where layers are saved.
    """
    if not _is_serialized(value):
        return False
    module = value.get("module")
    if isinstance(module, str) and re.match(r"keras(\.src)?\.ops\b", module):
        return False
    arguments = _arguments(value)
    return listed or "layers" in arguments or {"name", "trainable"} <= arguments.keys()


def _counted(name: str, counts: dict[str, int]) -> str:
    """`name`, `name_1`, `name_2`, ... on successive calls."""
    count = counts[name] = counts.get(name, -1) + 1
    return f"{name}_{count}" if count else name


def layers_by_scope(model: object, names: Mapping[str, str], where: str) -> Iterator[Layer]:
    """The layers of a configuration, each with the weights under its name.

    Args:
        model: the configuration, parsed.
        names: name of a weight -> its key. What stands before the last part is its scope: the
            layer's name, with or without those of the models around it.
        where: what holds the configuration, for errors.

    Raises:
        DamagedError: models are nested beyond reason.
    """
    scopes: dict[str, dict[str, str]] = {}
    for name, key in names.items():
        scope, _, label = name.rpartition("/")
        scopes.setdefault(scope, {})[label.removesuffix(":0")] = key
    ends: dict[str, list[str]] = {}
    for scope in scopes:
        ends.setdefault(scope.rpartition("/")[2], []).append(scope)
    described = [layer for top in describe(model, where) for layer in top.walk()]
    uses = Counter(layer.own_name for layer in described)
    for layer in described:
        alike = ends.get(layer.own_name, ()) if uses[layer.own_name] == 1 else ()
        candidates = (layer.name, *(alike if len(alike) == 1 else ()))
        place = next((name for name in candidates if name in scopes), layer.name)
        own = scopes.get(place, {})
        yield Layer(
            layer.name, layer.class_name, layer.config, own, place, layer.own_name, layer.inputs
        )
