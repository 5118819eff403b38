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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import DamagedError
from bnstat.formats.contents import Contents, Graph, Op
from bnstat.formats.dtypes import dtype_name, find_dtype
from bnstat.formats.protobuf.protos import parse_text
from bnstat.formats.protobuf.wire import LARGEST_MESSAGE, WireError, damaged
from bnstat.formats.tensorflow.graphs.graph_def import VARIABLES, graph_of, inlined
from bnstat.formats.tensorflow.graphs.graph_file import GraphFile, graph_range
from bnstat.formats.tensorflow.graphs.inlining import Node
from bnstat.formats.tensorflow.graphs.tensor_proto import (
    decode_tensor,
    is_small,
    shape_of,
    small_array,
)
from bnstat.model import Source, Variable
from bnstat.storage.files import File
from bnstat.storage.ranges import Range

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
