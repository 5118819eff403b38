"""SavedModels: a folder with the graph in `saved_model.pb` and the values in `variables/`.

`saved_model.pb` is a SavedModel; its first MetaGraphDef holds, in TensorFlow 1, a graph whose
variables the bundle stores by name, and in TensorFlow 2 a library of functions and a
SavedObjectGraph. The bundle then has an object graph of its own, whose node ids are the same;
a function's captured variables (`bound_inputs`) are such ids.

Keras 2 describes its layers in JSON, one object a node: in `keras_metadata.pb` (a SavedMetadata)
or, before TensorFlow 2.5, in the nodes of the SavedObjectGraph. Keras 3 writes neither.
Source: tensorflow/core/protobuf/{saved_model,meta_graph,saved_object_graph}.proto and
keras/src/legacy/saving of Keras 2 (saved_metadata.proto).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bnstat.errors import DamagedError, NotFoundError
from bnstat.formats.bundle import INDEX
from bnstat.formats.checkpoint import names_from_keys, read_object_graph
from bnstat.formats.contents import Contents, Graph, Layer, Node
from bnstat.formats.keras_config import Described, describe, layer_from_config, parse_json
from bnstat.formats.object_graph import KEY, best_names
from bnstat.formats.protos import message_class, parse
from bnstat.formats.storage import File, Folder
from bnstat.formats.tensors import Reading, Tensors, open_tensors
from bnstat.model import Source

BINARY = "saved_model.pb"
TEXT = "saved_model.pbtxt"
VARIABLES = "variables"

Graphs = Callable[[], Iterable[Graph]] | None

_LARGEST = 1 << 31
_LONGEST_NAME = 4096
_START = b"\x08\x01\x12"
"""`saved_model_schema_version: 1`, then a meta graph: how every SavedModel starts."""


def is_saved_model(file: File) -> bool:
    """Whether the file starts as a `saved_model.pb` does, whatever its name."""
    return file.head(len(_START)) == _START


def has_saved_model(folder: Folder) -> bool:
    """Whether the folder is a SavedModel's, be its `saved_model.pb` there or not."""
    return (
        folder.file(BINARY) is not None
        or folder.file(TEXT) is not None
        or folder.file(f"{VARIABLES}/{VARIABLES}{INDEX}") is not None
    )


def open_saved_model(
    folder: Folder, source: Source, reading: Reading, graph_file: File | None = None
) -> Contents:
    """What the SavedModel in a folder holds.

    Args:
        folder: the folder with `saved_model.pb` and `variables`.
        source: where the user pointed.
        reading: how to read.
        graph_file: the file to take for `saved_model.pb`, where it has another name.

    Raises:
        NotFoundError, DamagedError, UnsupportedError: a part is missing or damaged.
    """
    source = replace(source, format="saved-model")
    notes = []
    meta_graph = None
    graph_file = graph_file or folder.file(BINARY) or folder.file(TEXT)
    if graph_file is None:
        notes.append(f"{BINARY} is missing: read from {VARIABLES}/ alone")
    else:
        graph_file.refuse_lfs_pointer()
        meta_graph = _meta_graph(graph_file)
        version = meta_graph.meta_info_def.tensorflow_version
        source = replace(source, writer=f"TensorFlow {version}" if version else None)
    variables = folder.folder(VARIABLES)
    if variables is None or variables.file(VARIABLES + INDEX) is None:
        return _without_variables(folder, source, meta_graph, notes)
    tensors = open_tensors(variables, VARIABLES, reading)
    if KEY not in tensors.keys:
        return Contents(
            source,
            tensors.variables({}),
            graphs=_graphs_by_name(meta_graph, tensors),
            notes=notes,
        )
    nodes, more_notes = read_object_graph(tensors, reading)
    names = best_names(nodes) if nodes else names_from_keys(tensors)
    layers, in_order = _keras_layers(folder, meta_graph, nodes)
    return Contents(
        source,
        tensors.variables(names),
        names=names,
        layers=layers,
        layers_in_order=in_order,
        objects=nodes,
        graphs=_graphs_by_object(meta_graph, nodes, tensors),
        notes=notes + more_notes,
    )


def _meta_graph(file: File) -> Any:
    if file.size >= _LARGEST:
        raise DamagedError(file.path, "is larger than a protocol buffer can be")
    if file.name.endswith(".pbtxt"):
        saved_model = _parse_text(file)
    else:
        saved_model = parse("SavedModel", file.read(), file.path, "the SavedModel")
    if not saved_model.meta_graphs:
        raise DamagedError(file.path, "holds no graph", "is it a saved_model.pb?")
    return saved_model.meta_graphs[0]


def _parse_text(file: File) -> Any:
    from google.protobuf import text_format

    try:
        return text_format.Parse(
            file.read(), message_class("SavedModel")(), allow_unknown_field=True
        )
    except (text_format.ParseError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise DamagedError(file.path, "cannot be parsed as a SavedModel in text form") from error


def _without_variables(
    folder: Folder, source: Source, meta_graph: Any, notes: list[str]
) -> Contents:
    if meta_graph is None:
        raise NotFoundError(folder.path, f"neither {BINARY} nor {VARIABLES}/ is there")
    variables = folder.folder(VARIABLES)
    if variables is not None and variables.matching("variables.data"):
        raise NotFoundError(
            f"{folder.path}/{VARIABLES}/{VARIABLES}{INDEX}",
            "the index of the SavedModel's variables is missing",
            "copy it beside the data files",
        )
    from bnstat.formats.frozen_graph import contents_of_graph

    return contents_of_graph(
        meta_graph.graph_def, source, [*notes, "the SavedModel has no variables"]
    )


def _graphs_by_name(meta_graph: Any, tensors: Tensors) -> Graphs:
    if meta_graph is None:
        return None

    def read() -> Iterator[Graph]:
        from bnstat.formats.graph_def import graph_of

        keys = tensors.keys
        yield graph_of(meta_graph.graph_def, lambda name: name if name in keys else None)

    return read


def _graphs_by_object(meta_graph: Any, nodes: Sequence[Node], tensors: Tensors) -> Graphs:
    if meta_graph is None or not nodes:
        return None

    def read() -> Iterable[Graph]:
        from bnstat.formats.graph_def import function_graphs

        return function_graphs(meta_graph, _captured(meta_graph, nodes, tensors))

    return read


def _captured(
    meta_graph: Any, nodes: Sequence[Node], tensors: Tensors
) -> Mapping[str, Sequence[str | None]]:
    """Concrete function -> the keys of the variables that it captures."""

    def key(node_id: int) -> str | None:
        if not 0 <= node_id < len(nodes):
            return None
        found = nodes[node_id].key
        return found if found in tensors.keys else None

    functions = meta_graph.object_graph_def.concrete_functions
    return {
        name: [key(node_id) for node_id in function.bound_inputs]
        for name, function in functions.items()
    }


def _keras_layers(
    folder: Folder, meta_graph: Any, nodes: Sequence[Node]
) -> tuple[list[Layer], bool]:
    """The layers that Keras's metadata describes, and whether they are in network order."""
    described = dict(_keras_metadata(folder, meta_graph))
    if not described or not nodes:
        return [], True

    names = _nested_names(described, nodes)
    layers = []
    for node_id, name in names.items():
        class_name, config = layer_from_config(described[node_id])
        variables = {
            label: key
            for label, child in nodes[node_id].children.items()
            if (key := nodes[child].key) is not None
        }
        layers.append(Layer(name, class_name, config, variables, key=f"object {node_id}"))
    listed = describe(described.get(0, {}), folder.path)
    rank = {layer.name: rank for rank, layer in enumerate(_walk(listed))}
    in_order = any(layer.name in rank for layer in layers)
    return sorted(layers, key=lambda layer: rank.get(layer.name, len(rank))), in_order


def _walk(layers: Sequence[Described]) -> Iterator[Described]:
    for layer in layers:
        yield from layer.walk()


def _keras_metadata(folder: Folder, meta_graph: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(node id, JSON) of every layer that Keras 2 described."""
    file = folder.file("keras_metadata.pb")
    if file is not None and not file.is_lfs_pointer() and file.size < _LARGEST:
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
