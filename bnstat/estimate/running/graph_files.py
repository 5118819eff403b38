"""Make a `Program` of the graph in a file or session; find the graph's inputs and outputs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from bnstat.errors import AmbiguousError, DamagedError, NotFoundError, UnsupportedError
from bnstat.estimate.data import Settings
from bnstat.estimate.data.batches import Input
from bnstat.estimate.running import flat_graph
from bnstat.estimate.running.allowed_ops import refuse_evaluated
from bnstat.estimate.running.flat_graph import PLACEHOLDERS, Program, full_name, op_of, upstream
from bnstat.formats.contents import Contents
from bnstat.formats.tensorflow.bundle import BINARY, TEXT
from bnstat.formats.tensorflow.graph_def import VARIABLES, graph_of, variables_of_calls
from bnstat.formats.tensorflow.saved_model import captured_keys
from bnstat.live import session_contents, session_variables
from bnstat.mending.layout import footprint
from bnstat.model import Array

_DEFAULT_SIGNATURES = ("serving_default", "default")
_INITIALIZERS = ("__saved_model_init_op", "legacy_init_op", "saved_model_main_op")
_FED = PLACEHOLDERS | {"PlaceholderWithDefault"}
_LOSSES = frozenset({"SoftmaxCrossEntropyWithLogits", "SparseSoftmaxCrossEntropyWithLogits"})
_NOT_AN_OUTPUT = re.compile("NoOp|Placeholder.*|Const|Assert|VarHandleOp|.*(Assign|Apply|Save).*")


def saved_model(path: str, contents: Contents, settings: Settings) -> Program:
    """Return a `Program` that runs a SavedModel's signature: the chosen or the default one."""
    from tensorflow.core.protobuf import saved_model_pb2

    message = _parsed(_path_of_saved_model(contents), [saved_model_pb2.SavedModel()])
    meta_graph = message.meta_graphs[0]
    signature = _signature(meta_graph, settings, path)
    captured = captured_keys(meta_graph, contents.objects, contents.variables)
    graph_def = meta_graph.graph_def
    # No variables are passed in TensorFlow 1, and if the weights are constants.
    variables = variables_of_calls(graph_def, captured) or None
    program = _program(path, graph_def, contents, settings, variables, signature=signature)
    return replace(program, initializers=_initializers(meta_graph))


def graph_file(path: str, contents: Contents, settings: Settings) -> Program:
    """Return a `Program` that runs a frozen graph, or a TensorFlow 1 checkpoint with a `.meta`."""
    from tensorflow.core.framework import graph_pb2
    from tensorflow.core.protobuf import meta_graph_pb2

    is_frozen = contents.source.format == "frozen-graph"
    file = footprint(contents.source).path + ("" if is_frozen else ".meta")
    if not os.path.exists(file):
        raise NotFoundError(
            path,
            "is a checkpoint without a graph, and bnstat cannot run it",
            "pass the SavedModel or the .keras; or put the .meta of a TensorFlow 1 checkpoint "
            "beside it; or build the network in Python, load the checkpoint into it, and call "
            "bnstat.recalibrate(model, data)",
        )
    message = _parsed(file, [graph_pb2.GraphDef()] * is_frozen + [meta_graph_pb2.MetaGraphDef()])
    graph_def = getattr(message, "graph_def", message)
    if is_frozen and any(node.op in VARIABLES for node in graph_def.node):
        hint = "pass the checkpoint that belongs to it, with the .meta beside it"
        raise UnsupportedError(path, "is a graph without the values of its variables", hint)
    return _program(path, graph_def, contents, settings)


def session(where: str, model: Any, settings: Settings) -> Program:
    """Return a `Program` that runs the graph of a `tf.compat.v1.Session`."""
    contents = session_contents(model, session_variables(model))
    (graph,) = contents.graphs() if contents.graphs else ()
    graph_def = model.graph.as_graph_def()
    return _program(where, graph_def, contents, settings, graph.variables, graph.parts)


def _program(
    where: str,
    graph_def: Any,
    contents: Contents,
    settings: Settings,
    variables: Mapping[str, str] | None = None,
    parts: Mapping[str, tuple[slice, ...]] = MappingProxyType({}),
    signature: Any = None,
) -> Program:
    """Return a `Program` for a graph. Without `variables`, find the variables in the graph.

    If the graph has no variables, the keys in `contents` are the names of constant ops.
    """
    stored = contents.variables
    if variables is None:
        graph = graph_of(graph_def, stored)
        variables, parts = graph.variables or {key: key for key in stored}, graph.parts
    keys = variables

    def read(name: str) -> Array:
        value = stored[keys[name]].read()
        part = parts.get(name, ())
        return value[part] if len(part) == value.ndim else value

    inputs, outputs = _tensors(graph_def, signature, settings, where)
    data, values = _split_inputs(inputs, settings, graph_def, where)
    return Program(where, graph_def, variables, read, data, outputs, values)


def _path_of_saved_model(contents: Contents) -> str:
    files = footprint(contents.source)
    if files.kind != "folder":
        return files.path
    for name in (BINARY, TEXT):
        if os.path.exists(path := os.path.join(files.folder, name)):
            return path
    what = f"{BINARY} is missing; bnstat cannot run a model without its graph"
    raise NotFoundError(files.folder, what)


def _parsed(path: str, messages: Sequence[Any]) -> Any:
    """Parse a binary or text file; return the first of `messages` that the file fits."""
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


def _initializers(meta_graph: Any) -> tuple[str, ...]:
    """Return the name of the op that fills a SavedModel's lookup tables, if there is one."""
    names: list[str] = []
    for key in _INITIALIZERS:
        if key in meta_graph.signature_def:
            names += [info.name for info in meta_graph.signature_def[key].outputs.values()]
        if key in meta_graph.collection_def:
            names += meta_graph.collection_def[key].node_list.value
    return tuple(names[:1])


def _signature(meta_graph: Any, settings: Settings, path: str) -> Any:
    """Return the `SignatureDef` that the user names, or the default; None without signatures."""
    signatures = {
        name: signature
        for name, signature in sorted(meta_graph.signature_def.items())
        if signature.outputs and name not in _INITIALIZERS
    }
    listed = ", ".join(signatures)
    if settings.signature is not None and settings.signature not in signatures:
        hint = f"there are: {listed}" if signatures else ""
        raise NotFoundError(path, f"the SavedModel has no signature {settings.signature!r}", hint)
    for name in (settings.signature, *_DEFAULT_SIGNATURES):
        if name in signatures:
            return signatures[name]
    if len(signatures) > 1:
        hint = f"choose one of them: --signature {listed}"
        raise AmbiguousError(path, "the SavedModel has several signatures", hint)
    return next(iter(signatures.values()), None)


def _tensors(
    graph_def: Any, signature: Any, settings: Settings, where: str
) -> tuple[Mapping[str, Input], Sequence[str]]:
    """Return the inputs, by name, and the names of the output tensors.

    The user's choice has priority over the signature, and the signature over the graph. If a graph
    has a loss, the outputs are the logits; otherwise, they are the ops that feed no other op.
    """
    inputs = {
        name: _input(info.name, info.dtype, info.tensor_shape, where)
        for name, info in (signature.inputs.items() if signature else ())
    }
    named = {name: info.name for name, info in signature.outputs.items()} if signature else {}
    nodes = {node.name: node for node in graph_def.node}
    for kind, names, available in (
        ("input", settings.inputs, [*inputs] or [*nodes]),
        ("output", settings.outputs, [*named] or [*nodes]),
    ):
        unknown = [name for name in names if op_of(name) not in nodes]
        _refuse_unknown(unknown, available, where, kind)
    outputs = [named.get(name, full_name(name)) for name in settings.outputs or named]
    outputs = outputs or _obvious_outputs(graph_def, settings.inputs)
    if not outputs:
        hint = "pass --answer" if settings.inputs else "pass --input and --answer"
        raise AmbiguousError(where, "the graph does not show which op is its output", hint)
    chosen = list(settings.inputs or inputs)
    if not chosen:
        fed = set(map(op_of, settings.feeds))
        reached = upstream(graph_def.node, outputs)
        chosen = [node.name for node in reached if _takes_data(node) and node.name not in fed]
    if not chosen:
        what = f"no placeholder feeds {', '.join(outputs[:3])}"
        raise AmbiguousError(where, what, "pass --input and --answer")
    taken = {key: inputs.get(key) or _input_at(key, graph_def, settings, where) for key in chosen}
    return taken, outputs


def _obvious_outputs(graph_def: Any, inputs: Iterable[str]) -> list[str]:
    nodes = graph_def.node
    fed = {*map(op_of, inputs)} or {node.name for node in nodes if _takes_data(node)}
    outputs = [node.input[0] for node in nodes if node.op in _LOSSES and node.input]
    if not outputs:
        taken = {op_of(tensor) for node in nodes for tensor in node.input}
        results = [node for node in nodes if not _NOT_AN_OUTPUT.match(node.op)]
        outputs = [node.name for node in results if node.name not in taken]
    reached = [each for each in outputs if fed & {node.name for node in upstream(nodes, [each])}]
    return list(dict.fromkeys(map(full_name, reached)))


def _split_inputs(
    inputs: Mapping[str, Input], settings: Settings, graph_def: Any, where: str
) -> tuple[Mapping[str, Input], Mapping[str, Any]]:
    """Return the inputs that take data, and tensor -> value for other placeholders.

    A scalar bool placeholder is a training switch: its value is False unless the user sets it.
    """
    placeholders = {node.name: node for node in graph_def.node if node.op in _FED}
    names = [op_of(name) for name in settings.feeds if name not in inputs]
    _refuse_unknown(names, [*placeholders], where, "placeholder")
    values: dict[str, Any] = {
        f"{name}:0": False
        for name, node in placeholders.items()
        if _is_bool(node) and not node.attr["shape"].shape.dim
    }
    for name, value in settings.feeds.items():
        values[inputs[name].tensor if name in inputs else f"{op_of(name)}:0"] = value
    data = {name: each for name, each in inputs.items() if each.tensor not in values}
    for name, each in data.items():
        if each.shape == () and name not in settings.inputs:
            what = f"the placeholder {name!r} takes a single number, not data"
            raise AmbiguousError(where, what, f"set its value: --feed {name}=NUMBER")
    return data, values


def _refuse_unknown(names: Iterable[str], available: Sequence[str], where: str, kind: str) -> None:
    for name in names:
        if name not in available:
            hint = f"there are: {', '.join(available[:5])}"
            hint += "; to name the file to write, use -o" if kind == "output" else ""
            raise NotFoundError(where, f"the model has no {kind} {name!r}", hint)


def _takes_data(node: Any) -> bool:
    return node.op in PLACEHOLDERS and not _is_bool(node)


def _is_bool(node: Any) -> bool:
    from tensorflow.core.framework.types_pb2 import DT_BOOL

    return bool(node.attr["dtype"].type == DT_BOOL)


def _input(tensor: str, dtype: Any, shape: Any, where: str) -> Input:
    import tensorflow as tf

    try:
        name = tf.as_dtype(dtype).base_dtype.name
    except TypeError:
        raise DamagedError(where, f"the tensor {tensor!r} has an unknown dtype") from None
    return Input(tensor, name, None if shape is None else flat_graph.sizes_of(shape))


def _input_at(name: str, graph_def: Any, settings: Settings, where: str) -> Input:
    """Return the `Input` for a tensor of a graph; the tensor need not be a placeholder."""
    node = next(node for node in graph_def.node if node.name == op_of(name))
    if node.op in _FED:
        shape = node.attr["shape"].shape if "shape" in node.attr else None
        return _input(full_name(name), node.attr["dtype"].type, shape, where)
    graph_def = flat_graph.pruned(graph_def, [node.name], where)
    refuse_evaluated(graph_def, name, where, trust=settings.trust)
    try:
        tensor = flat_graph.imported(graph_def, where).get_tensor_by_name(full_name(name))
    except (KeyError, ValueError):
        raise NotFoundError(where, f"its graph has no tensor {name!r}") from None
    return _input(tensor.name, tensor.dtype, tensor.shape, where)
