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
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from bnstat.errors import BnstatError, UnsupportedError
from bnstat.formats.contents import Contents
from bnstat.formats.protobuf.protos import parse
from bnstat.formats.protobuf.wire import LARGEST_MESSAGE, Field, encoded, field, spans
from bnstat.formats.tensorflow.bundle import BINARY, TEXT
from bnstat.formats.tensorflow.detection import is_saved_model
from bnstat.formats.tensorflow.frozen_graph import graph_range
from bnstat.formats.tensorflow.graph_def import Node, inlined
from bnstat.mending.pairing import different
from bnstat.mending.writers import patch, raw
from bnstat.model import Array
from bnstat.storage.local import LocalFile

Change = Callable[[bytes], bytes]

_CONTENT: Final = 4
_BITS: Final = 13
_LISTED: Final = {"float32": 5, "float64": 6, "float16": _BITS, "bfloat16": _BITS}
"""Element type -> the field that lists values. 16-bit floats are listed as bit patterns."""
_VALUES: Final = frozenset({4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 17, 18})


def rebuilt(message: bytes, changes: Mapping[int, Change]) -> bytes:
    """Return a message with some fields changed.

    Args:
        message: the message.
        changes: index of a field in the message -> function from the old to the new value.
    """
    pieces, kept = [], 0
    for index, span in enumerate(spans(message)):
        if index in changes:
            value = changes[index](message[span.start : span.end])
            pieces += [message[kept : span.begin], field(span.number, value)]
            kept = span.end
    return b"".join((*pieces, message[kept:]))


def at(path: Sequence[int], change: Change) -> Change:
    """Return a function that changes a nested field.

    Args:
        path: the numbers of the fields, from the outermost message inwards. If a field is
            repeated, the last one counts, as in all parsers.
        change: changes the innermost field.
    """
    if not path:
        return change

    def change_within(message: bytes) -> bytes:
        indices = [index for index, span in enumerate(spans(message)) if span.number == path[0]]
        return rebuilt(message, {indices[-1]: at(path[1:], change)}) if indices else message

    return change_within


def tensor_with(array: Array) -> Change:
    """Return a function that replaces the values of a `TensorProto` by an array."""

    def change(tensor: bytes) -> bytes:
        values = [
            span for span in spans(tensor) if span.number in _VALUES and span.end > span.start
        ]
        is_raw = not values or values[0].number == _CONTENT
        number = _CONTENT if is_raw else _LISTED.get(array.dtype.name, _CONTENT)
        new = field(number, _as_bits(array) if number == _BITS else raw(array))
        if not values:
            return tensor + new
        pieces, kept = [], 0
        for span in values:
            pieces += [tensor[kept : span.begin], new]
            new, kept = b"", span.end
        return b"".join((*pieces, tensor[kept:]))

    return change


def _as_bits(array: Array) -> bytes:
    bits = np.ascontiguousarray(array).reshape(-1).view(np.uint16).tolist()
    return b"".join(map(encoded, bits))


Home = tuple[str, str]
"""The name of the enclosing function (empty for the graph itself), and the constant's name."""

_GRAPH_IN_META_GRAPH: Final = 2
_META_GRAPH_IN_SAVED_MODEL: Final = 2
_NODE, _LIBRARY, _FUNCTION, _NODE_IN_FUNCTION = 1, 2, 1, 3
_ATTRIBUTE, _KEY, _TENSOR_IN_ENTRY = 5, 1, (2, 8)


def write(contents: Contents, arrays: Mapping[str, Array]) -> None:
    """Write constants; see `write_arrays`."""
    _, others = patch(contents, arrays)
    if others:
        _write_anew(_file_of(contents.source.path), {key: arrays[key] for key in others})


def _file_of(path: str) -> LocalFile:
    if os.path.isdir(path):
        for name in (BINARY, TEXT):
            if os.path.exists(inside := os.path.join(path, name)):
                return LocalFile(inside)
    return LocalFile(path)


def _write_anew(file: LocalFile, arrays: Mapping[str, Array]) -> None:
    data = file.read()
    change: Change
    if is_saved_model(file) and not file.name.endswith(".pbtxt"):
        graph = parse("SavedModel", data, file.path).meta_graphs[0].graph_def
        in_graph = _in_graph(_homes(graph, arrays, file.path))
        change = _each(_META_GRAPH_IN_SAVED_MODEL, at([_GRAPH_IN_META_GRAPH], in_graph))
    elif (span := graph_range(file)) is not None:
        graph = parse("GraphDef", data[slice(*span)], file.path)
        in_graph = _in_graph(_homes(graph, arrays, file.path))
        change = in_graph if span == (0, file.size) else at([_GRAPH_IN_META_GRAPH], in_graph)
    else:
        raise UnsupportedError(
            file.path,
            "is a graph in text form, which bnstat does not write",
            "convert it to binary",
        )
    result = change(data)
    if len(result) >= LARGEST_MESSAGE:
        raise UnsupportedError(file.path, "would become larger than the limit of protocol buffers")
    temporary = file.path + ".anew"
    with open(temporary, "xb") as out:
        out.write(result)
    os.replace(temporary, file.path)


def _homes(graph: Any, arrays: Mapping[str, Array], path: str) -> dict[Home, Array]:
    """Return home -> array; `arrays` has the constants' names in the inlined graph."""
    ops = inlined(graph)
    homes: dict[Home, Array] = {}
    for name, array in arrays.items():
        op = ops.get(name)
        if not isinstance(op, Node):
            raise UnsupportedError(path, f"{name} cannot be written")
        first = homes.setdefault((op.function, op.node.name), array)
        if different(first, array).any():
            raise BnstatError(
                path, f"{name} is shared by several layers", "give all of them the same values"
            )
    return homes


def _each(number: int, change: Change) -> Change:
    """Return a function that changes every field with a number."""
    return _some(lambda span, _: change if span.number == number else None)


def _some(choose: Callable[[Field, bytes], Change | None]) -> Change:
    """Return a function that changes the fields for which `choose` returns a change."""

    def change(message: bytes) -> bytes:
        chosen = {
            index: field_change
            for index, span in enumerate(spans(message))
            if (field_change := choose(span, message)) is not None
        }
        return rebuilt(message, chosen)

    return change


def _in_graph(homes: Mapping[Home, Array]) -> Change:
    """Return a function that changes constants of a GraphDef."""

    def nodes(number: int, function: str) -> Change:
        named = {name: array for (where, name), array in homes.items() if where == function}

        def choose(span: Field, message: bytes) -> Change | None:
            if span.number != number or not named:
                return None
            array = named.get(_first_text(message[span.start : span.end]))
            return None if array is None else _in_node(array)

        return _some(choose)

    def in_function(function: bytes) -> bytes:
        signature = next(span for span in spans(function) if span.number == 1)
        name = _first_text(function[signature.start : signature.end])
        return nodes(_NODE_IN_FUNCTION, name)(function)

    functions = {where for where, _ in homes} - {""}

    def in_graph(graph: bytes) -> bytes:
        changed = nodes(_NODE, "")(graph)
        return at([_LIBRARY], _each(_FUNCTION, in_function))(changed) if functions else changed

    return in_graph


def _in_node(array: Array) -> Change:
    """Return a function that changes the value in the NodeDef of a constant."""

    def choose(span: Field, node: bytes) -> Change | None:
        is_value = span.number == _ATTRIBUTE and _first_text(node[span.start : span.end]) == "value"
        return at(_TENSOR_IN_ENTRY, tensor_with(array)) if is_value else None

    return _some(choose)


def _first_text(message: bytes) -> str:
    """Return the string in field 1: the name of a node or function, or the key of an entry."""
    texts = [span for span in spans(message) if span.number == _KEY]
    return message[texts[-1].start : texts[-1].end].decode("utf-8", "replace") if texts else ""
