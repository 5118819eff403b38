"""Single-file graphs: frozen graphs, any GraphDef, a `.meta` without its checkpoint.

Freezing turns each variable into a `Const` op of the same name. The file is a GraphDef, or a
MetaGraphDef that contains one. A `Const` node stores its value in `attr["value"].tensor`. Only the
structure of a graph is read at first; long constants are read on demand.

Sources: tensorflow/core/framework/{graph,node_def,attr_value,tensor}.proto,
tensorflow/python/framework/{graph_util_impl,convert_to_constants}.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, NoReturn

import numpy as np

from bnstat.errors import DamagedError, NotFoundError, UnsupportedError
from bnstat.formats.contents import Contents, Op
from bnstat.formats.dtypes import bytes_needed, dtype_name, extents, find_dtype
from bnstat.formats.protobuf.protos import complete, find_fields, parse_text, skeleton
from bnstat.formats.protobuf.wire import LARGEST_MESSAGE, Field, Window, WireError, fields, scan
from bnstat.formats.tensorflow.graph_def import (
    MAX_NODES,
    VARIABLES,
    Node,
    decode_tensor,
    graph_of,
    inlined,
    make_graph,
    shape_of,
)
from bnstat.model import Array, Source, Variable
from bnstat.storage.files import File, Range
from bnstat.text import count

_HEAD = 4096
"""This many bytes suffice to recognise a node, or a graph in text form."""

_NODE_IN_GRAPH = 1
_GRAPH_IN_META_GRAPH = 2
_CONTENT_IN_NODE = (5, 2, 8, 4)
"""The fields that lead to the raw bytes of a constant: `attr` of the NodeDef, `value` of the map
entry, `tensor` of the AttrValue, `tensor_content` of the TensorProto."""

_NODE_NAME = re.compile(rb"[A-Za-z0-9.][A-Za-z0-9_>./\\-]*")
_OP_NAME = re.compile(rb"[A-Z_a-z][A-Za-z0-9_>.]+")
_TEXT_START = re.compile(
    rb"\s*(?:#[^\n]*\n\s*)*(node|library|versions|meta_info_def|graph_def)\s*:?\s*{"
)
_FLOATS = ("float", "bfloat")
_FOLDED = "_bn_offset"
"""The suffix of biases that `fold_batch_norms` adds to convolutions. Sources:
tensorflow/python/tools/optimize_for_inference_lib.py and
tensorflow/tools/graph_transforms/fold_old_batch_norms.cc."""
_SHIFT = re.compile(
    r"(.*/)?(batchnorm/sub(/_\d+__cf__\d+)?|FusedBatchNorm(V\d)?/Offset)", re.DOTALL
)
"""The name of `beta - mean * scale` in `tf.nn.batch_normalization`; constant folding appends the
suffix (tensorflow/core/common_runtime/constant_folding.cc). TensorFlow.js's converter adds `Offset`
(tfjs-converter/python/tensorflowjs/converters/fold_batch_norms.py)."""


def graph_range(file: File) -> tuple[int, int] | None:
    """Return the start and end offset of the file's GraphDef; None if the file is not a graph."""
    read = Window(file).read
    try:
        for part in islice(scan(read, 0, file.size), 4):
            if part.begin == 0 and _is_node(file, part):
                return 0, file.size
            if part.number == _GRAPH_IN_META_GRAPH:
                nested = next(scan(read, part.start, min(part.end, file.size)), None)
                is_graph = nested is not None and _is_node(file, nested)
                return (part.start, part.end) if is_graph else None
    except WireError:
        pass
    return None


def _is_node(file: File, part: Field) -> bool:
    """Return True if a field is a NodeDef, which starts with the names of a node and an op."""
    if part.number != _NODE_IN_GRAPH:
        return False
    end = min(part.end, part.start + _HEAD, file.size)
    try:
        start = file.read(part.start, max(0, end - part.start))
        (first, name), (second, op) = islice(fields(start), 2)
    except ValueError:
        return False
    if (first, second) != (1, 2) or not (isinstance(name, bytes) and isinstance(op, bytes)):
        return False
    # A FileDescriptorSet starts with the names of a .proto file and a package.
    is_node = not name.endswith(b".proto") and _NODE_NAME.fullmatch(name)
    return bool(is_node and _OP_NAME.fullmatch(op))


def matches(file: File) -> bool:
    """Return True if the file starts like a GraphDef or a MetaGraphDef, binary or text."""
    return _text_message(file) is not None or graph_range(file) is not None


def open_contents(file: File, source: Source) -> Contents:
    """Return the constants and the graph of a file."""
    return _open(file, source)[0]


def open_index(file: File, source: Source) -> Contents:
    """Return the result of `open_contents` plus the declared variables, which have no values."""
    contents, graph_def = _open(file, source)
    declared = declared_by_ops(graph_def, source.path)
    if not declared:
        return contents
    graph = graph_of(graph_def, declared)
    constants = {name: name for name in contents.variables}
    graph = replace(graph, variables={**constants, **graph.variables})
    variables = {**contents.variables, **declared}
    return replace(contents, variables=variables, graphs=lambda: (graph,))


def _open(file: File, source: Source) -> tuple[Contents, Any]:
    source = replace(source, format="frozen-graph")
    if (message := _text_message(file)) is not None:
        parsed = parse_text(message, file.read(), file.path, "the graph")
        graph_def = parsed if message == "GraphDef" else parsed.graph_def
        return contents_of_graph(graph_def, source), graph_def
    span = graph_range(file)
    if span is None or file.size >= LARGEST_MESSAGE:
        raise DamagedError(file.path, "is not a graph", "pass a GraphDef or a MetaGraphDef")
    graph_def = skeleton(file, *span, "GraphDef", "the graph")
    if len(graph_def.node) > MAX_NODES:
        problem = f"bnstat does not read graphs of more than {MAX_NODES} nodes"
        raise UnsupportedError(file.path, problem)
    return contents_of_graph(graph_def, source, file=file), graph_def


def _text_message(file: File) -> str | None:
    """Return the message type of a text-format graph; None for other files."""
    match = _TEXT_START.match(file.head(_HEAD))
    if match is None:
        return None
    return "GraphDef" if match[1] in (b"node", b"library", b"versions") else "MetaGraphDef"


def contents_of_graph(
    graph_def: Any, source: Source, notes: Sequence[str] = (), file: File | None = None
) -> Contents:
    """Return a graph, and its constants as variables. Pass `file` if `graph_def` is a skeleton."""
    ops = inlined(graph_def)

    def tensor_of(op: Node) -> Any:
        node = op.node if file is None else complete(file, op.node, "a constant")
        return node.attr["value"].tensor

    def read(op: Node) -> Array:
        return decode_tensor(tensor_of(op), f"{source.path}: {op.name}")

    nodes = [op for op in ops.values() if isinstance(op, Node)]
    uses = Counter(op.node.name for op in nodes)
    variables, names = {}, {}
    for op in nodes:
        if (tensor := op.tensor) is None:
            continue
        key = op.name
        dtype, shape = dtype_name(tensor.dtype), shape_of(tensor.tensor_shape)
        if shape and 0 not in shape and dtype.startswith(_FLOATS):
            kind = find_dtype(dtype)
            finder: Callable[[], Sequence[Range]] = tuple
            if file is not None and kind is not None and not op.function:
                finder = partial(_extents, file, op.node, shape, kind)
            # A constant of an inlined function has its name in the function, if that is unique.
            names[key] = op.node.name if uses[op.node.name] == 1 else key
            variables[key] = Variable(key, names[key], dtype, shape, partial(read, op), finder)
    graph = make_graph("", ops, {key: key for key in variables}, tensor_of=tensor_of)
    notes = [*notes, *_notes(ops, _count_cut_off(graph_def))]
    return Contents(source, variables, names=names, graphs=lambda: (graph,), notes=notes)


def _extents(file: File, node: Any, shape: tuple[int, ...], kind: np.dtype[Any]) -> Sequence[Range]:
    """Return the range of a constant's raw bytes; without raw bytes, the range of the NodeDef."""
    raw = find_fields(file, node, *_CONTENT_IN_NODE)
    if len(raw) == 1 and raw[0].end - raw[0].start == bytes_needed(shape, kind):
        return extents(file, raw[0].start, raw[0].end - raw[0].start, kind, shape)
    return extents(file, node.begin, node.end - node.begin, None, shape)


def _count_cut_off(graph_def: Any) -> int:
    """Return the number of nodes with an input from a node that the graph does not contain."""
    names = {node.name for node in graph_def.node}
    inputs = (
        (name.lstrip("^").partition(":")[0] for name in node.input) for node in graph_def.node
    )
    return sum(not names.issuperset(sources) for sources in inputs)


def _notes(ops: Mapping[str, Op], cut_off: int) -> Iterator[str]:
    if cut_off:
        yield (
            f"inputs of {count(cut_off, 'operation')} are not in this file: a description of a "
            "graph, such as OpenCV's .pbtxt, lacks the values, which are in the frozen graph (.pb)"
        )
    yield from notes_on_folding(ops)
    if absent := sum(op.type in VARIABLES for op in ops.values()):
        yield (
            f"the values of {count(absent, 'variable')} are not in this file, "
            "but in the checkpoint that belongs to it (inspect --no-values shows names and "
            "settings)"
        )


def notes_on_folding(ops: Mapping[str, Op]) -> Iterator[str]:
    """Yield notes on the batch norms that were folded, as the names of a graph's ops show."""
    if folded := sum(name.endswith(_FOLDED) for name in ops):
        yield (
            f"batch norm was folded into {count(folded, 'convolution')}: "
            "nothing of it is left to show"
        )
    constants = (name for name, op in ops.items() if op.type == "Const")
    if reduced := sum(_SHIFT.fullmatch(name) is not None for name in constants):
        yield (
            f"{count(reduced, 'batch-norm layer')} became a scale and a shift when constants were "
            "folded: gamma, beta and the statistics are not in this file"
        )


def declared_by_ops(graph_def: Any, path: str) -> dict[str, Variable]:
    """Return a TensorFlow 1 graph's variables by op name; the variables have no values."""
    attributes = {node.name: node.attr for node in graph_def.node if node.op in VARIABLES}
    declared = (
        declared_variable(name, name, attribute["dtype"].type, attribute["shape"].shape, path)
        for name, attribute in attributes.items()
    )
    return {variable.key: variable for variable in declared if variable is not None}


def declared_variable(key: str, name: str, dtype: int, shape: Any, path: str) -> Variable | None:
    """Return a variable without values; None if a size in the `TensorShapeProto` is unknown."""

    def read() -> NoReturn:
        problem = "the values of the variables are not in this file"
        remedy = "use --no-values for names and shapes alone"
        raise NotFoundError(f"{path}: {key}", problem, remedy)

    sizes = shape_of(shape)
    return None if sizes is None else Variable(key, name, dtype_name(dtype), sizes, read)
