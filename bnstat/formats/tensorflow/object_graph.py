"""The object graph of a TensorFlow 2 checkpoint.

The string tensor `_CHECKPOINTABLE_OBJECT_GRAPH` holds a TrackableObjectGraph: node 0 is the
object that was saved; every node names its children and, where it is a variable, the key that
its value is stored under. That key is the variable's shortest path from node 0, so it need not
pass through the layer that owns it; the children do.
Source: tensorflow/core/protobuf/trackable_object_graph.proto.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from bnstat.errors import DamagedError
from bnstat.formats.contents import Node
from bnstat.formats.protobuf.wire import WireError, damaged, fields, text

KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"

_AGAIN = "_all_variables/"

_NONE: Mapping[str, int] = {}


def read_nodes(message: bytes, where: str) -> list[Node]:
    """The graph's nodes; node 0 is the root.

    Raises:
        DamagedError: it is no object graph, or names a child that does not exist.
    """
    try:
        nodes = [
            _node(value)
            for number, value in fields(message)
            if number == 1 and isinstance(value, bytes)
        ]
    except WireError as error:
        raise damaged(where, "the object graph", error) from error
    count = len(nodes)
    if any(not 0 <= child < count for node in nodes for child in node.children.values()):
        raise DamagedError(where, "the object graph names an object that it does not hold")
    return nodes


def _node(message: bytes) -> Node:
    """A TrackableObject := 1 child {1 node, 2 name}, 2 attribute {2 full name, 3 key}."""
    children: dict[str, int] = {}
    key, full_name = None, ""
    for number, value in fields(message):
        if not isinstance(value, bytes) or number > 2:
            continue
        found = dict(fields(value))
        if number == 1:
            child = found.get(1, 0)
            children[text(found.get(2, b""))] = child if isinstance(child, int) else -1
        elif (stored := text(found.get(3, b""))).endswith(VALUE):
            key, full_name = stored, text(found.get(2, b""))
    return Node(children or _NONE, key, full_name)


def best_names(nodes: Sequence[Node]) -> dict[str, str]:
    """For every variable's key the best name known for it.

    That is its full name where one variable alone has it, else its path. (Variables without a
    name of their own are all called `Variable`; Keras 3 gives all layers of a model that is
    built late the model's scope.) `model.export` of Keras 3 saves the variables under
    `variables/` and again under `_all_variables/`: the second is no variable of its own, and
    has no name here.
    """
    named = {node.key: node.full_name for node in nodes if node.key}
    again = [key for key in named if key.startswith(_AGAIN)]
    if again:
        exported = {name for key, name in named.items() if key.startswith("variables/")}
        for key in again:
            if named[key] in exported:
                del named[key]
    uses = Counter(named.values())
    return {
        key: full_name if full_name and uses[full_name] == 1 else path_name(key)
        for key, full_name in named.items()
    }


def saved_again(nodes: Sequence[Node]) -> dict[str, list[str]]:
    """What `model.export` of Keras 3 saved a second time.

    Returns:
        The second key -> the keys that it may be the second of: those of the same full name, of
        which a model that is built late has several.
    """
    named = {node.key: node.full_name for node in nodes if node.key}
    first: dict[str, list[str]] = {}
    for key, name in named.items():
        if not key.startswith(_AGAIN):
            first.setdefault(name, []).append(key)
    return {
        key: first[name] for key, name in named.items() if key.startswith(_AGAIN) and name in first
    }


def path_name(key: str) -> str:
    """The object's path that a checkpoint key spells, unescaped.

    Source: `escape_local_name` in tensorflow/python/trackable/trackable_utils.py.
    """
    path = key.removesuffix(VALUE)
    if "." not in path:
        return path
    return path.replace("..", "\0").replace(".S", "/").replace("\0", ".")
