"""The names of the variables of a TensorFlow 2 checkpoint, as its object graph tells them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property

from bnstat.formats.contents import Node, Objects
from bnstat.formats.tensorflow.object_graph import VALUE

_AGAIN = "_all_variables/"


class BestNames(Mapping[str, str]):
    """`best_names` of a graph; those that are looked for by their endings are found at once."""

    def __init__(self, graph: Objects) -> None:
        self._graph = graph
        self._seen: dict[str, str | None] = {}

    def ending_with(self, endings: Collection[str]) -> Mapping[str, str]:
        """Key -> best name, of all variables whose names end so, and of some others."""
        nodes = [node for node in self._graph.ending_with(endings) if node.key]
        found = best_names(nodes)
        ends = tuple(endings)
        if any(node.full_name and not node.full_name.endswith(ends) for node in nodes):
            # Found by its key: variables that were not looked for may have the full name too.
            found = {key: self._all[key] for key in found if key in self._all}
        self._seen |= {node.key: found.get(node.key) for node in nodes if node.key}
        return found

    @cached_property
    def _all(self) -> Mapping[str, str]:
        return best_names(self._graph)

    def __getitem__(self, key: str) -> str:
        if key in self._seen:
            name = self._seen[key]
            if name is None:
                raise KeyError(key)
            return name
        return self._all[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)


def best_names(nodes: Iterable[Node]) -> dict[str, str]:
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
