"""Write constants of a graph: of a GraphDef file or of a SavedModel.

Raw bytes are replaced in place. Listed values, and constants in functions, may change in length,
and so may all enclosing messages. In this case the file is rewritten, and only the changed fields
differ.

The values of a TensorProto stay in the field that contains them: raw in `tensor_content`, or
listed one by one. A list may be shorter than the tensor: its last value is repeated
(tensorflow/core/framework/tensor.proto).
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np

from bnstat.errors import BnstatError, UnsupportedError
from bnstat.formats.contents import Contents
from bnstat.formats.protobuf.protos import parse
from bnstat.formats.protobuf.wire import LARGEST_MESSAGE, encoded, field, spans
from bnstat.formats.tensorflow.bundle import BINARY, TEXT, TEXT_START
from bnstat.formats.tensorflow.detection import is_saved_model
from bnstat.formats.tensorflow.frozen_graph import graph_range
from bnstat.formats.tensorflow.graph_def import TENSORRT, Node, all_nodes, inlined
from bnstat.mending.writers import patch, raw
from bnstat.model import Array, is_same
from bnstat.storage.local import LocalFile

Change = Callable[[bytes], bytes]

_CONTENT: Final = 4
_BITS: Final = 13
_LISTED: Final = {"float32": 5, "float64": 6, "float16": _BITS, "bfloat16": _BITS}
"""Element type -> the field that lists values. 16-bit floats are listed as bit patterns."""
_VALUES: Final = frozenset({4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 17, 18})


def rebuilt(changes: Mapping[int, Change], message: bytes) -> bytes:
    """Return a message with new values in some fields; `changes` maps field number -> function.

    Each function converts the old bytes of a value to new bytes. Other fields are unchanged.
    """
    pieces, kept = [], 0
    for span in spans(message):
        if span.number in changes:
            old = message[span.start : span.end]
            new = changes[span.number](old)
            if new != old:
                pieces += [message[kept : span.begin], field(span.number, new)]
                kept = span.end
    return b"".join((*pieces, message[kept:]))


def at(path: Sequence[int], change: Change) -> Change:
    """Return a function that applies `change` to the field at a path of field numbers."""
    for number in reversed(path):
        change = partial(rebuilt, {number: change})
    return change


def with_values(array: Array, tensor: bytes) -> bytes:
    """Return a `TensorProto` whose values are replaced by an array."""
    values = [span for span in spans(tensor) if span.number in _VALUES and span.end > span.start]
    is_raw = not values or values[0].number == _CONTENT
    number = _CONTENT if is_raw else _LISTED.get(array.dtype.name, _CONTENT)
    if number == _BITS:
        bits = np.ascontiguousarray(array).reshape(-1).view(np.uint16).tolist()
        new = field(number, b"".join(map(encoded, bits)))
    else:
        new = field(number, raw(array))
    pieces, kept = [], 0
    for span in values:
        pieces += [tensor[kept : span.begin], new]
        new, kept = b"", span.end
    return b"".join((*pieces, tensor[kept:], new))


_GRAPH_IN_META_GRAPH: Final = 2
_META_GRAPH_IN_SAVED_MODEL: Final = 2
_NODE, _LIBRARY, _FUNCTION, _SIGNATURE, _NODE_IN_FUNCTION = 1, 2, 1, 1, 3
_NAME, _ATTRIBUTE, _TENSOR_IN_ENTRY = 1, 5, (2, 8)


def write(contents: Contents, arrays: Mapping[str, Array]) -> None:
    """Write constants of a graph; see `write_arrays`."""
    _, others = patch(contents, arrays)
    path = contents.source.path
    if os.path.isdir(path):
        paths = [os.path.join(path, name) for name in (BINARY, TEXT)]
        path = next(filter(os.path.exists, paths), path)
    if others:
        _write_anew(LocalFile(path), {key: arrays[key] for key in others})


def _write_anew(file: LocalFile, arrays: Mapping[str, Array]) -> None:
    data = file.read()
    path: tuple[int, ...] = ()
    if is_saved_model(file) and not TEXT_START.match(data):
        graph = parse("SavedModel", data, file.path).meta_graphs[0].graph_def
        path = (_META_GRAPH_IN_SAVED_MODEL, _GRAPH_IN_META_GRAPH)
    elif (span := graph_range(file)) is not None:
        graph = parse("GraphDef", data[slice(*span)], file.path)
        if span != (0, file.size):
            path = (_GRAPH_IN_META_GRAPH,)
    else:
        what = "is a graph in text form, and bnstat writes only binary graphs"
        raise UnsupportedError(file.path, what, "convert it to binary")
    result = at(path, _in_graph(_homes(graph, arrays, file.path)))(data)
    if len(result) >= LARGEST_MESSAGE:
        raise UnsupportedError(file.path, "would become larger than the limit of protocol buffers")
    temporary = file.path + ".anew"
    with open(temporary, "xb") as out:
        out.write(result)
    os.replace(temporary, file.path)


Homes = Mapping[str, Mapping[str, Array]]
"""Name of a function (empty for the graph itself) -> name of a constant in it -> new array."""


def _homes(graph: Any, arrays: Mapping[str, Array], path: str) -> Homes:
    """Group `arrays`, whose keys are names in the inlined graph, by function and constant."""
    engines = (node for node in all_nodes(graph) if node.op == TENSORRT)
    if any(engine.attr["serialized_segment"].s for engine in engines):
        what = "contains a TensorRT engine, which has a compiled copy of the values"
        raise UnsupportedError(path, what, "change the model from which the engine was built")
    ops = inlined(graph)
    homes: dict[str, dict[str, Array]] = defaultdict(dict)
    for name, array in arrays.items():
        op = ops.get(name)
        if not isinstance(op, Node):
            raise UnsupportedError(path, f"bnstat cannot write the constant {name}")
        if not is_same(homes[op.function].setdefault(op.node.name, array), array):
            what = f"{name} is shared by layers with different new values"
            raise BnstatError(path, what, "give them the same values")
    return homes


def _in_graph(homes: Homes) -> Change:
    def in_node(arrays: Mapping[str, Array], node: bytes) -> bytes:
        array = arrays.get(_name(node))
        if array is None:
            return node
        new = at(_TENSOR_IN_ENTRY, partial(with_values, array))
        in_value = at([_ATTRIBUTE], lambda entry: new(entry) if _name(entry) == "value" else entry)
        return in_value(node)

    def in_function(function: bytes) -> bytes:
        name = _name(_first(function, _SIGNATURE))
        arrays = homes.get(name) if name else None
        return at([_NODE_IN_FUNCTION], partial(in_node, arrays))(function) if arrays else function

    in_library = at([_FUNCTION], in_function)
    return partial(rebuilt, {_NODE: partial(in_node, homes.get("", {})), _LIBRARY: in_library})


def _name(message: bytes) -> str:
    """Return the name of a node or function, or the key of an entry."""
    return _first(message, _NAME).decode("utf-8", "replace")


def _first(message: bytes, number: int) -> bytes:
    """Return the value of the first field with a field number; empty if there is none."""
    return next((message[s.start : s.end] for s in spans(message) if s.number == number), b"")
