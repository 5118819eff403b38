"""The author's names of layers whose variables do not tell them, by the scopes of a graph.

Keras 3 calls the variables of a layer that another layer builds after the outermost one alone:
all those in a list `self.norms` of the layer `blk` are `blk/gamma`. The graph does have the whole
path, with what tracing added: the model's name before it, and a number behind each part, since
Keras opens the scope of a layer twice, to build it and to call it, and TensorFlow opens none
twice by the same name: `functional_1/blk_1/batch_normalization_1_1`. The name of the variables
proves where the author's path begins, and that such numbers were added; which of them they
are is told by doing again what TensorFlow did. Keras 2 leaves nested models out of the names of
variables; the graph tells apart what is called alike in two of them.

Sources: keras/src/layers/layer.py (`Layer.__call__`), `Graph.unique_name` in
tensorflow/python/framework/ops.py.
"""

from __future__ import annotations

import re
from collections import ChainMap, Counter
from collections.abc import Iterable, MutableMapping, Sequence

from bnstat.discovery.merge import Merged
from bnstat.formats.contents import Contents

_NUMBERED = re.compile(r"(.+)_\d+")

_DEEPEST = 64
"""Parts of a scope; networks are some ten deep."""

_MOST_SIBLINGS = 10_000
"""Names that are taken beside each other, some three for each layer."""

Names = dict[tuple[str, ...], str | None]
"""Parts of a scope -> what its author called the last of them; None where that is not told."""


def name_by_scopes(layers: Sequence[Merged], contents: Contents) -> None:
    """Tell those layers the name that a graph and their variables' full names prove together."""
    scopes = [_scope(layer) for layer in layers]
    if not any(scopes):
        return
    outer = _shared_scopes(layers, contents)
    uses = Counter(outer)
    names = _authors_names(filter(None, scopes))
    starts = [_start(*pair) for pair in zip(scopes, outer, strict=True)]
    first = min((start for start in starts if start is not None), default=0)
    for layer, scope, known, start in zip(layers, scopes, outer, starts, strict=True):
        if start is None:
            continue
        end = start + len(known)
        numbered = scope[start:end] != known
        whole = end == len(scope)
        if uses[known] == 1 and (whole or not numbered):
            continue
        told = [
            (names[scope[: position + 1]] if numbered else None) or scope[position]
            for position in range(len(scope))
        ]
        before = told[first:start] if whole else []
        layer.names["scopes"] = ["/".join([*before, *known, *told[end:]])]


def _scope(layer: Merged) -> tuple[str, ...]:
    """The parts of the layer's scope in a graph; none where no graph has it."""
    names = layer.names.get("graphs")
    parts = tuple(names[0].split("/", _DEEPEST)) if names else ()
    return parts if len(parts) <= _DEEPEST else ()


def _shared_scopes(layers: Sequence[Merged], contents: Contents) -> list[tuple[str, ...]]:
    """For each layer the parts of the scope that all of its variables' full names have."""
    wanted = {key for layer in layers for key in layer.roles.values()}
    full_names = {node.key: node.full_name for node in contents.objects if node.key in wanted}
    result = []
    for layer in layers:
        found = {full_names.get(key, "").rpartition("/")[0] for key in layer.roles.values()}
        only = found.pop() if len(found) == 1 else ""
        result.append(tuple(only.split("/")) if only else ())
    return result


def _start(scope: tuple[str, ...], known: tuple[str, ...]) -> int | None:
    """Where in a graph's scope the parts of a known one begin, be they numbered."""
    for start in range(len(scope) - len(known) + 1 if known else 0):
        pairs = zip(scope[start:], known, strict=False)
        if all(part == name or _without_number(part) == name for part, name in pairs):
            return start
    return None


def _without_number(part: str) -> str | None:
    match = _NUMBERED.fullmatch(part)
    return match[1] if match else None


def _authors_names(scopes: Iterable[tuple[str, ...]]) -> Names:
    """What authors called the parts of scopes, if each was opened twice, in that order."""
    taken: dict[tuple[str, ...], dict[str, int]] = {}
    names: Names = {}
    for scope in scopes:
        for end in range(1, len(scope) + 1):
            if scope[:end] not in names:
                siblings = taken.setdefault(scope[: end - 1], {})
                names[scope[:end]] = _authors_name(scope[end - 1], siblings)
    return names


def _authors_name(part: str, siblings: dict[str, int]) -> str | None:
    """The name that gives `part` when it is opened for the second time beside its siblings."""
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
    """The name that TensorFlow gives a scope of that name beside those that are taken."""
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
