"""Keras layers of SavedModels and TensorFlow 2 checkpoints, matched with the object graph.

Keras 2 describes the layers of a SavedModel in JSON, one object per node of the object graph: in
`keras_metadata.pb` (a SavedMetadata) or, before TensorFlow 2.5, in the nodes of the
SavedObjectGraph. Keras 3 writes neither. Checkpoints contain no description; the user can pass an
architecture, whose layers are matched with the full names (`block/bn/gamma`) in the object graph.

Source: keras/src/legacy/saving of Keras 2 (saved_metadata.proto).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bnstat.errors import DamagedError
from bnstat.formats.contents import Layer, Node
from bnstat.formats.keras.config import (
    MAX_NAME,
    describe,
    input_tensors,
    inside,
    layer_from_config,
    match_scopes,
    walk,
)
from bnstat.formats.protobuf.protos import parse
from bnstat.formats.protobuf.wire import LARGEST_MESSAGE
from bnstat.storage.files import Folder
from bnstat.text import parse_json


def keras_layers(
    folder: Folder, meta_graph: Any, nodes: Sequence[Node]
) -> tuple[list[Layer], bool]:
    """Return the layers in a SavedModel's metadata, and True if they are in network order.

    `meta_graph` is None if `saved_model.pb` is missing; `nodes` is the bundle's object graph.
    """
    metadata = dict(_keras_metadata(folder, meta_graph))
    if not metadata or not nodes:
        return [], True

    described = {layer.name: layer for layer in walk(describe(metadata.get(0, {}), folder.path))}
    layers = []
    for node_id, name in _full_names(metadata, nodes).items():
        class_name, config = layer_from_config(metadata[node_id])
        variables = {
            label: stored
            for label, child in nodes[node_id].children.items()
            if (stored := nodes[child].key) is not None
        }
        own_name = str(config.get("name") or name)
        if name in described:
            inputs = described[name].inputs
        else:
            inputs = tuple(input_tensors(config, name.removesuffix(own_name).rstrip("/")))
        key = f"object {node_id}"
        layers.append(Layer(name, class_name, config, variables, key, own_name, inputs))
    rank = {name: rank for rank, name in enumerate(described)}
    is_in_order = any(layer.name in rank for layer in layers)
    return sorted(layers, key=lambda layer: rank.get(layer.name, len(rank))), is_in_order


def _keras_metadata(folder: Folder, meta_graph: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the node id and the parsed JSON of every layer that Keras 2 described."""
    file = folder.file("keras_metadata.pb")
    if file is not None and not file.is_lfs_pointer() and file.size < LARGEST_MESSAGE:
        message = parse("KerasSavedMetadata", file.read(), file.path, "Keras's metadata")
        texts = [(node.node_id, node.metadata) for node in message.nodes]
    elif meta_graph is not None:
        texts = [
            (node_id, node.user_object.metadata)
            for node_id, node in enumerate(meta_graph.object_graph_def.nodes)
            if node.HasField("user_object") and node.user_object.metadata
        ]
    else:
        return
    for node_id, text in texts:
        try:
            item = parse_json(text, folder.path)
        except DamagedError:
            continue
        if isinstance(item, dict) and layer_from_config(item)[0]:
            yield node_id, item


def _full_names(metadata: Mapping[int, Mapping[str, Any]], nodes: Sequence[Node]) -> dict[int, str]:
    """Return node id -> the layer's name, prefixed by the names of enclosing layers.

    A layer with several parents is named after the first parent in a depth-first walk.
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
        item = metadata.get(node_id)
        if item is not None and node_id != 0:
            own_name = str(layer_from_config(item)[1].get("name"))
            # Cycles in the object graph could make a name endless.
            scope = inside(scope, own_name)[-MAX_NAME:]
            if scope not in taken:
                taken.add(scope)
                names[node_id] = scope
        stack += [(child, scope) for child in reversed([*nodes[node_id].children.values()])]
    return names


def layers_of_objects(described: Sequence[Layer], nodes: Sequence[Node]) -> tuple[Layer, ...]:
    """Return an architecture's layers, each with the variables whose full names match the layer.

    Omit an unmatched layer if others have the same own name; other evidence may still find it.
    """
    layers = [*walk(described)]
    uses = Counter(layer.own_name for layer in layers)
    scopes = _scopes(nodes)
    matches = match_scopes(layers, scopes)
    return tuple(
        replace(layer, variables=scopes[matches[index]] if index in matches else {}, key="")
        for index, layer in enumerate(layers)
        if index in matches or uses[layer.own_name] == 1
    )


def _scopes(nodes: Sequence[Node]) -> dict[str, dict[str, str]]:
    """Return scope -> label -> key; omit scopes in which two variables have the same label."""
    scopes: dict[str, dict[str, str]] = {}
    ambiguous = set()
    for node in nodes:
        scope, slash, label = node.full_name.rpartition("/")
        if node.key is None or not slash or "/.OPTIMIZER_SLOT/" in node.key:
            continue
        if scopes.setdefault(scope, {}).setdefault(label, node.key) != node.key:
            ambiguous.add(scope)
    return {scope: labels for scope, labels in scopes.items() if scope not in ambiguous}
