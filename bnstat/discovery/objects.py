"""Batch norm in the object graph: a node with the children `moving_mean` and `moving_variance`.

In Keras these are variables, beside `gamma` and `beta`. In Sonnet 2 each is a node whose child
`average` is the variable, beside `scale` and `offset`. The children are where the layer keeps
them, whatever path the checkpoint keys spell.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from bnstat.discovery.merge import Sighting
from bnstat.formats.contents import Contents, Node, Objects

_ROLES = {"gamma": ("gamma", "scale"), "beta": ("beta", "offset")}
_LONGEST_PATH = 64
_ENDINGS = ("/gamma", "/beta", "/moving_variance")
_OPERATION = re.compile(r"(?:.*/)?_operations/\d+/")
_EXTRA = ("moving_stddev", "renorm_mean", "renorm_stddev")


def from_objects(contents: Contents) -> list[Sighting]:
    """The layers of the object graph, in the order of a walk from its root."""
    nodes = contents.objects
    found = []
    for index, passed in _walk(nodes):
        if nodes.has_child(index, "moving_variance"):
            node = nodes[index]
            if (roles := _roles(nodes, node, contents)) is not None:
                found.append((_path(index, passed), roles, _extra(nodes, node, contents)))
    scopes = [_scope(roles.values()) for _, roles, _ in found]
    uses = Counter(scopes)
    return [
        Sighting(
            "object-graph",
            _name(scope, path, uses[scope]),
            {role: node.key for role, node in roles.items() if node.key is not None},
            longer_name=path,
            extra=extra,
        )
        for scope, (path, roles, extra) in zip(scopes, found, strict=True)
    ]


def _name(scope: str, path: str, uses: int) -> str:
    """The scope of a layer's variables where it is the layer's own, else where it is held.

    Keras 3 keeps the layers of a network in `_operations`. What such a layer holds has
    variables of that layer's scope, where it was built when it was called.
    """
    match = _OPERATION.match(path) if scope else None
    own_would_be_longer = "/" not in scope and path.count("_operations/") == 1
    if match and (uses > 1 or (own_would_be_longer and "_functional/" not in path)):
        return f"{scope}/{path[match.end() :]}"
    return scope if scope and uses == 1 else path


def _walk(nodes: Objects) -> Iterator[tuple[int, dict[int, tuple[int, str]]]]:
    """Every node that may have children once, depth first in stored order.

    With each come the nodes passed so far, each with its parent and the name it has there.
    """
    passed: dict[int, tuple[int, str]] = {}
    stack = [(0, -1, "")] if nodes else []
    while stack:
        index, parent, name = stack.pop()
        if index in passed:
            continue
        passed[index] = (parent, name)
        yield index, passed
        stack += [
            (child, index, child_name)
            for child_name, child in reversed(nodes.branches(index))
            if child not in passed
        ]


def _path(index: int, passed: Mapping[int, tuple[int, str]]) -> str:
    """The path of a node from the root, or its end where the path is very long."""
    names: list[str] = []
    while index != 0 and len(names) < _LONGEST_PATH:
        index, name = passed[index]
        names.append(name)
    return "/".join(reversed(names))


def _roles(nodes: Objects, node: Node, contents: Contents) -> Mapping[str, Node] | None:
    mean = _variable(nodes, node, "moving_mean", contents)
    variance = _variable(nodes, node, "moving_variance", contents)
    if mean is None or variance is None:
        return None
    roles = {}
    for role, labels in _ROLES.items():
        for label in labels:
            if role not in roles and (found := _variable(nodes, node, label, contents)):
                roles[role] = found
    return roles | {"moving_mean": mean, "moving_variance": variance}


def _extra(nodes: Objects, node: Node, contents: Contents) -> Mapping[str, str]:
    found = {label: _variable(nodes, node, label, contents) for label in _EXTRA}
    return {label: node.key for label, node in found.items() if node is not None and node.key}


def _variable(nodes: Objects, node: Node, label: str, contents: Contents) -> Node | None:
    """The variable that is the node's child of that name, or that child's average."""
    child = node.children.get(label)
    if child is None:
        return None
    found = nodes[child]
    if found.key is None and (average := found.children.get("average")) is not None:
        found = nodes[average]
    return found if found.key is not None and found.key in contents.variables else None


def _scope(variables: Iterable[Node]) -> str:
    """The scope that the full names of a layer's variables share; empty where they do not."""
    scopes = set()
    for node in variables:
        parts = node.full_name.split("/")
        if parts[-1] == "average":
            parts.pop()
        scopes.add("/".join(parts[:-1]))
    return scopes.pop() if len(scopes) == 1 else ""


def lost_to_their_layers(contents: Contents, taken: set[str]) -> list[str]:
    """What has to be said of variables that share a found layer's scope but belong to none.

    Keras 3 names the layers of a model that is built late alike, and leaves those that a list
    or dict holds out of `tf.train.Checkpoint`; the optimizer still saves their gamma and beta.
    """
    nodes = list(contents.objects.ending_with(_ENDINGS))
    scopes = {node.full_name.rpartition("/")[0] for node in nodes if node.key in taken}
    unnamed = [
        node
        for node in nodes
        if node.key is not None
        and node.full_name.endswith(_ENDINGS)
        and node.full_name.rpartition("/")[0] in scopes
        and node.key in contents.variables
        and node.key not in taken
        and contents.names.get(node.key, "") not in ("", node.full_name)
    ]
    notes = []
    if any(node.full_name.endswith(("/gamma", "/beta")) for node in unnamed):
        notes.append(
            "gamma and beta of further layers are in the file, but not their moving statistics: "
            "Keras 3 leaves layers in lists and dicts out of tf.train.Checkpoint; "
            "save them with model.save or model.save_weights"
        )
    if any(node.full_name.endswith("/moving_variance") for node in unnamed):
        notes.append(
            "further moving statistics are in the file, but nothing tells which belong together"
        )
    return notes
