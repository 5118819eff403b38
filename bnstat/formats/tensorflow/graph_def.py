"""The graphs of a GraphDef, and of the functions in a TensorFlow 2 SavedModel.

In TensorFlow 1 the graph holds the variables as ops, by the names under which a checkpoint
stores them. In TensorFlow 2 functions get the variables that they use as their last arguments;
the object graph tells which (`bound_inputs`).

Sources: tensorflow/core/framework/{graph,function}.proto,
tensorflow/core/protobuf/saved_object_graph.proto, tensorflow/core/ops/io_ops.cc,
tensorflow/core/util/saved_tensor_slice_util.cc (shapes and slices).

The numbers of a TensorProto, as graphs and version 1 checkpoints hold them.

Source: tensorflow/core/framework/tensor.proto and `Tensor::FromProto` in tensor.cc.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import BnstatError, DamagedError
from bnstat.formats.contents import Graph, Op
from bnstat.formats.dtypes import dtype_name, numpy_dtype
from bnstat.formats.protobuf.wire import LARGEST_MESSAGE
from bnstat.formats.tensorflow.inlining import Binding, Inliner, Node, arguments, data_inputs
from bnstat.storage.files import File


def meta_graphs(meta: File | None, keys: Container[str]) -> Callable[[], Iterable[Graph]] | None:
    """Reads the graph in a `.meta` file, for a checkpoint that has these keys.

    It only adds to what the checkpoint says: where there is none, or none that can be read,
    there is no graph.
    """
    if meta is None or meta.size >= LARGEST_MESSAGE:
        return None

    def read() -> Iterator[Graph]:
        from bnstat.formats.protobuf.protos import parse

        try:
            graph = parse("MetaGraphDef", meta.read(), meta.path, "the graph").graph_def
        except BnstatError:
            return
        yield graph_of(graph, lambda name: name if name in keys else None)

    return read


_HIGHEST_RANK = 32

_MOST_SMALL = 1 << 18

_LARGEST_REPEATED = 1 << 28
"""Bytes of the largest array that a few values are repeated into."""

_AS_BITS = frozenset({"float16", "bfloat16"})
"""Types whose values are listed as the 16 bits of each."""

_VALUES = {
    "float32": "float_val",
    "float64": "double_val",
    "int32": "int_val",
    "int16": "int_val",
    "int8": "int_val",
    "uint8": "int_val",
    "uint16": "int_val",
    "int64": "int64_val",
    "bool": "bool_val",
    "float16": "half_val",
    "bfloat16": "half_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
}
"""Element type -> the field of a TensorProto that lists such values."""


def shape_of(tensor: Any) -> tuple[int, ...] | None:
    """The shape of a `TensorProto`; None where it is not whole, or of too many dimensions."""
    sizes = tuple(dim.size for dim in tensor.tensor_shape.dim)
    known = not tensor.tensor_shape.unknown_rank and min(sizes, default=0) >= 0
    return sizes if known and len(sizes) <= _HIGHEST_RANK else None


def decode_tensor(tensor: Any, where: str) -> NDArray[np.generic]:
    """The numbers of a `TensorProto`, in its own dtype.

    They are either the raw little-endian bytes `tensor_content` or a list of values of which
    the last one stands for all that are left out.

    Args:
        tensor: the message.
        where: what holds it, for errors.

    Raises:
        DamagedError: it has another number of values than its shape says, or its shape says
            more than its bytes can be meant for.
        UnsupportedError: its elements are no numbers.
    """
    name = dtype_name(tensor.dtype)
    dtype = numpy_dtype(name, where)
    shape = shape_of(tensor)
    if shape is None:
        raise DamagedError(where, "a constant of unknown shape")
    count = prod(shape)
    if tensor.tensor_content:
        if len(tensor.tensor_content) != count * dtype.itemsize:
            raise DamagedError(where, f"a constant of shape {shape} has other bytes than it needs")
        return (
            np.frombuffer(tensor.tensor_content, _little_endian(dtype)).astype(dtype).reshape(shape)
        )
    values = getattr(tensor, _VALUES.get(name, ""), ())
    if len(values) > count or (count > len(values) and count * dtype.itemsize > _LARGEST_REPEATED):
        raise DamagedError(where, f"a constant of shape {shape} has {len(values)} values")
    listed = np.array(values, np.uint16 if name in _AS_BITS else dtype)
    result = np.zeros(count, dtype)
    if listed.size:
        result[: listed.size] = listed.view(dtype)
        result[listed.size :] = result[listed.size - 1]
    return result.reshape(shape)


def small_array(tensor: Any, where: str) -> NDArray[np.generic] | None:
    """The numbers of a `TensorProto`; None where it holds none, or so many that it is weights."""
    if not is_small(tensor):
        return None
    try:
        return decode_tensor(tensor, where)
    except BnstatError:
        return None


def is_small(tensor: Any) -> bool:
    """Whether a `TensorProto` may be part of a graph's structure, by its number of elements."""
    shape = shape_of(tensor)
    return shape is not None and prod(shape) <= _MOST_SMALL


def _little_endian(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """The dtype as the file stores it (NumPy cannot swap the bytes of ml_dtypes' types)."""
    return dtype.newbyteorder("<") if dtype.kind in "iufcb" else dtype


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
