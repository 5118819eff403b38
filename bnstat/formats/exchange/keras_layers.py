"""A Keras configuration beside weights that go by the names of their layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from bnstat.formats.contents import Layer
from bnstat.formats.keras.config import describe


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
