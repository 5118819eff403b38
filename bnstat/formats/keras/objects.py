"""The layers of a Keras model in a TensorFlow 2 checkpoint, by an architecture beside it.

The object graph gives every variable's full name, `block/bn/gamma`: what stands before the last
slash is the layer's, after those of the models and layers that it is in. A layer of the
architecture and a scope are one where the scope ends with the layer's name and no other does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bnstat.formats.contents import Layer, Node
from bnstat.formats.keras.config import Described


def layers_of_objects(described: Sequence[Described], nodes: Sequence[Node]) -> tuple[Layer, ...]:
    """The layers of an architecture, with the variables that the object graph names after them.

    Args:
        described: the layers right below the model.
        nodes: the object graph.
    """
    layers = [layer for top in described for layer in top.walk()]
    uses = Counter(layer.own_name for layer in layers)
    scopes = _scopes(nodes)
    found = []
    for layer in layers:
        variables = _variables(layer, layers, scopes)
        # Of several layers of one name nothing is said: they are found without this.
        if variables or uses[layer.own_name] == 1:
            found.append(
                Layer(
                    layer.name,
                    layer.class_name,
                    layer.config,
                    variables,
                    own_name=layer.own_name,
                    inputs=layer.inputs,
                )
            )
    return tuple(found)


def _scopes(nodes: Sequence[Node]) -> dict[str, dict[str, str]]:
    """Scope -> label -> key; without the scopes in which a label stands for several variables."""
    scopes: dict[str, dict[str, str]] = {}
    doubled = set()
    for node in nodes:
        scope, slash, label = node.full_name.rpartition("/")
        if node.key is None or not slash or "/.OPTIMIZER_SLOT/" in node.key:
            continue
        if scopes.setdefault(scope, {}).setdefault(label, node.key) != node.key:
            doubled.add(scope)
    return {scope: labels for scope, labels in scopes.items() if scope not in doubled}


def _variables(
    layer: Described, layers: Sequence[Described], scopes: dict[str, dict[str, str]]
) -> dict[str, str]:
    """The variables of the one scope that is the layer's; none where that is not certain."""
    for name, alike in (
        (layer.name, [other for other in layers if other.name == layer.name]),
        (layer.own_name, [other for other in layers if other.own_name == layer.own_name]),
    ):
        fits = [scope for scope in scopes if f"/{scope}".endswith(f"/{name}")]
        if len(fits) == 1 and len(alike) == 1:
            return scopes[fits[0]]
    return {}
