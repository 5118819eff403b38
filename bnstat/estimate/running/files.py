"""Models on disk, and sessions, as programs, each kind in its own way."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bnstat.errors import AmbiguousError, DamagedError, NotFoundError, UnsupportedError
from bnstat.estimate.running.flat_graph import Input, Program
from bnstat.estimate.running.signature import Chosen, obvious, unknown_shape
from bnstat.formats.contents import Contents
from bnstat.formats.tensorflow.graph_def import graph_of, variables_of_calls
from bnstat.formats.tensorflow.saved_model import BINARY, TEXT
from bnstat.live import session_contents, session_variables
from bnstat.mending.layout import footprint
from bnstat.model import Array

_SERVING = "serving_default"
_INITIALIZERS = ("__saved_model_init_op", "legacy_init_op", "saved_model_main_op")


def saved_model(path: str, contents: Contents, chosen: Chosen) -> Program:
    """The program of a SavedModel's signature.

    Raises:
        BnstatError: it has no graph, no such signature, or cannot be run.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    message = _parsed(_graph_of_saved_model(contents), [saved_model_pb2.SavedModel()])
    meta_graph = message.meta_graphs[0]
    graph_def = meta_graph.graph_def
    inputs, outputs = _signature(meta_graph, chosen, path)
    captured = _captured(meta_graph, contents)
    keys = contents.variables
    parts: Mapping[str, tuple[slice, ...]] = {}
    if captured:
        variables = variables_of_calls(graph_def, captured)
    else:
        graph = graph_of(graph_def, lambda name: name if name in keys else None)
        variables, parts = graph.variables, graph.parts
    if not contents.objects and not variables:
        variables = _constants(contents)
    fed, settings = chosen.parted(inputs, graph_def, path)
    return Program(
        path,
        graph_def,
        variables,
        _reader(contents),
        fed,
        outputs,
        settings,
        _initializers(meta_graph),
        parts,
    )


def frozen_graph(path: str, contents: Contents, chosen: Chosen) -> Program:
    """The program of a graph that is a file of its own.

    Raises:
        BnstatError: it cannot be run.
    """
    from tensorflow.core.framework import graph_pb2
    from tensorflow.core.protobuf import meta_graph_pb2

    from bnstat.formats.tensorflow.graph_def import VARIABLES

    kinds = [graph_pb2.GraphDef(), meta_graph_pb2.MetaGraphDef()]
    message = _parsed(footprint(contents.source).path, kinds)
    graph_def = getattr(message, "graph_def", message)
    if any(node.op in VARIABLES for node in graph_def.node):
        raise UnsupportedError(
            path,
            "is a graph without the values of its variables",
            "name the checkpoint that belongs to it, with the .meta beside it",
        )
    return _of_graph(path, graph_def, _constants(contents), contents, chosen)


def checkpoint_with_graph(path: str, contents: Contents, chosen: Chosen) -> Program:
    """The program of a TensorFlow 1 checkpoint and the `.meta` beside it.

    Raises:
        BnstatError: there is no `.meta`, or it cannot be run.
    """
    meta = f"{footprint(contents.source).path}.meta"
    if not os.path.exists(meta):
        raise NotFoundError(
            path,
            "is a checkpoint alone, which has values but no network that could be run",
            "give the SavedModel, or the .keras, or the .meta beside a TensorFlow 1 checkpoint; "
            "or build the network in Python, load the checkpoint into it, and call "
            "bnstat.recalibrate(model, data)",
        )
    from tensorflow.core.protobuf import meta_graph_pb2

    message = _parsed(meta, [meta_graph_pb2.MetaGraphDef()])
    keys = contents.variables
    graph_def = message.graph_def
    graph = graph_of(graph_def, lambda name: name if name in keys else None)
    return _of_graph(path, graph_def, graph.variables, contents, chosen, graph.parts)


def session(where: str, thing: Any, chosen: Chosen) -> Program:
    """The program of a session's graph.

    Raises:
        BnstatError: it cannot be run.
    """
    contents = session_contents(thing, session_variables(thing))
    (graph,) = contents.graphs() if contents.graphs else ()
    graph_def = thing.graph.as_graph_def()
    return _of_graph(where, graph_def, graph.variables, contents, chosen, graph.parts)


def _of_graph(
    path: str,
    graph_def: Any,
    variables: Mapping[str, str],
    contents: Contents,
    chosen: Chosen,
    parts: Mapping[str, tuple[slice, ...]] | None = None,
) -> Program:
    inputs, outputs = obvious(graph_def, chosen, path)
    fed, settings = chosen.parted(inputs, graph_def, path)
    return Program(
        path, graph_def, variables, _reader(contents), fed, outputs, settings, parts=parts or {}
    )


def _signature(
    meta_graph: Any, chosen: Chosen, path: str
) -> tuple[Mapping[str, Input], Mapping[str, str]]:
    """The inputs and outputs of the signature that is wanted; of the graph, where it has none."""
    import tensorflow as tf

    graph_def = meta_graph.graph_def
    there = {
        name: signature
        for name, signature in sorted(meta_graph.signature_def.items())
        if signature.outputs and name not in _INITIALIZERS
    }
    name = chosen.signature or next((each for each in (_SERVING, "default") if each in there), None)
    if name is None and len(there) == 1:
        (name,) = there
    if name is None and there:
        hint = f"say which: --signature {', '.join(there)}"
        raise AmbiguousError(path, "the SavedModel has several signatures", hint)
    if name is not None and name not in there:
        hint = f"there are: {', '.join(there)}" if there else ""
        raise NotFoundError(path, f"the SavedModel has no signature {name!r}", hint)
    if name is None:
        return obvious(graph_def, chosen, path)
    inputs = {
        key: Input(info.name, tf.as_dtype(info.dtype).name, _shape(info.tensor_shape))
        for key, info in there[name].inputs.items()
    }
    outputs = {key: info.name for key, info in there[name].outputs.items()}
    return (
        chosen.inputs_of(inputs, graph_def, path),
        chosen.outputs_of(outputs, graph_def, path),
    )


def _graph_of_saved_model(contents: Contents) -> str:
    found = footprint(contents.source)
    if found.kind != "folder":
        return found.path
    for name in (BINARY, TEXT):
        if os.path.exists(path := os.path.join(found.folder, name)):
            return path
    raise NotFoundError(found.folder, f"{BINARY} is missing: without the graph it cannot be run")


def _parsed(path: str, messages: Sequence[Any]) -> Any:
    """The first of some messages that a file is, binary or text."""
    from google.protobuf import text_format
    from google.protobuf.message import DecodeError

    with open(path, "rb") as file:
        data = file.read()
    for message in messages:
        try:
            message.ParseFromString(data)
        except DecodeError:
            try:
                text_format.Parse(data.decode("utf-8"), message)
            except (UnicodeDecodeError, text_format.ParseError):
                continue
        if message.ListFields():
            return message
    raise DamagedError(path, "TensorFlow cannot read the graph")


def _captured(meta_graph: Any, contents: Contents) -> Mapping[str, list[str | None]]:
    """Concrete function -> the keys of the variables that it captures."""
    objects = contents.objects

    def key(node: int) -> str | None:
        found = objects[node].key if 0 <= node < len(objects) else None
        return found if found in contents.variables else None

    functions = meta_graph.object_graph_def.concrete_functions
    return {
        name: [key(node) for node in function.bound_inputs] for name, function in functions.items()
    }


def _initializers(meta_graph: Any) -> tuple[str, ...]:
    """The ops that fill a SavedModel's lookup tables."""
    found: list[str] = []
    for name in _INITIALIZERS:
        if name in meta_graph.signature_def:
            outputs = meta_graph.signature_def[name].outputs.values()
            found.extend(info.name.partition(":")[0] for info in outputs)
        if name in meta_graph.collection_def:
            found.extend(meta_graph.collection_def[name].node_list.value)
    return tuple(found[:1])


def _constants(contents: Contents) -> Mapping[str, str]:
    return {key: key for key in contents.variables}


def _reader(contents: Contents) -> Callable[[str], Array]:
    return lambda key: contents.variables[key].read()


def _shape(message: Any) -> tuple[int | None, ...] | None:
    if unknown_shape(message):
        return None
    return tuple(None if dim.size < 0 else dim.size for dim in message.dim)
