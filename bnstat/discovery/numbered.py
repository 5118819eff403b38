"""Names that tch-rs numbers: `running_mean__16` is the 17th variable of its store.

If a store already contains a variable of the same name, tch-rs appends the number of variables so
far. A layer creates its variables in a row, so consecutive numbers identify them: `weight`, `bias`,
`running_mean`, `running_var`. Older versions create the statistics first. A variable without a
number has one of the numbers that no other variable has.

Source: tch-rs, src/nn/var_store.rs (`Path::add`), src/nn/batch_norm.rs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

_NUMBERED: Final = re.compile(r"(?P<scope>(?:.*\.)?)(?P<leaf>\w+?)__(?P<number>\d{1,9})", re.DOTALL)
_MEAN, _VARIANCE = "running_mean", "running_var"

_ORDERS: Final = (
    {"weight": 0, "bias": 1, _MEAN: 2, _VARIANCE: 3},
    {_MEAN: 0, _VARIANCE: 1, "weight": 2, "bias": 3},
)
"""Variable -> its position in a layer, in current and in older versions."""

Shape = Callable[[str], tuple[int, ...]]


def with_scopes(keys: Mapping[str, str], shape_of: Shape) -> dict[str, str]:
    """Return the names with a scope of its own for each numbered layer.

    The layer of `features.running_mean__16` gets the scope `features__16`.

    Args:
        keys: name -> key of all variables of a file.
        shape_of: gives the shape of the variable with a key.
    """
    store = _Store(keys, shape_of)
    if not store.statistics:
        return dict(keys)
    layers = max((store.layers(order) for order in _ORDERS), key=store.count)
    renamed = {
        name: f"{scope}.{leaf}" for scope, names in layers.items() for leaf, name in names.items()
    }
    return {renamed.get(name, name): key for name, key in keys.items()}


class _Store:
    def __init__(self, keys: Mapping[str, str], shape_of: Shape) -> None:
        self._keys = keys
        self._shape_of = shape_of
        self._numbers: set[int] = set()
        leaves: dict[str, set[tuple[str, int]]] = {}
        for name in keys:
            match = _NUMBERED.fullmatch(name) if "__" in name else None
            if match is not None and match["leaf"] in _ORDERS[0]:
                self._numbers.add(int(match["number"]))
                leaves.setdefault(match["scope"], set()).add((match["leaf"], int(match["number"])))
        self.statistics = {
            scope: numbered
            for scope, numbered in leaves.items()
            if any(leaf == _VARIANCE for leaf, _ in numbered) or f"{scope}{_VARIANCE}" in keys
        }

    def layers(self, order: Mapping[str, int]) -> dict[str, dict[str, str]]:
        """Return scope -> leaf -> name of the layers whose variables have this order."""
        layers: dict[str, dict[str, str]] = {}
        taken: set[str] = set()
        for scope, numbered in self.statistics.items():
            starts = sorted({number - order[leaf] for leaf, number in numbered})
            candidates = [(start, self._layer(scope, start, order)) for start in starts]
            # A layer with more numbers is more certain than one that takes what is left.
            candidates.sort(key=lambda pair: -sum("__" in name for name in pair[1].values()))
            for start, names in candidates:
                if names and taken.isdisjoint(names.values()):
                    taken.update(names.values())
                    layers[f"{scope.removesuffix('.')}__{start + order[_MEAN]}"] = names
        return layers

    def count(self, layers: Mapping[str, Mapping[str, str]]) -> int:
        """Return how many variables belong to layers, including those without numbers."""
        taken = {name for names in layers.values() for name in names.values()}
        plain = ({f"{scope}{leaf}" for leaf in _ORDERS[0]} for scope in self.statistics)
        return len(taken) + sum(
            len(names) for names in plain if names <= self._keys.keys() and names.isdisjoint(taken)
        )

    def _layer(self, scope: str, start: int, order: Mapping[str, int]) -> dict[str, str]:
        """Return the variables with consecutive numbers; none if a statistic is missing."""
        names = {
            leaf: name
            for leaf, position in order.items()
            if (name := self._name_at(scope, leaf, start + position)) is not None
        }
        if not {_MEAN, _VARIANCE} <= names.keys():
            return {}
        shape = self._shape_of(self._keys[names[_MEAN]])
        return {
            leaf: name for leaf, name in names.items() if self._shape_of(self._keys[name]) == shape
        }

    def _name_at(self, scope: str, leaf: str, number: int) -> str | None:
        name = f"{scope}{leaf}__{number}"
        if name in self._keys:
            return name
        is_free = number not in self._numbers and 0 <= number < len(self._keys)
        return f"{scope}{leaf}" if is_free and f"{scope}{leaf}" in self._keys else None
