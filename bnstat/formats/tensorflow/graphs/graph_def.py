"""The graphs of a GraphDef, and of the functions in a TensorFlow 2 SavedModel.

In TensorFlow 1 the graph holds the variables as ops, by the names under which a checkpoint
stores them. In TensorFlow 2 functions get the variables that they use as their last arguments;
the object graph tells which (`bound_inputs`).

Sources: tensorflow/core/framework/{graph,function}.proto,
tensorflow/core/protobuf/saved_object_graph.proto, tensorflow/core/ops/io_ops.cc,
tensorflow/core/util/saved_tensor_slice_util.cc (shapes and slices).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnstat.formats.contents import Graph, Op
from bnstat.formats.tensorflow.graphs.inlining import Binding, Inliner, Node, arguments, data_inputs
from bnstat.formats.tensorflow.graphs.tensor_proto import small_array

VARIABLES = frozenset(
    {"VariableV2", "Variable", "VarHandleOp", "AutoReloadVariable", "TemporaryVariable"}
)
"""The ops that stand for a variable."""

MOST_NODES = 250_000
"""A graph of more is not looked at."""

_SAVES = {"SaveV2": 3, "SaveSlices": 3, "Save": 2}
"""Ops that write checkpoints -> the first input that is a tensor; input 1 has their keys, and
input 2, where it is none of the tensors, their shapes and slices."""

_MOST_SAVED = 1_000_000
"""Tensors that are followed to the variables that they save."""

_PART = re.compile(r"/part_\d+$")
_EXTENT = re.compile(r"(\d{1,18}),(\d{1,18})")

_MOST_WRAPPERS = 50


def graph_of(graph_def: Any, keys: Callable[[str], str | None]) -> Graph:
    """A top-level graph, with the checkpoint keys of its variables.

    Args:
        graph_def: a `GraphDef` message.
        keys: name of a variable -> its key in the file, None where the file has none. A
            variable goes by the name under which the graph's saver stores it, else by its own;
            the parts of a partitioned variable all go by its name.
    """
    ops = inlined(graph_def)
    saved = _saved(ops)
    variables = {}
    parts = {}
    for name, op in ops.items():
        if op.type not in VARIABLES:
            continue
        names = saved.get(name, {})
        for candidate in (*names, name, op.attribute("shared_name"), _whole(name)):
            if isinstance(candidate, str) and (key := keys(candidate)) is not None:
                variables[name] = key
                if part := names.get(candidate):
                    parts[name] = part
                break
    return Graph("", ops, variables, _constants(ops), parts, _controls(ops))


def flat_graph(graph_def: Any, variables: Mapping[str, str]) -> Graph:
    """A graph that calls nothing.

    Args:
        graph_def: a `GraphDef` message.
        variables: name of the op that stands for a variable -> the variable's key.
    """
    ops = inlined(graph_def)
    return Graph("", ops, variables, _constants(ops))


def variables_of_calls(
    graph_def: Any, captured: Mapping[str, Sequence[str | None]]
) -> Mapping[str, str]:
    """The variables that the calls in a TensorFlow 2 SavedModel's top-level graph pass.

    Args:
        graph_def: a `GraphDef` message.
        captured: as for `function_graphs`.

    Returns:
        The name of the op that stands for a variable -> the variable's key.
    """
    variables = {}
    for node in graph_def.node:
        if node.op not in ("PartitionedCall", "StatefulPartitionedCall"):
            continue
        keys = captured.get(node.attr["f"].func.name, ())
        bound = zip(reversed(data_inputs(node)), reversed(keys), strict=False)
        variables.update({tensor.partition(":")[0]: key for tensor, key in bound if key})
    return variables


def inlined(graph_def: Any) -> dict[str, Op]:
    """The ops of a top-level graph and of all functions that it calls, by name.

    Empty where the graph is larger than any network is.
    """
    if len(graph_def.node) > MOST_NODES:
        return {}
    return Inliner(_library(graph_def)).inline(graph_def.node)


def function_graphs(
    meta_graph: Any, captured: Mapping[str, Sequence[str | None]]
) -> Iterator[Graph]:
    """The functions of a TensorFlow 2 SavedModel, each with all that it calls.

    The functions of signatures come first: they are the whole network. The others follow from
    the one with the fewest variables to the one with most, so that single layers are seen
    before the models that they are part of. A function that an earlier one called with the
    same variables, and one without variables, is left out.

    Args:
        meta_graph: a `MetaGraphDef` message.
        captured: name of a concrete function -> the checkpoint key of each of its bound
            inputs, None where one is no variable.
    """
    functions = _library(meta_graph.graph_def)
    inliner = Inliner(functions)
    smallest_first = sorted(captured, key=lambda name: len(captured[name]))
    seen: set[Binding] = set()
    for name in dict.fromkeys((*_signature_functions(meta_graph), *smallest_first)):
        if name not in functions or not captured.get(name):
            continue
        bound = zip(reversed(arguments(functions[name])), reversed(captured[name]), strict=False)
        variables: Mapping[str, str] = {name: key for name, key in bound if key is not None}
        name, variables = _unwrapped(name, variables, functions)
        binding = (name, tuple(map(variables.get, arguments(functions[name]))))
        if variables and binding not in seen and inliner.affords(name):
            seen.add(binding)
            ops = inliner.inline(functions[name].node_def, variables, seen)
            yield Graph(name, ops, variables, _constants(ops), controls=_controls(ops))


def _unwrapped(
    name: str, variables: Mapping[str, str], functions: Mapping[str, Any]
) -> tuple[str, Mapping[str, str]]:
    """The function that does the work of one that only calls it, with its own arguments."""
    for _ in range(_MOST_WRAPPERS):
        nodes = functions[name].node_def
        work = [node for node in nodes if node.op not in ("Identity", "NoOp")]
        if len(work) != 1 or work[0].op not in ("PartitionedCall", "StatefulPartitionedCall"):
            break
        callee = work[0].attr["f"].func.name
        if callee not in functions:
            break
        passed = zip(arguments(functions[callee]), data_inputs(work[0]), strict=False)
        name = callee
        variables = {argument: variables[key] for argument, key in passed if key in variables}
    return name, variables


def _signature_functions(meta_graph: Any) -> list[str]:
    """The functions behind the signatures, that of `serving_default` first.

    A signature names an output of the top-level graph; the node there calls the function.
    """
    calls = {
        node.name: node.attr["f"].func.name
        for node in meta_graph.graph_def.node
        if node.op in ("PartitionedCall", "StatefulPartitionedCall")
    }
    signatures = meta_graph.signature_def
    outputs = (
        tensor.name.partition(":")[0]
        for name in sorted(signatures, key=lambda name: (name != "serving_default", name))
        for tensor in signatures[name].outputs.values()
    )
    return [calls[node] for node in outputs if node in calls]


def _saved(ops: Mapping[str, Op]) -> dict[str, dict[str, tuple[slice, ...]]]:
    """Variable op -> the names under which the graph's savers store it -> as which part."""
    saved: dict[str, dict[str, tuple[slice, ...]]] = {}
    left = _MOST_SAVED
    for saver in ops.values():
        if saver.type not in _SAVES:
            continue
        inputs = saver.inputs
        first = _SAVES[saver.type]
        names = _strings(ops, inputs[1:2])
        specs = chain(_strings(ops, inputs[2:first]), repeat(""))
        for name, spec, tensor in zip(names, specs, inputs[first:], strict=False):
            saved.setdefault(_read_from(tensor, ops), {})[name] = _part(spec)
        left -= len(inputs)
        if left < 0:
            break
    return saved


def _strings(ops: Mapping[str, Op], tensors: Sequence[str]) -> list[str]:
    """The strings of constants."""
    nodes = [op for op in map(ops.get, tensors) if isinstance(op, Node)]
    stored = [string for node in nodes if node.tensor for string in node.tensor.string_val]
    return [string.decode("utf-8", "surrogateescape") for string in stored]


def _part(spec: str) -> tuple[slice, ...]:
    """The indices that a shape and slice such as `4 6 -:0,3` stands for; none for the whole."""
    return tuple(map(_indices, spec.rpartition(" ")[2].split(":"))) if spec else ()


def _indices(extent: str) -> slice:
    found = _EXTENT.fullmatch(extent)
    if found is None:
        return slice(None)
    start, length = map(int, found.groups())
    return slice(start, start + length)


def _read_from(tensor: str, ops: Mapping[str, Op]) -> str:
    """The op whose value a tensor is, behind the ops that only read it."""
    name = tensor.partition(":")[0]
    for _ in range(_MOST_WRAPPERS):
        op = ops.get(name)
        if op is None or op.type not in ("ReadVariableOp", "Identity") or not op.inputs:
            break
        name = op.inputs[0].partition(":")[0]
    return name


def _whole(name: str) -> str:
    """The name of the variable that a part of a partitioned one belongs to."""
    return _PART.sub("", name)


def _library(graph_def: Any) -> dict[str, Any]:
    """The `FunctionDef` messages of a graph by name."""
    return {function.signature.name: function for function in graph_def.library.function}


def _controls(ops: Mapping[str, Op]) -> Callable[[str], Sequence[str]]:
    def controls(name: str) -> Sequence[str]:
        op = ops.get(name)
        return op.controls if isinstance(op, Node) else ()

    return controls


def _constants(ops: Mapping[str, Op]) -> Callable[[str], NDArray[np.generic] | None]:
    def constant(name: str) -> NDArray[np.generic] | None:
        op = ops.get(name)
        tensor = op.tensor if isinstance(op, Node) else None
        return None if tensor is None else small_array(tensor, name)

    return constant
