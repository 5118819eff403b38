"""The author's names of layers, where only the scopes of a graph contain them.

Keras 3 shortens the names of variables in a layer that another layer builds: all those in a list
`self.norms` of the layer `blk` are `blk/gamma`. The graph does contain the whole path, with what
tracing added to it: the model's name before it, and a number after each part. Keras opens the scope
of a layer twice, to build it and to call it, and TensorFlow makes names of scopes unique:
`functional_1/blk_1/batch_normalization_1_1`. The names of the variables show where the author's
path begins, and that numbers were added. Repeating what TensorFlow did shows which numbers these
are. Keras 2 leaves nested models out of the names of variables; the graph distinguishes the layers
of one name in two of them.

Sources: keras/src/layers/layer.py (`Layer.__call__`), `Graph.unique_name` in
tensorflow/python/framework/ops.py.
"""

from __future__ import annotations

import re
from collections import ChainMap, Counter
from collections.abc import Iterable, Mapping, MutableMapping, Sequence

from bnstat.discovery.merge import Sighting
from bnstat.formats.contents import Contents

_NUMBERED = re.compile(r"(.+)_\d+")

_DEEPEST = 64
"""Parts of a scope; networks have some ten."""

_MOST_SIBLINGS = 10_000
"""Names in one scope, some three for each layer."""

Scope = tuple[str, ...]
"""The parts of a scope; empty if it is unknown."""


def name_by_scopes(layers: Sequence[Sighting], contents: Contents) -> None:
    """Add the names that a graph and the full names of variables show together."""
    scopes = [_graph_scope(layer) for layer in layers]
    if not any(scopes):
        return
    variable_scopes = _variable_scopes(layers, contents)
    uses = Counter(variable_scopes)
    names = _authors_names(filter(None, scopes))
    starts = [_start(*pair) for pair in zip(scopes, variable_scopes, strict=True)]
    first = min((start for start in starts if start is not None), default=0)
    for layer, scope, own, start in zip(layers, scopes, variable_scopes, starts, strict=True):
        if start is None:
            continue
        end = start + len(own)
        is_numbered = scope[start:end] != own
        is_end = end == len(scope)
        if uses[own] == 1 and (is_end or not is_numbered):
            continue
        parts = [
            (names[scope[: position + 1]] if is_numbered else None) or scope[position]
            for position in range(len(scope))
        ]
        before = parts[first:start] if is_end else []
        layer.names["scopes"] = ["/".join([*before, *own, *parts[end:]])]


def _graph_scope(layer: Sighting) -> Scope:
    names = layer.names.get("graphs")
    parts = tuple(names[0].split("/", _DEEPEST)) if names else ()
    return parts if len(parts) <= _DEEPEST else ()


def _variable_scopes(layers: Sequence[Sighting], contents: Contents) -> list[Scope]:
    """Return for each layer the scope in the full names of all of its variables."""
    keys = {key for layer in layers for key in layer.roles.values()}
    full_names = {node.key: node.full_name for node in contents.objects if node.key in keys}
    result = []
    for layer in layers:
        scopes = {full_names.get(key, "").rpartition("/")[0] for key in layer.roles.values()}
        scope = scopes.pop() if len(scopes) == 1 else ""
        result.append(tuple(scope.split("/")) if scope else ())
    return result


def _start(scope: Scope, own: Scope) -> int | None:
    """Return where the parts of a layer's own scope begin in a graph's, which may number them."""
    for start in range(len(scope) - len(own) + 1 if own else 0):
        pairs = zip(scope[start:], own, strict=False)
        if all(part == name or _without_number(part) == name for part, name in pairs):
            return start
    return None


def _without_number(part: str) -> str | None:
    match = _NUMBERED.fullmatch(part)
    return match[1] if match else None


def _authors_names(scopes: Iterable[Scope]) -> Mapping[Scope, str | None]:
    """Return scope -> the author's name of its last part, if each was opened twice, in this order.

    Unknown names are None.
    """
    taken: dict[Scope, dict[str, int]] = {}
    names: dict[Scope, str | None] = {}
    for scope in scopes:
        for end in range(1, len(scope) + 1):
            if scope[:end] not in names:
                siblings = taken.setdefault(scope[: end - 1], {})
                names[scope[:end]] = _authors_name(scope[end - 1], siblings)
    return names


def _authors_name(part: str, siblings: dict[str, int]) -> str | None:
    """Return the name that becomes `part` when it is opened for the second time."""
    name = _without_number(part)
    if name is None or len(siblings) > _MOST_SIBLINGS:
        return None
    trial = ChainMap({}, siblings)
    _open(name, trial)
    if _open(name, trial) != part:
        return None
    siblings.update(trial.maps[0])
    return name


def _open(name: str, taken: MutableMapping[str, int]) -> str:
    """Return the unique name that TensorFlow gives a scope beside the taken names."""
    key = name.lower()
    number = taken.get(key, 0)
    taken[key] = number + 1
    if number == 0:
        return name
    unique = key
    while unique in taken:
        unique = f"{key}_{number}"
        number += 1
    taken[unique] = 1
    return f"{name}_{number - 1}"
