"""SavedModels: a folder with the graph in `saved_model.pb` and the values in `variables/`.

`saved_model.pb` is a SavedModel; its first MetaGraphDef holds, in TensorFlow 1, a graph whose
variables the bundle stores by name, and in TensorFlow 2 a library of functions and a
SavedObjectGraph. The bundle then has an object graph of its own, whose node ids are the same;
a function's captured variables (`bound_inputs`) are such ids.
Source: tensorflow/core/protobuf/{saved_model,meta_graph,saved_object_graph}.proto.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bnstat.errors import DamagedError, NotFoundError
from bnstat.formats.contents import Contents, Graph, Node, Objects, Reading
from bnstat.formats.protobuf.protos import parse, parse_text
from bnstat.formats.protobuf.wire import LARGEST_MESSAGE
from bnstat.formats.tensorflow.bundle import INDEX
from bnstat.formats.tensorflow.checkpoint import Tensors, names_of, open_tensors, read_object_graph
from bnstat.formats.tensorflow.object_graph import KEY
from bnstat.model import Source
from bnstat.storage.files import File, Folder

BINARY = "saved_model.pb"
TEXT = "saved_model.pbtxt"
VARIABLES = "variables"

Graphs = Callable[[], Iterable[Graph]] | None

_FIELDS = rb"[\x0a\x12\x1a\x22\x2a\x32\x3a]"
_START = re.compile(rb"\x08\x01\x12([\x80-\xff]{0,4}[\x01-\x7f]" + _FIELDS + rb"|\0)")
"""`saved_model_schema_version: 1`, then a meta graph, which starts with one of its seven fields:
how every SavedModel starts. An ONNX file of that version has its producer's name there, which
starts with a letter."""

_HEAD = 256


def is_saved_model(file: File) -> bool:
    """Whether the file starts as a `saved_model.pb` does, whatever its name."""
    head = file.head(_HEAD)
    if _START.match(head) is None:
        return False
    from bnstat.formats.foreign import is_core_ml

    return not is_core_ml(head)


def has_saved_model(folder: Folder) -> bool:
    """Whether the folder is a SavedModel's, be its `saved_model.pb` there or not."""
    folder.expect((BINARY, f"{VARIABLES}/{VARIABLES}{INDEX}"))
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
        return _without_variables(folder, source, meta_graph, notes, reading)
    tensors = open_tensors(variables, VARIABLES, reading)
    if meta_graph is not None and all(key == KEY for key in tensors.keys):
        return _of_constants(source, meta_graph, notes)
    if KEY not in tensors.keys:
        return Contents(
            source,
            tensors.variables({}),
            graphs=_graphs_by_name(meta_graph, tensors),
            notes=notes,
        )
    nodes, more_notes = read_object_graph(tensors, reading)
    return _of_objects(folder, source, meta_graph, nodes, tensors, notes + more_notes)


def _of_objects(
    folder: Folder,
    source: Source,
    meta_graph: Any,
    nodes: Objects,
    tensors: Tensors,
    notes: Sequence[str],
) -> Contents:
    """A model of TensorFlow 2."""
    names, search = names_of(nodes, tensors)
    from bnstat.formats.keras.metadata import keras_layers

    layers, in_order = keras_layers(folder, meta_graph, nodes)
    return Contents(
        source,
        tensors.variables(names),
        names=names,
        search=search,
        layers=layers,
        layers_in_order=in_order,
        objects=nodes,
        graphs=_graphs_by_object(meta_graph, nodes, tensors),
        notes=notes,
    )


def _meta_graph(file: File) -> Any:
    if file.size >= LARGEST_MESSAGE:
        raise DamagedError(file.path, "is larger than a protocol buffer can be")
    if file.name.endswith(".pbtxt"):
        saved_model = parse_text("SavedModel", file.read(), file.path, "the SavedModel")
    else:
        saved_model = parse("SavedModel", file.read(), file.path, "the SavedModel")
    if not saved_model.meta_graphs:
        raise DamagedError(file.path, "holds no graph", "is it a saved_model.pb?")
    return saved_model.meta_graphs[0]


def _without_variables(
    folder: Folder, source: Source, meta_graph: Any, notes: list[str], reading: Reading
) -> Contents:
    """A model without the values of its variables, or one that has no variables."""
    from bnstat.formats.tensorflow import graph_def

    if meta_graph is None:
        raise NotFoundError(folder.path, f"neither {BINARY} nor {VARIABLES}/ is there")
    variables = folder.folder(VARIABLES)
    if variables is not None and variables.matching("variables.data"):
        raise NotFoundError(
            f"{folder.path}/{VARIABLES}/{VARIABLES}{INDEX}",
            "the index of the SavedModel's variables is missing",
            "copy it beside the data files",
        )
    if not any(node.op in graph_def.VARIABLES for node in meta_graph.graph_def.node):
        return _of_constants(source, meta_graph, notes)
    if reading.values:
        raise NotFoundError(
            f"{folder.path}/{VARIABLES}",
            "the folder of the SavedModel's variables is missing",
            f"copy it beside {BINARY}, which holds the graph alone; "
            "inspect --no-values shows names and settings",
        )
    from bnstat.formats.tensorflow.declared import declared_by_objects, declared_by_ops

    notes = [*notes, f"{VARIABLES}/ is missing: names, shapes and settings are those of the graph"]
    if meta_graph.object_graph_def.nodes:
        declared, nodes = declared_by_objects(meta_graph.object_graph_def, source.path)
        return _of_objects(folder, source, meta_graph, nodes, declared, notes)
    declared = declared_by_ops(meta_graph.graph_def, source.path)
    graphs = _graphs_by_name(meta_graph, declared)
    return Contents(source, declared.variables({}), graphs=graphs, notes=notes)


def _of_constants(source: Source, meta_graph: Any, notes: list[str]) -> Contents:
    """A model that was frozen, or converted from elsewhere, before it was saved."""
    from bnstat.formats.tensorflow.frozen_graph import contents_of_graph

    return contents_of_graph(
        meta_graph.graph_def, source, [*notes, "the SavedModel has no variables"]
    )


def _graphs_by_name(meta_graph: Any, tensors: Tensors) -> Graphs:
    if meta_graph is None:
        return None

    def read() -> Iterator[Graph]:
        from bnstat.formats.tensorflow.graph_def import graph_of

        keys = tensors.keys
        yield graph_of(meta_graph.graph_def, lambda name: name if name in keys else None)

    return read


def _graphs_by_object(meta_graph: Any, nodes: Sequence[Node], tensors: Tensors) -> Graphs:
    if meta_graph is None or not nodes:
        return None

    def read() -> Iterable[Graph]:
        from bnstat.formats.tensorflow.graph_def import function_graphs

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
