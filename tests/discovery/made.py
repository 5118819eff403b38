"""Files made by hand: variables of chosen names, and the structure that a test adds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from bnstat.discovery import discover
from bnstat.formats.contents import Contents, Node, Objects
from bnstat.model import Model, Source, Variable

Shape = tuple[int, ...]


def variable(name: str, shape: Shape = (4,), dtype: str = "float32") -> Variable:
    """A variable of zeros, whose key is its name."""
    return Variable(name, name, dtype, shape, partial(np.zeros, shape, np.float32))


def made(
    names: Iterable[str], /, shapes: Mapping[str, Shape] | None = None, **options: Any
) -> Contents:
    """A file with variables of these names; of the shape (4,) unless given."""
    variables = {name: variable(name, (shapes or {}).get(name, (4,))) for name in names}
    return Contents(Source("m", "tf1-checkpoint"), variables, **options)


def objects_of(tree: Any) -> Objects:
    """An object graph of nested dicts, which may be shared or cyclic.

    A leaf is the key of a variable, or its key and full name.
    """
    nodes: list[Node] = []
    indices: dict[int, int] = {}

    def add(part: Any) -> int:
        if id(part) not in indices:
            index = indices[id(part)] = len(nodes)
            nodes.append(Node({}, None, ""))
            if isinstance(part, dict):
                nodes[index] = Node({name: add(child) for name, child in part.items()}, None, "")
            else:
                nodes[index] = Node({}, *((part, "") if isinstance(part, str) else part))
        return indices[id(part)]

    add(tree)
    return Objects(nodes)


def keys_in(model: Model) -> dict[str, dict[str, str]]:
    """Layer -> role -> the variable's key."""
    return {
        layer.name: {role: variable.key for role, variable in layer.variables.items()}
        for layer in model
    }


def found(names: Iterable[str], shapes: Any = None, **options: Any) -> dict[str, dict[str, str]]:
    """The layers of a file with variables of these names, as `keys_in`."""
    return keys_in(discover(made(names, shapes), **options))
