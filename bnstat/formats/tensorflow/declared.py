"""The variables that a graph declares, for a model whose values are missing.

A graph of TensorFlow 1 has an op for each variable, with its shape and dtype. The SavedObjectGraph
of TensorFlow 2 describes each variable as an object, under the path that is its checkpoint key.

Sources: tensorflow/core/protobuf/saved_object_graph.proto; `_ObjectGraphView` and
`_escape_local_name` of tensorflow/python/checkpoint.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, NamedTuple, NoReturn

from bnstat.errors import NotFoundError
from bnstat.formats.contents import Node, Objects
from bnstat.formats.dtypes import dtype_name
from bnstat.formats.protobuf.protos import parse
from bnstat.formats.tensorflow.graph_def import VARIABLES
from bnstat.formats.tensorflow.object_graph import VALUE
from bnstat.model import Variable


class _Kind(NamedTuple):
    dtype: str
    shape: tuple[int, ...]


class Declared:
    """The variables of a graph by key; see `Tensors`. None of them can be read."""

    def __init__(self, path: str, kinds: Mapping[str, _Kind]) -> None:
        self.path = path
        self._kinds = kinds

    @property
    def keys(self) -> Collection[str]:
        """All checkpoint keys."""
        return self._kinds.keys()

    def variables(self, names: Mapping[str, str]) -> Mapping[str, Variable]:
        """The variables by key, under the names given."""
        return {
            key: Variable(key, names.get(key, key), *kind, partial(self.read, key))
            for key, kind in self._kinds.items()
        }

    def read(self, key: str) -> NoReturn:
        """Raise NotFoundError: there are no values."""
        raise NotFoundError(
            f"{self.path}: {key}", "its values are not in this file", "leave them out: --no-values"
        )

    def read_string(self, key: str) -> NoReturn:
        """Raise NotFoundError: there are no values."""
        self.read(key)


def declared_by_ops(graph_def: Any, path: str) -> Declared:
    """The variables of a graph of TensorFlow 1, by the names of their ops."""
    kinds = {}
    for node in graph_def.node:
        if node.op in VARIABLES and (
            kind := _kind(node.attr["dtype"].type, node.attr["shape"].shape)
        ):
            kinds[node.name] = kind
    return Declared(path, kinds)


def declared_by_objects(saved_graph: Any, path: str) -> tuple[Declared, Objects]:
    """The variables of a SavedObjectGraph by their checkpoint keys, and its nodes."""
    message = saved_graph.SerializeToString()
    saved = parse("DeclaredObjectGraph", message, path, "the object graph").nodes
    paths = _shortest_paths(saved)
    nodes, kinds = [], {}
    for index, each in enumerate(saved):
        children = {
            child.local_name: child.node_id
            for child in each.children
            if 0 <= child.node_id < len(saved)
        }
        key, name = None, ""
        if each.HasField("variable") and index in paths:
            kind = _kind(each.variable.dtype, each.variable.shape)
            name = each.variable.name.partition(":")[0]
            if kind is not None:
                key = paths[index] + VALUE
                kinds[key] = kind
        nodes.append(Node(children, key, name))
    return Declared(path, kinds), Objects(nodes)


def _shortest_paths(saved: Any) -> dict[int, str]:
    """Node -> its shortest path from the root."""
    paths = {0: ""} if len(saved) else {}
    queue = deque(paths)
    while queue:
        index = queue.popleft()
        for child in saved[index].children:
            if child.node_id not in paths and 0 <= child.node_id < len(saved):
                name = child.local_name.replace(".", "..").replace("/", ".S")
                paths[child.node_id] = f"{paths[index]}/{name}" if paths[index] else name
                queue.append(child.node_id)
    return paths


def _kind(dtype: int, shape: Any) -> _Kind | None:
    sizes = tuple(dim.size for dim in shape.dim)
    if shape.unknown_rank or min(sizes, default=0) < 0:
        return None
    return _Kind(dtype_name(dtype), sizes)
