"""The graphs of a GraphDef and of a TensorFlow 2 SavedModel's functions, and their constants.

In TensorFlow 1 the graph contains the variables as ops, whose names are the keys in a checkpoint.
In TensorFlow 2 functions take variables as their last arguments, which the object graph lists
(`bound_inputs`). A node that calls functions (PartitionedCall, If, While, ...) names them in an
attribute; their bodies are FunctionDefs in the graph's library. bnstat inlines them: it replaces an
argument by the tensor that the caller passes, and adds a `Merge` for a result of several branches.

A NodeDef names its inputs `node` or `node:1` in a top-level graph, `argument` or
`node:output_name:0` in a function's body, and `^node` if the op only waits for `node`.

Sources: tensorflow/core/framework/{graph,node_def,function,attr_value,tensor}.proto,
`Tensor::FromProto` in tensor.cc, tensorflow/core/protobuf/saved_object_graph.proto,
tensorflow/core/ops/io_ops.cc, tensorflow/core/util/saved_tensor_slice_util.cc (shapes and slices).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, repeat
from math import prod
from typing import Any

import numpy as np

from bnstat.errors import BnstatError, DamagedError, UnsupportedError
from bnstat.formats.contents import Graph, Op
from bnstat.formats.dtypes import as_shape, dtype_name, from_little_endian, numpy_dtype
from bnstat.formats.protobuf.protos import scalar
from bnstat.model import Array

VARIABLES = {"VariableV2", "Variable", "VarHandleOp", "AutoReloadVariable", "TemporaryVariable"}
"""The types of ops that hold a variable."""
MAX_NODES = 250_000
"""Graphs with more nodes count as empty."""

_MAX_SMALL = 1 << 18
"""The maximum number of elements of a constant that a graph evaluates, such as an epsilon."""
_MAX_REPEATED = 1 << 28
"""The maximum size in bytes of an array that repeats the last of its stored values."""
_VALUES = {
    **dict.fromkeys(("int8", "uint8", "int16", "uint16", "int32"), "int_val"),
    **dict.fromkeys(("qint8", "quint8", "qint32"), "int_val"),
    **dict.fromkeys(("float16", "bfloat16"), "half_val"),
    "float32": "float_val",
    "float64": "double_val",
    **{name: f"{name}_val" for name in ("int64", "bool", "uint32", "uint64")},
}
"""The field of a TensorProto that lists the values, by dtype."""

_SAVES = {"SaveV2": 3, "SaveSlices": 3, "Save": 2}
"""Type of an op that writes checkpoints -> index of the first tensor to save. Input 1 contains the
keys; input 2, if it is not a tensor to save, contains shapes and slices."""

_MAX_SAVED = 1_000_000
"""The maximum number of saved tensors that are traced to variables."""
_MAX_WRAPPERS = 50
_PART = re.compile(r"/part_\d+$")
_EXTENT = re.compile(r"(\d{1,18}),(\d{1,18})")
Captured = Mapping[str, Sequence[str | None]]
"""Name of a function -> checkpoint keys of its bound inputs; None for inputs without a key."""

_MAX_INLINED = 300_000
"""The maximum number of nodes that inlining adds; a few nested functions can expand to billions."""
_COST_OF_CALL = 20
"""The nodes that inlining one call counts as."""
_NAMES_PER_NODE = 10
"""This many inputs, arguments and results of a body count as one node."""
_MAX_DEPTH = 50
_MAX_HOPS = 200
"""The limit on arguments and results that a tensor passes through, because calls can be cyclic."""

TENSORRT = "TRTEngineOp"
"""The type of an op that runs a part of a network by TensorRT, and names a function that contains
this part. TensorFlow before 1.14 stores the function's name as a string (`segment_funcdef_name`).
Source: tensorflow/compiler/tf2tensorrt/ops/trt_engine_op.cc."""
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_FUNCTIONS = {
    **dict.fromkeys((*_CALLS, "TPUPartitionedCall", "BatchFunction"), ("f",)),
    "XlaLaunch": ("function",),
    **dict.fromkeys(("If", "StatelessIf"), ("then_branch", "else_branch")),
    **dict.fromkeys(("Case", "StatelessCase"), ("branches",)),
    **dict.fromkeys(("While", "StatelessWhile"), ("body",)),
    TENSORRT: ("segment_func", "segment_funcdef_name"),
}
"""Type of an op -> names of its attributes that name functions."""
_CHOICES = frozenset({"If", "StatelessIf", "Case", "StatelessCase"})
"""Ops whose first input chooses a branch."""
_LOOPS = frozenset({"While", "StatelessWhile"})
_OUTPUTS = {"batch_mean": 1, "batch_variance": 2, "output_true": 1, "value_index": 1}
"""Output name -> index, if not 0."""


def shape_of(shape: Any) -> tuple[int, ...] | None:
    """Return the shape in a `TensorShapeProto`; None if a size is unknown or impossible."""
    return None if shape.unknown_rank else as_shape([dim.size for dim in shape.dim])


def listed_values(tensor: Any, name: str, where: str) -> Array:
    """Return, as a vector, the values that a `TensorProto` lists; `name` is the dtype's name."""
    dtype, field = numpy_dtype(name, where), _VALUES.get(name)
    if field is None:
        raise UnsupportedError(where, f"bnstat does not read lists of {name} values")
    values = getattr(tensor, field)
    if field == "half_val":
        return np.array(values, np.int32).astype(np.uint16).view(dtype)
    return np.array(values, np.int32 if field == "int_val" else dtype).astype(dtype)


def decode_tensor(tensor: Any, where: str) -> Array:
    """Return the array in a `TensorProto`; if values are missing, the last value is repeated."""
    name = dtype_name(tensor.dtype)
    dtype = numpy_dtype(name, where)
    shape = shape_of(tensor.tensor_shape)
    if shape is None:
        raise DamagedError(where, "is a constant of unknown shape")
    count = prod(shape)
    size = count * dtype.itemsize
    if content := tensor.tensor_content:
        if len(content) != size:
            raise DamagedError(where, f"has {len(content)} bytes, but its shape needs {size}")
        return from_little_endian(content, dtype, shape)
    values = listed_values(tensor, name, where)
    if values.size > count or (values.size < count and size > _MAX_REPEATED):
        raise DamagedError(where, f"has {values.size} values, but its shape is {shape}")
    array = np.zeros(count, dtype)
    if values.size:
        array[: values.size] = values
        array[values.size :] = values[-1]
    return array.reshape(shape)


def graph_of(graph_def: Any, keys: Container[str]) -> Graph:
    """Return a top-level graph; `keys` are the keys of the graph's checkpoint.

    The key of a variable is in the graph's save ops, or is the name of the variable's op. All
    slices of a partitioned variable have the same key.
    """
    ops = inlined(graph_def)
    saved = _saved(ops)
    variables, parts = {}, {}
    for name, op in ops.items():
        if op.type not in VARIABLES:
            continue
        names = saved.get(name, {})
        for candidate in (*names, name, op.attribute("shared_name"), _PART.sub("", name)):
            if isinstance(candidate, str) and candidate in keys:
                variables[name] = candidate
                if part := names.get(candidate):
                    parts[name] = part
                break
    return replace(make_graph("", ops, variables), parts=parts)


def variables_of_calls(graph_def: Any, captured: Captured) -> Mapping[str, str]:
    """Return op name -> checkpoint key for each variable that a graph passes to a function."""
    variables = {}
    for node in graph_def.node:
        if node.op in _CALLS:
            keys = captured.get(node.attr["f"].func.name, ())
            bound = zip(reversed(_data_inputs(node)), reversed(keys), strict=False)
            variables.update({tensor.partition(":")[0]: key for tensor, key in bound if key})
    return variables


def inlined(graph_def: Any) -> dict[str, Op]:
    """Return the ops of a top-level graph by name, with all called functions inlined."""
    if len(graph_def.node) > MAX_NODES:
        return {}
    return _Inliner(graph_def).inline(graph_def.node, {})


def function_graphs(meta_graph: Any, captured: Captured) -> Iterator[Graph]:
    """Yield the functions of a TensorFlow 2 SavedModel, each with all called functions inlined.

    The functions of signatures come first, because they usually contain the whole network. If
    another function has more variables, it follows. The other functions are next, fewest variables
    first, so that layers come before models. A function is omitted if it has no variables, or if an
    earlier function calls it with the same variables.
    """
    inliner = _Inliner(meta_graph.graph_def)
    functions = inliner.functions

    def size(name: str) -> int:
        return len(captured.get(name, ()))

    first = _signature_functions(meta_graph)
    largest = max(captured, key=size, default="")
    if size(largest) > max(map(size, first), default=0):
        first.append(largest)
    for name in dict.fromkeys((*first, *sorted(captured, key=size))):
        if name not in functions or not captured.get(name):
            continue
        bound = zip(reversed(_arguments(functions[name])), reversed(captured[name]), strict=False)
        variables: Mapping[str, str] = {name: key for name, key in bound if key is not None}
        name, variables = _unwrapped(name, variables, functions)
        binding = (name, tuple(map(variables.get, _arguments(functions[name]))))
        if variables and binding not in inliner.bindings and inliner.affords(name):
            inliner.bindings.add(binding)
            yield make_graph(name, inliner.inline(functions[name].node_def, variables), variables)


def _unwrapped(
    name: str, variables: Mapping[str, str], functions: Mapping[str, Any]
) -> tuple[str, Mapping[str, str]]:
    """Skip functions that only call another function; return the last callee and its variables."""
    for _ in range(_MAX_WRAPPERS):
        nodes = functions[name].node_def
        work = [node for node in nodes if node.op not in ("Identity", "NoOp")]
        is_wrapper = len(work) == 1 and work[0].op in _CALLS
        callee = work[0].attr["f"].func.name if is_wrapper else None
        if callee is None or callee not in functions:
            break
        passed = zip(_arguments(functions[callee]), _data_inputs(work[0]), strict=False)
        name = callee
        variables = {argument: variables[key] for argument, key in passed if key in variables}
    return name, variables


def _signature_functions(meta_graph: Any) -> list[str]:
    """Return the names of the functions that the signatures call, `serving_default` first."""
    nodes = meta_graph.graph_def.node
    calls = {node.name: node.attr["f"].func.name for node in nodes if node.op in _CALLS}
    signatures = meta_graph.signature_def
    outputs = (
        tensor.name.partition(":")[0]
        for name in sorted(signatures, key=lambda name: (name != "serving_default", name))
        for tensor in signatures[name].outputs.values()
    )
    return [calls[node] for node in outputs if node in calls]


def _saved(ops: Mapping[str, Op]) -> dict[str, dict[str, tuple[slice, ...]]]:
    """Return variable op -> checkpoint key -> saved slice; () means the whole variable."""
    saved: dict[str, dict[str, tuple[slice, ...]]] = {}
    left = _MAX_SAVED
    for saver in ops.values():
        if saver.type not in _SAVES:
            continue
        inputs, first = saver.inputs, _SAVES[saver.type]
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
    """Parse the slice after the shape in a string such as `4 6 -:0,3`; return () if empty."""
    if not spec:
        return ()
    matches = map(_EXTENT.fullmatch, spec.rpartition(" ")[2].split(":"))
    return tuple(
        slice(int(match[1]), int(match[1]) + int(match[2])) if match else slice(None)
        for match in matches
    )


def _variable_op(tensor: str, ops: Mapping[str, Op]) -> str:
    """Return the name of the op that holds a tensor's value; skip ops that only read the value."""
    name = tensor.partition(":")[0]
    for _ in range(_MAX_WRAPPERS):
        op = ops.get(name)
        if op is None or op.type not in ("ReadVariableOp", "Identity") or not op.inputs:
            break
        name = op.inputs[0].partition(":")[0]
    return name


def make_graph(
    name: str,
    ops: Mapping[str, Op],
    variables: Mapping[str, str],
    tensor_of: Callable[[Node], Any] = lambda op: op.tensor,
) -> Graph:
    """Return a graph of inlined ops; `tensor_of` returns the `TensorProto` of a small constant."""

    def constant(name: str) -> Array | None:
        op = ops.get(name)
        if not isinstance(op, Node) or op.tensor is None:
            return None
        shape = shape_of(op.tensor.tensor_shape)
        if shape is None or prod(shape) > _MAX_SMALL:
            return None
        try:
            return decode_tensor(tensor_of(op), name)
        except BnstatError:
            return None

    def controls(name: str) -> Sequence[str]:
        op = ops.get(name)
        return op.controls if isinstance(op, Node) else ()

    return Graph(name, ops, variables, constant, controls=controls)


class Node:
    """The op for the NodeDef `node`. `name` and `inputs` are names in the inlined graph."""

    __slots__ = ("_frame", "name", "node", "type")

    def __init__(self, node: Any, frame: _Frame) -> None:
        self.name: str = frame.prefix + node.name
        self.type: str = node.op
        self.node = node
        self._frame = frame

    @property
    def function(self) -> str:
        """The name of the function that contains the node; empty in the top-level graph."""
        return self._frame.functions[-1] if self._frame.functions else ""

    @property
    def inputs(self) -> Sequence[str]:
        return [self._frame.tensor(name) for name in _data_inputs(self.node)]

    @property
    def controls(self) -> Sequence[str]:
        """The ops that the op waits for without reading their outputs."""
        waits = (name[1:] for name in self.node.input if name.startswith("^"))
        return [self._frame.prefix + name for name in waits]

    def attribute(self, name: str) -> float | int | bool | str | None:
        """Return an attribute's number, bool, string or dtype number; None for other attributes."""
        attributes = self.node.attr
        return scalar(attributes[name], "f", "s", "i", "b", "type") if name in attributes else None

    @property
    def tensor(self) -> Any | None:
        """The `TensorProto` of a constant; None for other ops."""
        is_constant = self.type == "Const" and "value" in self.node.attr
        return self.node.attr["value"].tensor if is_constant else None


@dataclass(slots=True, eq=False)
class _Merge:
    """An op that returns one of several tensors: the result of a branching call or of a loop."""

    name: str
    choices: Sequence[_Reference]
    type: str = "Merge"

    @property
    def inputs(self) -> Sequence[str]:
        return [frame.tensor(name) for frame, name in self.choices]

    def attribute(self, name: str) -> None:
        return None


_Reference = tuple["_Frame", str]
"""A frame, and the name of a tensor in this frame."""


@dataclass(slots=True, eq=False)
class _Frame:
    """An inlined function body, or the top-level graph.

    Attributes:
        prefix: the start of the names of the body's nodes in the inlined graph.
        functions: the names of the enclosing functions, outermost first, and of this function.
        arguments: name of an argument -> tensor that the caller passes.
        results: name of a calling node in the body -> tensors that the call returns.
    """

    prefix: str = ""
    functions: tuple[str, ...] = ()
    arguments: Mapping[str, _Reference] = field(default_factory=dict)
    results: dict[str, Sequence[_Reference]] = field(default_factory=dict)

    def tensor(self, name: str) -> str:
        """Return a tensor's name `op` or `op:output` in the inlined graph; "" for cyclic calls."""
        frame = self
        for _ in range(_MAX_HOPS):
            node, _, output = name.partition(":")
            if node in frame.arguments:
                frame, name = frame.arguments[node]
                continue
            # An output is `1` in a top-level graph, `batch_mean:0` in a function's body.
            output, _, number = output.rpartition(":")
            index = int(number) if number.isdecimal() and len(number) < 6 else 0
            index += _OUTPUTS.get(output, 0)
            results = frame.results.get(node)
            if results is None or index >= len(results):
                return f"{frame.prefix}{node}:{index}" if index else frame.prefix + node
            frame, name = results[index]
        return ""


class _Inliner:
    """Replaces calls by the bodies of the called functions, up to `_MAX_INLINED` added nodes."""

    def __init__(self, graph_def: Any) -> None:
        # For each replaced call: the function, and the keys of the variables that it is passed.
        self.bindings: set[tuple[str, tuple[str | None, ...]]] = set()
        self.functions = {each.signature.name: each for each in graph_def.library.function}
        self._costs: dict[str, int] = {}
        self._left = _MAX_INLINED

    def affords(self, *names: str) -> bool:
        """Return True if the limit allows these functions' bodies, and count their nodes."""
        size = sum(map(self._cost, names))
        if size > self._left:
            return False
        self._left -= size
        return True

    def _cost(self, name: str) -> int:
        if name not in self._costs:
            body, signature = self.functions[name].node_def, self.functions[name].signature
            names = len(signature.input_arg) + len(signature.output_arg)
            names += sum(len(node.input) for node in body)
            self._costs[name] = _COST_OF_CALL + len(body) + names // _NAMES_PER_NODE
        return self._costs[name]

    def inline(self, nodes: Iterable[Any], variables: Mapping[str, str]) -> dict[str, Op]:
        """Return ops by name, with calls inlined; `variables` maps arguments to checkpoint keys."""
        ops: dict[str, Op] = {}
        self._add(nodes, _Frame(), ops, variables)
        return ops

    def _add(
        self, nodes: Iterable[Any], frame: _Frame, ops: dict[str, Op], variables: Mapping[str, str]
    ) -> None:
        for node in nodes:
            op = Node(node, frame)
            callees = self._callees(node, frame.functions)
            if not callees:
                ops.setdefault(op.name, op)
                continue
            inputs = [(frame, name) for name in _data_inputs(node)]
            if op.type in _CHOICES:
                inputs = inputs[1:]
            is_single = len(callees) == 1 and op.type not in _LOOPS
            branches = []
            for number, callee in enumerate(callees):
                function = self.functions[callee]
                names = _arguments(function)
                passed = dict(zip(names, inputs, strict=False))
                prefix = f"{op.name}/" if is_single else f"{op.name}/branch_{number}/"
                body = _Frame(prefix, (*frame.functions, callee), passed)
                keys = tuple(variables.get(body.tensor(name)) for name in names)
                self.bindings.add((callee, keys))
                self._add(function.node_def, body, ops, variables)
                results = [result.name for result in function.signature.output_arg]
                branches.append([(body, function.ret.get(name, "")) for name in results])
            if op.type in _LOOPS:
                branches.append(inputs)
            if is_single:
                frame.results[node.name] = branches[0]
                continue
            outputs = []
            for number, choices in enumerate(zip(*branches, strict=False)):
                merged = f"{node.name}/output_{number}"
                ops.setdefault(frame.prefix + merged, _Merge(frame.prefix + merged, choices))
                outputs.append((frame, merged))
            frame.results[node.name] = outputs

    def _callees(self, node: Any, active: tuple[str, ...]) -> list[str]:
        """Return the names of the functions that a node calls; [] if the call cannot be inlined."""
        names: list[str] = []
        if node.op in _FUNCTIONS:
            for attribute in _FUNCTIONS[node.op]:
                if attribute not in node.attr:
                    continue
                value = node.attr[attribute]
                functions = value.list.func if value.HasField("list") else (value.func,)
                text = value.s.decode("utf-8", "replace")
                names += filter(None, (text, *(function.name for function in functions)))
        elif node.op in self.functions:
            names = [node.op]
        are_expandable = all(name in self.functions and name not in active for name in names)
        can_inline = names and are_expandable and len(active) < _MAX_DEPTH and self.affords(*names)
        return names if can_inline else []


def all_nodes(graph_def: Any) -> Iterator[Any]:
    """Yield the `NodeDef`s of a graph and of its library's functions."""
    yield from graph_def.node
    for function in graph_def.library.function:
        yield from function.node_def


def _data_inputs(node: Any) -> list[str]:
    return [name for name in node.input if not name.startswith("^")]


def _arguments(function: Any) -> list[str]:
    return [argument.name for argument in function.signature.input_arg]
