"""Batch norm in the object graph: nodes with the children `moving_mean` and `moving_variance`.

The children are variables in Keras, and nodes with the variable `average` in Sonnet 2.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator

from bnstat.discovery.merge import Sighting, common_scope
from bnstat.discovery.schemes import RENORM, find_roles
from bnstat.formats.contents import Contents, Node, Objects

_LONGEST_PATH = 64
_ENDINGS = ("/gamma", "/beta", "/moving_variance")
_OPERATION = re.compile(r"(?:.*/)?_operations/\d+/")


def from_objects(contents: Contents) -> list[Sighting]:
    """Return the batch-norm layers of the object graph, depth first from the root."""
    nodes = contents.objects
    sightings = []
    scopes = []
    for index, path in _walk(nodes):
        if not nodes.has_child(index, "moving_variance"):
            continue
        stored = _variables(nodes, nodes[index], contents)
        roles = {role: stored[label] for role, label in find_roles(stored).items()}
        if not {"moving_mean", "moving_variance"} <= roles.keys():
            continue
        names = (node.full_name.removesuffix("/average") for node in roles.values())
        scopes.append(common_scope(names))
        keys = {role: node.key for role, node in roles.items() if node.key is not None}
        sighting = Sighting("object-graph", roles=keys, longer_name="/".join(path))
        sighting.extra = {label: stored[label].key or "" for label in RENORM if label in stored}
        sightings.append(sighting)
    uses = Counter(scopes)
    for sighting, scope in zip(sightings, scopes, strict=True):
        sighting.name = _name(scope, sighting.longer_name, uses[scope])
    return sightings


def _name(scope: str, path: str, uses: int) -> str:
    """Return the scope of a layer's variables if no other layer has this scope, else a path.

    Keras 3 lists the layers of a network as `_operations`. An inner layer that is built when its
    outer layer is called has the scope of the outer layer. Its name is this scope, followed by the
    inner layer's path below `_operations`.
    """
    match = _OPERATION.match(path) if scope else None
    own_would_be_longer = "/" not in scope and path.count("_operations/") == 1
    if match and (uses > 1 or (own_would_be_longer and "_functional/" not in path)):
        return f"{scope}/{path[match.end() :]}"
    return scope if scope and uses == 1 else path


def _walk(nodes: Objects) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield (index, names on the path from the root) for each node with children, depth first."""
    reached: set[int] = set()
    stack: list[tuple[int, tuple[str, ...], list[str]]] = [(0, (), [])] if nodes else []
    while stack:
        index, above, name = stack.pop()
        if index in reached:
            continue
        reached.add(index)
        path = (*above, *name)[-_LONGEST_PATH:]
        yield index, path
        stack += [
            (child, path, [child_name])
            for child_name, child in reversed(nodes.branches(index))
            if child not in reached
        ]


def _variables(nodes: Objects, node: Node, contents: Contents) -> dict[str, Node]:
    """Return label (`gamma`) -> child node, for the children that are stored variables."""
    variables = {}
    for label, child in node.children.items():
        variable = nodes[child]
        if variable.key is None and (average := variable.children.get("average")) is not None:
            label, variable = f"{label}/average", nodes[average]
        if variable.key is not None and variable.key in contents.variables:
            variables[label] = variable
    return variables


def note_lost_statistics(contents: Contents, taken: Collection[str]) -> list[str]:
    """Return notes on variables that share the scope of a layer but belong to no layer.

    `taken` contains the keys of the variables that belong to layers. Keras 3 leaves layers in lists
    and dicts out of `tf.train.Checkpoint`, but the optimizer still saves their gamma and beta.
    """
    nodes = list(contents.objects.ending_with(_ENDINGS))
    scopes = {node.full_name.rpartition("/")[0] for node in nodes if node.key in taken}
    lost = [
        node.full_name
        for node in nodes
        if node.key is not None
        and node.full_name.endswith(_ENDINGS)
        and node.full_name.rpartition("/")[0] in scopes
        and node.key in contents.variables
        and node.key not in taken
        and contents.names.get(node.key, "") not in ("", node.full_name)
    ]
    notes = []
    if any(name.endswith(("/gamma", "/beta")) for name in lost):
        notes.append(
            "the file contains gamma and beta of further layers, but not their moving statistics: "
            "Keras 3 leaves layers in lists and dicts out of tf.train.Checkpoint; "
            "save the model with model.save or model.save_weights"
        )
    if any(name.endswith("/moving_variance") for name in lost):
        notes.append(
            "the file contains further moving statistics, but does not record which of them "
            "belong together"
        )
    return notes
