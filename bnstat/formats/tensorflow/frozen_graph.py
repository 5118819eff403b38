"""Graphs in a file of their own: frozen graphs, any GraphDef, a `.meta` without its checkpoint.

Freezing turns each variable into a `Const` op of the same name, so a frozen graph's constants
are its variables. The file is a GraphDef (or the MetaGraphDef around one): fields `node`, one a
NodeDef, whose constants lie in `attr["value"].tensor`. Large constants are skipped when the
graph is read, and read when they are asked for; a graph of a gigabyte costs what its structure
costs.

Sources: tensorflow/core/framework/{graph,node_def,attr_value,tensor}.proto,
tensorflow/python/framework/{graph_util_impl,convert_to_constants}.py.

A graph's file by ranges: its structure without long constants, and where those lie.

Source: tensorflow/core/framework/{graph,node_def,attr_value,tensor}.proto.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import islice
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.contents import Contents, Graph, Op
from bnstat.formats.dtypes import dtype_name, find_dtype
from bnstat.formats.protobuf.protos import parse, parse_text
from bnstat.formats.protobuf.wire import (
    LARGEST_MESSAGE,
    Field,
    Window,
    WireError,
    damaged,
    fields,
    scan,
)
from bnstat.formats.tensorflow.graph_def import (
    MOST_NODES,
    VARIABLES,
    decode_tensor,
    graph_of,
    inlined,
    is_small,
    shape_of,
    small_array,
)
from bnstat.formats.tensorflow.inlining import Node
from bnstat.model import Source, Variable
from bnstat.storage.files import File, Range

_LARGEST_STRUCTURE = 1 << 26
"""Bytes of a graph without its long constants; real ones have a few million."""

_LONG = 4096
"""Bytes from which on a field is skipped, or looked into for what to skip."""

_BYTES = 2
_NODE_IN_GRAPH = 1
_GRAPH_IN_META_GRAPH = 2
_TENSOR_IN_NODE = (5, 2, 8)
"""NodeDef.attr, the entry's AttrValue, its tensor."""
_CONTENT_IN_TENSOR = 4
_VALUE = b"\x0a\x05value"
"""The key of a constant's entry among its node's attributes, as a field."""

_NODE_NAME = re.compile(rb"[A-Za-z0-9.][A-Za-z0-9_>./\\-]*")
_OP_NAME = re.compile(rb"[A-Z_a-z][A-Za-z0-9_>.]+")


class GraphFile:
    """The GraphDef that lies in a file.

    Attributes:
        graph_def: the message without its long constants.
    """

    def __init__(self, file: File, span: tuple[int, int]) -> None:
        """Read the structure.

        Args:
            file: the file.
            span: where the message begins and ends in it, see `graph_range`.

        Raises:
            WireError: it is no message.
            DamagedError: it is damaged.
            UnsupportedError: the graph is too large.
        """
        self._file = file
        self._window = Window(file)
        self._nodes: list[Field] = []
        self._skipped: set[str] = set()
        structure = bytearray()
        window = Window(file)
        for number, field in enumerate(scan(window, *span)):
            is_long = field.end - field.begin > _LONG
            is_node = field.number == _NODE_IN_GRAPH and field.kind == _BYTES
            if is_node:
                self._nodes.append(field)
            if is_long and is_node:
                node = _without_long_fields(window, field, _TENSOR_IN_NODE)
                self._skipped.add(parse("NodeDef", node, file.path, "a node").name)
                structure += _encoded(_NODE_IN_GRAPH, node)
            elif len(structure) + field.end - field.begin <= _LARGEST_STRUCTURE:
                structure += window.read(field.begin, field.end)
            if number > MOST_NODES or len(structure) > _LARGEST_STRUCTURE:
                raise UnsupportedError(file.path, "a graph of this size is not read")
        self.graph_def = parse("GraphDef", bytes(structure), file.path, "the graph")

    def whole(self, name: str, tensor: Any) -> Any:
        """The TensorProto of a constant.

        Args:
            name: the node's name.
            tensor: what `graph_def` has of it.

        Raises:
            DamagedError: the file's bytes are no such message.
        """
        if name not in self._skipped:
            return tensor
        if (content := self._content(name)) is not None:
            whole = type(tensor)()
            whole.CopyFrom(tensor)
            whole.tensor_content = self._file.read(content.start, content.end - content.start)
            return whole
        field = self._by_name[name]
        data = self._file.read(field.start, field.end - field.start)
        return parse("NodeDef", data, self._file.path, "a constant").attr["value"].tensor

    def extents(self, name: str, shape: tuple[int, ...], itemsize: int) -> list[Range]:
        """Where a constant's numbers lie: by themselves or, where they are listed, their node.

        Args:
            name: the node's name.
            shape: the array's shape.
            itemsize: the bytes of an element.
        """
        field = self._by_name.get(name)
        if field is None:
            return []
        part = None
        content = self._content(name)
        if content is not None and content.end - content.start == prod(shape) * itemsize:
            field, part = content, tuple(slice(0, size) for size in shape)
        place = self._file.place(field.start, field.end - field.start, part)
        return [] if place is None else [place]

    @cached_property
    def _by_name(self) -> Mapping[str, Field]:
        return {n.name: field for n, field in zip(self.graph_def.node, self._nodes, strict=True)}

    def _content(self, name: str) -> Field | None:
        """The field of a node's constant that holds its raw bytes, if it has just one."""
        found = [self._by_name[name]]
        try:
            for number in (*_TENSOR_IN_NODE, _CONTENT_IN_TENSOR):
                found = [
                    field
                    for message in found
                    for field in scan(self._window, message.start, message.end)
                    if field.number == number
                    and (number != _TENSOR_IN_NODE[0] or self._is_value(field))
                ]
        except WireError:
            return None
        return found[0] if len(found) == 1 else None

    def _is_value(self, entry: Field) -> bool:
        """Whether an entry of a node's attributes is the one of a constant's value."""
        key = next(scan(self._window, entry.start, entry.end), None)
        return key is not None and self._window.read(key.begin, key.end) == _VALUE


def graph_range(file: File) -> tuple[int, int] | None:
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


_TEXT_START = re.compile(
    rb"\s*(?:#[^\n]*\n\s*)*(node|library|versions|meta_info_def|graph_def)\s*:?\s*{"
)

_FLOATS = ("float", "bfloat")

_FOLDED = "_bn_offset"
"""The end of the names of the biases that `fold_batch_norms` adds to convolutions.

Sources: tensorflow/python/tools/optimize_for_inference_lib.py and
tensorflow/tools/graph_transforms/fold_old_batch_norms.cc."""


def matches(file: File) -> bool:
    """Whether the file starts as a GraphDef or a MetaGraphDef does, binary or text."""
    return _text_form(file) is not None or graph_range(file) is not None


def open_contents(file: File, source: Source) -> Contents:
    """The constants of a graph's file, and the graph.

    Raises:
        DamagedError: the file is truncated, or no graph.
        UnsupportedError: the graph is too large.
    """
    return _opened(file, source)[0]


def open_index(file: File, source: Source) -> Contents:
    """The same for when no values are wanted: the variables that the graph declares are listed.

    Raises:
        DamagedError, UnsupportedError: as `open_contents`.
    """
    contents, graph_def = _opened(file, source)
    if not any(node.op in VARIABLES for node in graph_def.node):
        return contents
    from bnstat.formats.tensorflow.declared import declared_by_ops

    declared = declared_by_ops(graph_def, source.path)
    keys = declared.keys
    graph = graph_of(graph_def, lambda name: name if name in keys else None)
    constants = {name: name for name in contents.variables}
    graph = replace(graph, variables={**constants, **graph.variables})
    variables = {**contents.variables, **declared.variables({})}
    return replace(contents, variables=variables, graphs=lambda: (graph,))


def _opened(file: File, source: Source) -> tuple[Contents, Any]:
    """What a graph's file holds, and the GraphDef."""
    source = replace(source, format="frozen-graph")
    if (text_form := _text_form(file)) is not None:
        graph_def = _parse_text(file, text_form)
        return contents_of_graph(graph_def, source), graph_def
    span = graph_range(file)
    if span is None or file.size >= LARGEST_MESSAGE:
        raise DamagedError(file.path, "is no graph", "is it a GraphDef or a MetaGraphDef?")
    try:
        stored = GraphFile(file, span)
    except WireError as error:
        raise damaged(file.path, "the graph", error) from error
    return contents_of_graph(stored.graph_def, source, stored=stored), stored.graph_def


def contents_of_graph(
    graph_def: Any, source: Source, notes: Sequence[str] = (), stored: GraphFile | None = None
) -> Contents:
    """The constants of a graph as a file's variables, and the graph.

    Args:
        graph_def: a `GraphDef` message.
        source: what it was read from.
        notes: what is known already.
        stored: the file that `graph_def` was read from, if its long constants were left there.
    """
    ops = inlined(graph_def)
    held = {op.name: op.tensor for op in ops.values() if isinstance(op, Node) and op.tensor}

    def whole(name: str) -> Any:
        return held[name] if stored is None else stored.whole(name, held[name])

    def constant(name: str) -> NDArray[np.generic] | None:
        is_structure = name in held and is_small(held[name])
        return small_array(whole(name), name) if is_structure else None

    def read(name: str) -> NDArray[np.generic]:
        return decode_tensor(whole(name), f"{source.path}: {name}")

    def extents(name: str, shape: tuple[int, ...], dtype: str) -> Sequence[Range]:
        kind = find_dtype(dtype)
        return () if stored is None or kind is None else stored.extents(name, shape, kind.itemsize)

    variables = {}
    for name, tensor in held.items():
        dtype, shape = dtype_name(tensor.dtype), shape_of(tensor)
        if shape and 0 not in shape and dtype.startswith(_FLOATS):
            finder = partial(extents, name, shape, dtype)
            variables[name] = Variable(name, name, dtype, shape, partial(read, name), finder)
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
            "but in the checkpoint that belongs to it (inspect --no-values shows names and "
            "settings)"
        )


def _text_form(file: File) -> str | None:
    """Which of the two messages the file spells out, if it is text."""
    match = _TEXT_START.match(file.head(4096))
    if match is None:
        return None
    return "GraphDef" if match[1] in (b"node", b"library", b"versions") else "MetaGraphDef"


def _parse_text(file: File, message: str) -> Any:
    """The GraphDef that a file of text is, or holds."""
    parsed = parse_text(message, file.read(), file.path, "the graph")
    return parsed if message == "GraphDef" else parsed.graph_def
