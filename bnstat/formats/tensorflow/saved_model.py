"""SavedModels: a folder with the graph in `saved_model.pb` and the values in `variables/`.

In TensorFlow 1 the first MetaGraphDef of a SavedModel contains a graph; the bundle in `variables/`
stores the graph's variables by name. In TensorFlow 2 the MetaGraphDef contains functions and a
SavedObjectGraph. The bundle has another object graph with the same node ids; `bound_inputs` lists
the ids of the variables that a function captures. Without `variables/`, the SavedObjectGraph still
describes each variable as an object, whose path is the checkpoint key.

Sources: tensorflow/core/protobuf/{saved_model,meta_graph,saved_object_graph}.proto;
`_ObjectGraphView` and `_escape_local_name` of tensorflow/python/checkpoint.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bnstat.errors import DamagedError, NotFoundError
from bnstat.formats.contents import Contents, Graph, Node, Objects, Reading
from bnstat.formats.protobuf.protos import parse, parse_text
from bnstat.formats.protobuf.wire import LARGEST_MESSAGE
from bnstat.formats.tensorflow.bundle import BINARY, INDEX, TEXT_START, VARIABLES
from bnstat.formats.tensorflow.checkpoint import contents_of_objects, open_tensors
from bnstat.formats.tensorflow.frozen_graph import (
    contents_of_graph,
    declared_by_ops,
    declared_variable,
)
from bnstat.formats.tensorflow.graph_def import VARIABLES as VARIABLE_OPS
from bnstat.formats.tensorflow.graph_def import Captured, function_graphs, graph_of
from bnstat.formats.tensorflow.object_graph import KEY, VALUE, best_names
from bnstat.model import Source, Variable
from bnstat.storage.files import File, Folder

_NO_VARIABLES = "the SavedModel has no variables"


def open_saved_model(
    folder: Folder, source: Source, reading: Reading, file: File | None
) -> Contents:
    """Open a SavedModel; `file` contains its graph, or is None if only the variables exist."""
    source = replace(source, format="saved-model")
    notes = []
    meta_graph = None
    if file is None:
        notes.append(f"{BINARY} is missing: read from {VARIABLES}/ alone")
    else:
        file.refuse_lfs_pointer()
        meta_graph = _meta_graph(file)
        version = meta_graph.meta_info_def.tensorflow_version
        source = replace(source, writer=f"TensorFlow {version}" if version else None)
    variables = folder.folder(VARIABLES)
    if variables is None or variables.file(VARIABLES + INDEX) is None:
        return _without_variables(folder, source, meta_graph, notes, reading)
    tensors = open_tensors(variables, VARIABLES, reading)
    stored = tensors.variables()
    if meta_graph is not None and all(key == KEY for key in stored):
        return contents_of_graph(meta_graph.graph_def, source, [*notes, _NO_VARIABLES])
    if KEY not in stored:
        return _of_graph(source, meta_graph, stored, notes)
    contents = contents_of_objects(tensors, source, reading, notes)
    if not contents.objects and not reading.values and meta_graph is not None:
        contents = _described_by_graph(contents, meta_graph, notes)
    return _with_network(contents, folder, meta_graph)


def _meta_graph(file: File) -> Any:
    if file.size >= LARGEST_MESSAGE:
        raise DamagedError(file.path, "is larger than a protocol buffer can be")
    data = file.read()
    parse_message = parse_text if TEXT_START.match(data) else parse
    saved_model = parse_message("SavedModel", data, file.path, "the SavedModel")
    if not saved_model.meta_graphs:
        raise DamagedError(file.path, "contains no graph", "is it a saved_model.pb?")
    return saved_model.meta_graphs[0]


def _without_variables(
    folder: Folder, source: Source, meta_graph: Any, notes: list[str], reading: Reading
) -> Contents:
    if meta_graph is None:
        raise NotFoundError(folder.path, f"{BINARY} and {VARIABLES}/ are missing")
    variables = folder.folder(VARIABLES)
    if variables is not None and variables.matching("variables.data"):
        path = f"{folder.path}/{VARIABLES}/{VARIABLES}{INDEX}"
        problem = "the index of the SavedModel's variables is missing"
        raise NotFoundError(path, problem, "copy it beside the data files")
    if not any(node.op in VARIABLE_OPS for node in meta_graph.graph_def.node):
        return contents_of_graph(meta_graph.graph_def, source, [*notes, _NO_VARIABLES])
    if reading.values:
        problem = "the folder of the SavedModel's variables is missing"
        hint = f"copy the folder beside {BINARY}, which contains only the graph; "
        hint += "inspect --no-values shows names and settings"
        raise NotFoundError(f"{folder.path}/{VARIABLES}", problem, hint)
    notes = [*notes, f"{VARIABLES}/ is missing: names, shapes and settings are those of the graph"]
    if meta_graph.object_graph_def.nodes:
        contents = _declared_by_objects(meta_graph.object_graph_def.nodes, source, notes)
        return _with_network(contents, folder, meta_graph)
    declared = declared_by_ops(meta_graph.graph_def, source.path)
    return _of_graph(source, meta_graph, declared, notes)


def _of_graph(
    source: Source, meta_graph: Any, variables: Mapping[str, Variable], notes: list[str]
) -> Contents:
    """Return the contents of a SavedModel of TensorFlow 1."""
    graphs = None if meta_graph is None else lambda: (graph_of(meta_graph.graph_def, variables),)
    return Contents(source, variables, graphs=graphs, notes=notes)


def _with_network(contents: Contents, folder: Folder, meta_graph: Any) -> Contents:
    """Add the Keras layers and functions of a TensorFlow 2 SavedModel to a copy of `contents`."""
    from bnstat.formats.keras.metadata import keras_layers

    def read() -> Iterable[Graph]:
        captured = captured_keys(meta_graph, contents.objects, contents.variables)
        return function_graphs(meta_graph, captured)

    layers, in_order = keras_layers(folder, meta_graph, contents.objects)
    graphs = None if meta_graph is None or not contents.objects else read
    return replace(contents, layers=layers, layers_in_order=in_order, graphs=graphs)


def captured_keys(meta_graph: Any, nodes: Sequence[Node], keys: Container[str]) -> Captured:
    """Return function name -> keys of captured variables; None replaces a key not in `keys`."""

    def key_of(node_id: int) -> str | None:
        key = nodes[node_id].key if 0 <= node_id < len(nodes) else None
        return key if key in keys else None

    return {
        name: [key_of(node_id) for node_id in function.bound_inputs]
        for name, function in meta_graph.object_graph_def.concrete_functions.items()
    }


def _declared_by_objects(saved: Any, source: Source, notes: Sequence[str]) -> Contents:
    """Return the object graph and the variables that the nodes of a SavedObjectGraph declare."""
    paths, indices = _shortest_paths(saved), range(len(saved))
    nodes, declared = [], {}
    for index, node in enumerate(saved):
        valid = (child for child in node.children if child.node_id in indices)
        children = {child.local_name: child.node_id for child in valid}
        key, name = None, ""
        if node.HasField("variable") and index in paths:
            name, kind = node.variable.name.partition(":")[0], node.variable
            path = paths[index] + VALUE
            variable = declared_variable(path, name, kind.dtype, kind.shape, source.path)
            if variable is not None:
                key, declared[path] = path, variable
        nodes.append(Node(children, key, name))
    names = best_names(nodes)
    variables = {key: replace(each, name=names.get(key, key)) for key, each in declared.items()}
    return Contents(source, variables, names=names, objects=Objects(nodes), notes=notes)


def _described_by_graph(contents: Contents, meta_graph: Any, notes: Sequence[str]) -> Contents:
    """Return a copy of `contents` with the object graph and the names in a SavedModel's graph.

    The data files, which contain the object graph of the checkpoint, cannot be read.
    """
    saved = meta_graph.object_graph_def.nodes
    if not saved:
        return contents
    notes = [*notes, f"the data files cannot be read: names and settings are those in {BINARY}"]
    declared = _declared_by_objects(saved, contents.source, notes)
    names = {**contents.names, **declared.names}
    variables = {
        key: replace(variable, name=names.get(key, key))
        for key, variable in contents.variables.items()
    }
    return replace(declared, variables=variables, names=names)


def _shortest_paths(saved: Any) -> dict[int, str]:
    """Return a dict of node indices to the shortest paths from the root, in escaped form."""
    paths = {0: ""} if len(saved) else {}
    queue = deque(paths)
    while queue:
        index = queue.popleft()
        for child in saved[index].children:
            if child.node_id not in paths and 0 <= child.node_id < len(saved):
                name = child.local_name.replace(".", "..").replace("/", ".S")
                paths[child.node_id] = f"{paths[index]}/{name}" if paths[index] else name
                queue.append(child.node_id)
    return paths
