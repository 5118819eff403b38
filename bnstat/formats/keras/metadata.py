"""What Keras 2 wrote into a SavedModel about its layers.

It describes them in JSON, one object a node of the object graph: in `keras_metadata.pb` (a
SavedMetadata) or, before TensorFlow 2.5, in the nodes of the SavedObjectGraph. Keras 3 writes
neither.
Source: keras/src/legacy/saving of Keras 2 (saved_metadata.proto).

The layers of a Keras model in a TensorFlow 2 checkpoint, by an architecture beside it.

The object graph gives every variable's full name, `block/bn/gamma`: what stands before the last
slash is the layer's, after those of the models and layers that it is in. A layer of the
architecture and a scope are one where the scope ends with the layer's name and no other does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bnstat.errors import DamagedError
from bnstat.formats.contents import Layer, Node
from bnstat.formats.json_text import parse_json
from bnstat.formats.keras.config import Described, describe, layer_from_config
from bnstat.formats.protobuf.protos import parse
from bnstat.formats.protobuf.wire import LARGEST_MESSAGE
from bnstat.storage.files import Folder

_LONGEST_NAME = 4096


def keras_layers(
    folder: Folder, meta_graph: Any, nodes: Sequence[Node]
) -> tuple[list[Layer], bool]:
    """The layers that Keras's metadata describes, and whether they are in network order.

    Args:
        folder: the SavedModel's folder.
        meta_graph: its MetaGraphDef; None where `saved_model.pb` is missing.
        nodes: the bundle's object graph.
    """
    described = dict(_keras_metadata(folder, meta_graph))
    if not described or not nodes:
        return [], True

    names = _nested_names(described, nodes)
    told = {layer.name: layer for layer in _walk(describe(described.get(0, {}), folder.path))}
    layers = []
    for node_id, name in names.items():
        class_name, config = layer_from_config(described[node_id])
        variables = {
            label: key
            for label, child in nodes[node_id].children.items()
            if (key := nodes[child].key) is not None
        }
        own_name = str(config.get("name") or name)
        inputs = told[name].inputs if name in told else ()
        layers.append(
            Layer(name, class_name, config, variables, f"object {node_id}", own_name, inputs)
        )
    rank = {name: rank for rank, name in enumerate(told)}
    in_order = any(layer.name in rank for layer in layers)
    return sorted(layers, key=lambda layer: rank.get(layer.name, len(rank))), in_order


def _walk(layers: Sequence[Described]) -> Iterator[Described]:
    for layer in layers:
        yield from layer.walk()


def _keras_metadata(folder: Folder, meta_graph: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(node id, JSON) of every layer that Keras 2 described."""
    file = folder.file("keras_metadata.pb")
    if file is not None and not file.is_lfs_pointer() and file.size < LARGEST_MESSAGE:
        metadata = parse("KerasSavedMetadata", file.read(), file.path, "Keras's metadata")
        found = [(node.node_id, node.metadata) for node in metadata.nodes]
    elif meta_graph is not None:
        found = [
            (node_id, node.user_object.metadata)
            for node_id, node in enumerate(meta_graph.object_graph_def.nodes)
            if node.HasField("user_object") and node.user_object.metadata
        ]
    else:
        return
    for node_id, text in found:
        try:
            item = parse_json(text, folder.path)
        except DamagedError:
            continue
        if isinstance(item, dict) and layer_from_config(item)[0]:
            yield node_id, item


def _nested_names(
    described: Mapping[int, Mapping[str, Any]], nodes: Sequence[Node]
) -> dict[int, str]:
    """Node id -> the layer's name, its enclosing layers' names before it, in walking order.

    A layer that several own is named after the owner that the walk meets first.
    """
    names: dict[int, str] = {}
    taken: set[str] = set()
    visited: set[int] = set()
    stack = [(0, "")]
    while stack:
        node_id, scope = stack.pop()
        if node_id in visited:
            continue
        visited.add(node_id)
        item = described.get(node_id)
        if item is not None and node_id != 0:
            own = str(layer_from_config(item)[1].get("name"))
            scope = f"{scope}/{own}" if scope else own
            scope = scope[-_LONGEST_NAME:]
            if scope not in taken:
                taken.add(scope)
                names[node_id] = scope
        stack += [(child, scope) for child in reversed([*nodes[node_id].children.values()])]
    return names


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
