"""Graphs in a file of their own: frozen graphs, any GraphDef, a `.meta` without its checkpoint.

Freezing turns each variable into a `Const` op of the same name, so a frozen graph's constants
are its variables. The file is a GraphDef (or the MetaGraphDef around one): fields `node`, one a
NodeDef, whose constants lie in `attr["value"].tensor`. Large constants are skipped when the
graph is read, and read when they are asked for; a graph of a gigabyte costs what its structure
costs.

Sources: tensorflow/core/framework/{graph,node_def,attr_value,tensor}.proto,
tensorflow/python/framework/{graph_util_impl,convert_to_constants}.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.contents import Contents, Graph, Op
from bnstat.formats.protobuf.protos import parse, parse_text
from bnstat.formats.protobuf.scan import Field, Window, scan
from bnstat.formats.protobuf.wire import LARGEST_MESSAGE, WireError, damaged, fields
from bnstat.formats.tensorflow.dtypes import dtype_name
from bnstat.formats.tensorflow.graphs.graph_def import MOST_NODES, VARIABLES, inlined
from bnstat.formats.tensorflow.graphs.inlining import Node
from bnstat.formats.tensorflow.graphs.tensor_proto import (
    decode_tensor,
    is_small,
    shape_of,
    small_array,
)
from bnstat.model import Source, Variable
from bnstat.storage.files import File

Skipped = Mapping[str, Callable[[], Any]]
"""Name of a node -> reads its NodeDef from the file."""

_LARGEST_STRUCTURE = 1 << 26
"""Bytes of a graph without its long constants; real ones have a few million."""

_LONG = 4096
"""Bytes from which on a field is skipped, or looked into for what to skip."""

_NODE_IN_GRAPH = 1
_GRAPH_IN_META_GRAPH = 2
_VALUE_IN_NODE = (5, 2, 8)
"""NodeDef.attr, the entry's AttrValue, its tensor."""

_NODE_NAME = re.compile(rb"[A-Za-z0-9.][A-Za-z0-9_>./\\-]*")
_OP_NAME = re.compile(rb"[A-Z_a-z][A-Za-z0-9_>.]+")

_TEXT_START = re.compile(
    rb"\s*(?:#[^\n]*\n\s*)*(node|library|versions|meta_info_def|graph_def)\s*:?\s*{"
)

_FLOATS = ("float", "bfloat")

_FOLDED = "_bn_offset"
"""The end of the names of the biases that `fold_batch_norms` adds to convolutions.

Sources: tensorflow/python/tools/optimize_for_inference_lib.py and
tensorflow/tools/graph_transforms/fold_old_batch_norms.cc."""


def recognises(file: File) -> bool:
    """Whether the file starts as a GraphDef or a MetaGraphDef does, binary or text."""
    return _text_form(file) is not None or _graph_range(file) is not None


def open_contents(file: File, source: Source) -> Contents:
    """The constants of a graph's file, and the graph.

    Raises:
        DamagedError: the file is truncated, or no graph.
        UnsupportedError: the graph is too large.
    """
    source = replace(source, format="frozen-graph")
    if (text_form := _text_form(file)) is not None:
        return contents_of_graph(_parse_text(file, text_form), source)
    span = _graph_range(file)
    if span is None or file.size >= LARGEST_MESSAGE:
        raise DamagedError(file.path, "is no graph", "is it a GraphDef or a MetaGraphDef?")
    try:
        structure, skipped = _read_structure(file, span)
    except WireError as error:
        raise damaged(file.path, "the graph", error) from error
    return contents_of_graph(
        parse("GraphDef", structure, file.path, "the graph"), source, skipped=skipped
    )


def contents_of_graph(
    graph_def: Any, source: Source, notes: Sequence[str] = (), skipped: Skipped | None = None
) -> Contents:
    """The constants of a graph as a file's variables, and the graph.

    Args:
        graph_def: a `GraphDef` message.
        source: what it was read from.
        notes: what is known already.
        skipped: name of a node whose value is not in `graph_def` -> reads its `NodeDef`.
    """
    ops = inlined(graph_def)
    held = {op.name: op.tensor for op in ops.values() if isinstance(op, Node) and op.tensor}

    def whole(name: str) -> Any:
        return skipped[name]().attr["value"].tensor if skipped and name in skipped else held[name]

    def constant(name: str) -> NDArray[np.generic] | None:
        is_structure = name in held and is_small(held[name])
        return small_array(whole(name), name) if is_structure else None

    def read(name: str) -> NDArray[np.generic]:
        return decode_tensor(whole(name), f"{source.path}: {name}")

    variables = {}
    for name, tensor in held.items():
        dtype, shape = dtype_name(tensor.dtype), shape_of(tensor)
        if shape and 0 not in shape and dtype.startswith(_FLOATS):
            variables[name] = Variable(name, name, dtype, shape, partial(read, name))
    graph = Graph("", ops, {name: name for name in variables}, constant)
    return Contents(
        source, variables, graphs=lambda: (graph,), notes=[*notes, *_noticed(ops, source)]
    )


def _noticed(ops: Mapping[str, Op], source: Source) -> Iterator[str]:
    folded = sum(name.endswith(_FOLDED) for name in ops)
    if folded:
        yield (
            f"batch norm was folded into {folded} convolution{'s' * (folded > 1)}: "
            "nothing of it is left to show"
        )
    absent = sum(op.type in VARIABLES for op in ops.values())
    if absent:
        yield (
            f"the values of {absent} variable{'s' * (absent > 1)} are not in this file, "
            "but in the checkpoint that belongs to it"
        )


def _text_form(file: File) -> str | None:
    """Which of the two messages the file spells out, if it is text."""
    match = _TEXT_START.match(file.head(_LONG))
    if match is None:
        return None
    return "GraphDef" if match[1] in (b"node", b"library", b"versions") else "MetaGraphDef"


def _parse_text(file: File, message: str) -> Any:
    """The GraphDef that a file of text is, or holds."""
    parsed = parse_text(message, file.read(), file.path, "the graph")
    return parsed if message == "GraphDef" else parsed.graph_def


def _graph_range(file: File) -> tuple[int, int] | None:
    """Where the file's GraphDef lies; None where the file is no graph."""
    window = Window(file)
    try:
        for field in islice(scan(window, 0, file.size), 4):
            if field.begin == 0 and _is_node(file, field):
                return 0, file.size
            if field.number == _GRAPH_IN_META_GRAPH:
                nested = next(scan(window, field.start, min(field.end, file.size)), None)
                is_graph = nested is not None and _is_node(file, nested)
                return (field.start, field.end) if is_graph else None
    except WireError:
        pass
    return None


def _is_node(file: File, field: Field) -> bool:
    """Whether a field is a NodeDef: it starts with a node's name and an op's."""
    if field.number != _NODE_IN_GRAPH:
        return False
    head = file.read(
        field.start, max(0, min(field.end, field.start + _LONG, file.size) - field.start)
    )
    try:
        (first, name), (second, op) = islice(fields(head), 2)
    except ValueError:
        return False
    return (
        (first, second) == (1, 2)
        and isinstance(name, bytes)
        and isinstance(op, bytes)
        and _NODE_NAME.fullmatch(name) is not None
        and _OP_NAME.fullmatch(op) is not None
    )


def _read_structure(file: File, span: tuple[int, int]) -> tuple[bytes, Skipped]:
    """A GraphDef without long constants, and how to read the nodes that they belong to."""
    window = Window(file)
    structure = bytearray()
    skipped: dict[str, Callable[[], Any]] = {}

    def read_node(field: Field) -> Any:
        data = file.read(field.start, field.end - field.start)
        return parse("NodeDef", data, file.path, "a constant")

    for number, field in enumerate(scan(window, *span)):
        is_long = field.end - field.begin > _LONG
        if is_long and field.number == _NODE_IN_GRAPH:
            node = _without_long_fields(window, field, _VALUE_IN_NODE)
            name = parse("NodeDef", node, file.path, "a node").name
            skipped[name] = partial(read_node, field)
            structure += _encoded(_NODE_IN_GRAPH, node)
        elif len(structure) + field.end - field.begin <= _LARGEST_STRUCTURE:
            structure += window.read(field.begin, field.end)
        if number > MOST_NODES or len(structure) > _LARGEST_STRUCTURE:
            raise UnsupportedError(file.path, "a graph of this size is not read")
    return bytes(structure), skipped


def _without_long_fields(window: Window, message: Field, path: Sequence[int]) -> bytes:
    """A message without its long fields, and those of the messages that `path` leads to."""
    kept = bytearray()
    for field in scan(window, message.start, message.end):
        if field.end - field.begin <= _LONG:
            kept += window.read(field.begin, field.end)
        elif path and field.number == path[0]:
            kept += _encoded(field.number, _without_long_fields(window, field, path[1:]))
    return bytes(kept)


def _encoded(number: int, message: bytes) -> bytes:
    """A message as a field of another (its number below 16)."""
    length, digits = len(message), bytearray([number << 3 | 2])
    while length >= 0x80:
        digits.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes(digits) + bytes([length]) + message
