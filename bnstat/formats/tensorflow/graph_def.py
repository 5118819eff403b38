"""The graphs of a GraphDef and of a TensorFlow 2 SavedModel's functions, and their constants.

In TensorFlow 1 the graph contains the variables as ops, whose names are the keys in a checkpoint.
In TensorFlow 2 functions take variables as their last arguments; the object graph lists these
variables (`bound_inputs`).

Sources: tensorflow/core/framework/{graph,function,tensor}.proto, `Tensor::FromProto` in tensor.cc,
tensorflow/core/protobuf/saved_object_graph.proto, tensorflow/core/ops/io_ops.cc,
tensorflow/core/util/saved_tensor_slice_util.cc (shapes and slices).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, repeat
from math import prod
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import BnstatError, DamagedError, NotFoundError, UnsupportedError
from bnstat.formats.contents import Graph, Op
from bnstat.formats.dtypes import bytes_needed, dtype_name, from_little_endian, numpy_dtype
from bnstat.formats.protobuf.wire import LARGEST_MESSAGE
from bnstat.formats.tensorflow.inlining import CALLS, Binding, Inliner, Node, arguments, data_inputs
from bnstat.model import Variable
from bnstat.storage.files import File

VARIABLES = frozenset(
    {"VariableV2", "Variable", "VarHandleOp", "AutoReloadVariable", "TemporaryVariable"}
)
"""The types of ops that hold a variable."""

MAX_NODES = 250_000
"""Graphs with more nodes are ignored."""

_MAX_RANK = 32
_MAX_SMALL = 1 << 18
_MAX_REPEATED = 1 << 28
"""Bytes of the largest array that repeats a few values."""

_VALUES = {
    "float32": "float_val",
    "float64": "double_val",
    "int32": "int_val",
    "int16": "int_val",
    "int8": "int_val",
    "uint8": "int_val",
    "uint16": "int_val",
    "qint8": "int_val",
    "quint8": "int_val",
    "qint32": "int_val",
    "int64": "int64_val",
    "bool": "bool_val",
    "float16": "half_val",
    "bfloat16": "half_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
}
"""The field of a TensorProto that lists the values, by dtype."""

_SAVES = {"SaveV2": 3, "SaveSlices": 3, "Save": 2}
"""Type of an op that writes checkpoints -> index of the first tensor to save. Input 1 contains the
keys; input 2, if it is not a tensor to save, contains shapes and slices."""

_MAX_SAVED = 1_000_000
"""Saved tensors that are traced to variables."""

_MAX_WRAPPERS = 50
_PART = re.compile(r"/part_\d+$")
_EXTENT = re.compile(r"(\d{1,18}),(\d{1,18})")


def meta_graphs(meta: File | None, keys: Container[str]) -> Callable[[], Iterable[Graph]] | None:
    """Return a function that reads the graph in a `.meta` file, for a checkpoint with these keys.

    The graph is optional: the function returns no graphs if the file is missing or damaged.
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


def shape_of(tensor: Any) -> tuple[int, ...] | None:
    """Return the shape of a `TensorProto`; None if unknown, or with too many dimensions."""
    shape = _known_shape(tensor.tensor_shape)
    return shape if shape is not None and len(shape) <= _MAX_RANK else None


def _known_shape(shape: Any) -> tuple[int, ...] | None:
    sizes = tuple(dim.size for dim in shape.dim)
    return None if shape.unknown_rank or min(sizes, default=0) < 0 else sizes


def listed_values(
    tensor: Any, name: str, dtype: np.dtype[np.generic], where: str
) -> NDArray[np.generic]:
    """Return the values that a `TensorProto` lists in the field of its dtype, as a vector.

    Raises:
        UnsupportedError: values of this dtype are not listed in a supported field.
    """
    field = _VALUES.get(name)
    if field is None:
        raise UnsupportedError(where, f"lists of {name} values are not supported")
    values = getattr(tensor, field)
    if field == "half_val":
        return np.array(values, np.int32).astype(np.uint16).view(dtype)
    return np.array(values, np.int32 if field == "int_val" else dtype).astype(dtype)


def decode_tensor(tensor: Any, where: str) -> NDArray[np.generic]:
    """Return the numbers of a `TensorProto`, in the stored dtype.

    The numbers are stored either as raw little-endian bytes in `tensor_content`, or as a list of
    values whose last value is repeated to fill the shape.

    Raises:
        DamagedError: values and shape do not fit, or a small message claims a huge array.
        UnsupportedError: the elements are not numbers.
    """
    name = dtype_name(tensor.dtype)
    dtype = numpy_dtype(name, where)
    shape = shape_of(tensor)
    if shape is None:
        raise DamagedError(where, "a constant of unknown shape")
    count, size = prod(shape), bytes_needed(shape, dtype)
    if content := tensor.tensor_content:
        if len(content) != size:
            raise DamagedError(where, f"a constant of shape {shape} has {len(content)} bytes")
        return from_little_endian(content, dtype, shape)
    values = listed_values(tensor, name, dtype, where)
    if values.size > count or (values.size < count and size > _MAX_REPEATED):
        raise DamagedError(where, f"a constant of shape {shape} has {values.size} values")
    array = np.zeros(count, dtype)
    if values.size:
        array[: values.size] = values
        array[values.size :] = values[-1]
    return array.reshape(shape)


def small_array(tensor: Any, where: str) -> NDArray[np.generic] | None:
    """Return the numbers of a `TensorProto`; None if it is too large for a structural constant."""
    if not is_small(tensor):
        return None
    try:
        return decode_tensor(tensor, where)
    except BnstatError:
        return None


def is_small(tensor: Any) -> bool:
    """Return True if a `TensorProto` has few elements, like a structural constant of a graph."""
    shape = shape_of(tensor)
    return shape is not None and prod(shape) <= _MAX_SMALL


class DeclaredTensors:
    """The variables that a graph declares, without values; same interface as `Bundle`."""

    def __init__(self, path: str, declared: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        self.path = path
        self._declared = declared

    @property
    def keys(self) -> Collection[str]:
        """All checkpoint keys."""
        return self._declared.keys()

    def variables(self, names: Mapping[str, str]) -> Mapping[str, Variable]:
        """Return the variables by key; `names` maps some keys to better names."""
        return {
            key: Variable(key, names.get(key, key), *kind, partial(self._read, key))
            for key, kind in self._declared.items()
        }

    def _read(self, key: str) -> NoReturn:
        raise NotFoundError(
            f"{self.path}: {key}", "its values are not in this file", "leave them out: --no-values"
        )


def declared_by_ops(graph_def: Any, path: str) -> DeclaredTensors:
    """Return the variables of a TensorFlow 1 graph by op name."""
    declared = {}
    for node in graph_def.node:
        if node.op in VARIABLES and (
            kind := declared_kind(node.attr["dtype"].type, node.attr["shape"].shape)
        ):
            declared[node.name] = kind
    return DeclaredTensors(path, declared)


def declared_kind(dtype: int, shape: Any) -> tuple[str, tuple[int, ...]] | None:
    """Return the dtype and shape of a declared variable; None if the shape is not known."""
    sizes = _known_shape(shape)
    return None if sizes is None else (dtype_name(dtype), sizes)


def graph_of(graph_def: Any, key_of: Callable[[str], str | None]) -> Graph:
    """Return a top-level graph, with the checkpoint keys of its variables.

    `key_of` returns the key for a variable's name, or None. The name is the key that the graph's
    saver uses or, without a saver, the name of the op. All slices of a partitioned variable have
    the variable's name.
    """
    ops = inlined(graph_def)
    saved = _saved(ops)
    variables = {}
    parts = {}
    for name, op in ops.items():
        if op.type not in VARIABLES:
            continue
        names = saved.get(name, {})
        for candidate in (*names, name, op.attribute("shared_name"), _PART.sub("", name)):
            if isinstance(candidate, str) and (key := key_of(candidate)) is not None:
                variables[name] = key
                if part := names.get(candidate):
                    parts[name] = part
                break
    return _graph("", ops, variables, parts)


def flat_graph(graph_def: Any, variables: Mapping[str, str]) -> Graph:
    """Return the graph of a `GraphDef` without calls; `variables` maps op names to keys."""
    return _graph("", inlined(graph_def), variables, {})


def variables_of_calls(
    graph_def: Any, captured: Mapping[str, Sequence[str | None]]
) -> Mapping[str, str]:
    """Return the variables passed to functions by the calls of a TensorFlow 2 top-level graph.

    The result maps op names to checkpoint keys; `function_graphs` explains `captured`.
    """
    variables = {}
    for node in graph_def.node:
        if node.op in CALLS:
            keys = captured.get(node.attr["f"].func.name, ())
            bound = zip(reversed(data_inputs(node)), reversed(keys), strict=False)
            variables.update({tensor.partition(":")[0]: key for tensor, key in bound if key})
    return variables


def inlined(graph_def: Any) -> dict[str, Op]:
    """Return the ops of a top-level graph and of all functions that it calls, by name.

    The result is empty if the graph is larger than any network.
    """
    if len(graph_def.node) > MAX_NODES:
        return {}
    return Inliner(_library(graph_def)).inline(graph_def.node)


def function_graphs(
    meta_graph: Any, captured: Mapping[str, Sequence[str | None]]
) -> Iterator[Graph]:
    """Yield the functions of a TensorFlow 2 SavedModel, each with all called functions inlined.

    The functions of signatures come first, because they contain the whole network. The other
    functions follow by ascending number of variables, so that single layers come before models.
    Functions without variables are omitted, as well as functions that an earlier function called
    with the same variables.

    `captured` holds the checkpoint keys of each concrete function's bound inputs, None for an input
    that is not a variable.
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
            yield _graph(name, ops, variables, {})


def _unwrapped(
    name: str, variables: Mapping[str, str], functions: Mapping[str, Any]
) -> tuple[str, Mapping[str, str]]:
    """Follow functions that only call another function; map the variables to its arguments."""
    for _ in range(_MAX_WRAPPERS):
        nodes = functions[name].node_def
        work = [node for node in nodes if node.op not in ("Identity", "NoOp")]
        if len(work) != 1 or work[0].op not in CALLS:
            break
        callee = work[0].attr["f"].func.name
        if callee not in functions:
            break
        passed = zip(arguments(functions[callee]), data_inputs(work[0]), strict=False)
        name = callee
        variables = {argument: variables[key] for argument, key in passed if key in variables}
    return name, variables


def _signature_functions(meta_graph: Any) -> list[str]:
    """Return the functions of the signatures, `serving_default` first.

    A signature names an output of a node in the top-level graph; this node calls the function.
    """
    calls = {
        node.name: node.attr["f"].func.name
        for node in meta_graph.graph_def.node
        if node.op in CALLS
    }
    signatures = meta_graph.signature_def
    outputs = (
        tensor.name.partition(":")[0]
        for name in sorted(signatures, key=lambda name: (name != "serving_default", name))
        for tensor in signatures[name].outputs.values()
    )
    return [calls[node] for node in outputs if node in calls]


def _saved(ops: Mapping[str, Op]) -> dict[str, dict[str, tuple[slice, ...]]]:
    """Return op of a variable -> checkpoint key -> slice of the variable saved under the key."""
    saved: dict[str, dict[str, tuple[slice, ...]]] = {}
    left = _MAX_SAVED
    for saver in ops.values():
        if saver.type not in _SAVES:
            continue
        inputs = saver.inputs
        first = _SAVES[saver.type]
        names = _strings(ops, inputs[1:2])
        specs = chain(_strings(ops, inputs[2:first]), repeat(""))
        for name, spec, tensor in zip(names, specs, inputs[first:], strict=False):
            saved.setdefault(_variable_op(tensor, ops), {})[name] = _part(spec)
        left -= len(inputs)
        if left < 0:
            break
    return saved


def _strings(ops: Mapping[str, Op], tensors: Sequence[str]) -> list[str]:
    nodes = [op for op in map(ops.get, tensors) if isinstance(op, Node)]
    stored = [string for node in nodes if node.tensor for string in node.tensor.string_val]
    return [string.decode("utf-8", "surrogateescape") for string in stored]


def _part(spec: str) -> tuple[slice, ...]:
    """Parse a shape and slice such as `4 6 -:0,3`; return () for the whole variable."""
    if not spec:
        return ()
    matches = map(_EXTENT.fullmatch, spec.rpartition(" ")[2].split(":"))
    return tuple(
        slice(int(match[1]), int(match[1]) + int(match[2])) if match else slice(None)
        for match in matches
    )


def _variable_op(tensor: str, ops: Mapping[str, Op]) -> str:
    """Return the op that holds a tensor's value, skipping ops that only read the value."""
    name = tensor.partition(":")[0]
    for _ in range(_MAX_WRAPPERS):
        op = ops.get(name)
        if op is None or op.type not in ("ReadVariableOp", "Identity") or not op.inputs:
            break
        name = op.inputs[0].partition(":")[0]
    return name


def _library(graph_def: Any) -> dict[str, Any]:
    return {function.signature.name: function for function in graph_def.library.function}


def _graph(
    name: str,
    ops: Mapping[str, Op],
    variables: Mapping[str, str],
    parts: Mapping[str, tuple[slice, ...]],
) -> Graph:
    def constant(name: str) -> NDArray[np.generic] | None:
        op = ops.get(name)
        tensor = op.tensor if isinstance(op, Node) else None
        return None if tensor is None else small_array(tensor, name)

    def controls(name: str) -> Sequence[str]:
        op = ops.get(name)
        return op.controls if isinstance(op, Node) else ()

    return Graph(name, ops, variables, constant, parts, controls)
