"""Pair new values with the variables of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bnstat.errors import BnstatError, NotFoundError
from bnstat.exchange.values import Document, Given
from bnstat.formats.contents import Contents
from bnstat.formats.tensorflow.object_graph import saved_again
from bnstat.model import (
    ROLES,
    Array,
    BatchNorm,
    Model,
    Source,
    Variable,
    as_float64,
    different,
    is_same,
    matches,
    near_names,
)

if TYPE_CHECKING:
    from bnstat.compare.alignment import Match


@dataclass(frozen=True, slots=True)
class Change:
    """The new values for one role of a layer.

    Attributes:
        channels: the number of elements of the variable.
        moved: the number of elements whose bits changed.
        largest: the largest |new - old|; infinite for a change from or to NaN or infinity.
        given_as: the layer's name in the source of the new values.
    """

    layer: str
    role: str
    key: str
    channels: int
    moved: int
    largest: float
    given_as: str
    match: Match = "name"


@dataclass(frozen=True, slots=True)
class Applied:
    """The result of `apply`.

    Attributes:
        source: the model that was copied.
        output: the path of the copy, for `load`.
        values: the path of the values; None if they were in memory.
        changes: the roles that were written, in network order, including unchanged values.
        untouched: the names of the layers that received no values.
    """

    source: Source
    output: str
    values: str | None
    changes: Sequence[Change]
    untouched: Sequence[str]

    @property
    def moved(self) -> int:
        """The number of values that changed."""
        return sum(change.moved for change in self.changes)


_Pair = tuple[BatchNorm, str, str, "Match", Given]
"""A layer of the model, a role, the layer's name in the values, the criterion, new values."""


def fit(
    model: Model, values: Document | Model, roles: Sequence[str] = ROLES, globs: Sequence[str] = ()
) -> tuple[dict[str, Array], list[Change]]:
    """Pair values with the variables of a model, and convert them to the stored shape and dtype.

    `roles` and `globs` (of layer names) limit what is written. Return the new arrays by key of
    the variable, and the changes in the order of the model.
    """
    for role in roles:
        _check_role(role, "roles")
    if isinstance(values, Model):
        where, pairs = values.source.path, _pairs_of_models(model, values, globs)
    else:
        where, pairs = values.where, _pairs_of_document(model, values, globs)
    skipped = {*ROLES} - {*roles}
    # Undecided variables may have any role, so they are written only with all roles.
    chosen = [pair for pair in pairs if pair[1] in roles or not (skipped or pair[1] in ROLES)]
    if not chosen:
        raise NotFoundError(where, "has no values for the chosen layers and roles")
    places = {layer.name: number for number, layer in enumerate(_all_layers(model))}
    # Undecided variables follow the roles, in the order of their keys.
    chosen.sort(key=lambda item: (places[item[0].name], [*ROLES, item[1]].index(item[1]), item[1]))
    arrays: dict[str, Array] = {}
    owners: dict[str, str] = {}
    changes = []
    for layer, role, name, match, given in chosen:
        variable = _variable(layer, role)
        stored = variable.read() if role not in ROLES else layer.array(role)
        assert stored is not None
        where = f"{layer.name}, {role}"
        array = given.fitted(variable, stored, where)
        key = variable.key
        owner = owners.setdefault(key, where)
        if not is_same(arrays.setdefault(key, array), array):
            what = f"shares its variable with {owner}, but the given values differ"
            raise BnstatError(where, what, "give both the same values")
        is_moved = different(stored, array)
        with np.errstate(all="ignore"):
            distances = np.abs(as_float64(array) - as_float64(stored)).ravel()[is_moved]
        distances[np.isnan(distances)] = np.inf
        largest = float(distances.max(initial=0.0))
        moved = int(is_moved.sum())
        changes.append(Change(layer.name, role, key, array.size, moved, largest, name, match))
    return arrays, changes


def _all_layers(model: Model) -> tuple[BatchNorm, ...]:
    return (*model.layers, *model.incomplete)


def _variable(layer: BatchNorm, role: str) -> Variable:
    variables = {**layer.variables, **{variable.key: variable for variable in layer.undecided}}
    if role not in variables:
        what = f"has no {role} in the model, but the values include one"
        hint = f"the layer has {', '.join(variables) or 'no variables'}"
        raise NotFoundError(layer.name, what, hint)
    return variables[role]


def _pairs_of_document(model: Model, values: Document, globs: Sequence[str]) -> Iterator[_Pair]:
    by_name: dict[str, list[BatchNorm]] = {}
    for layer in _all_layers(model):
        for name in {layer.name, values.spelt(layer.name)}:
            by_name.setdefault(name, []).append(layer)
    for name, roles in values.layers.items():
        layers = by_name.get(name, [])
        if not layers and matches(name, globs):
            raise _no_layer(model, values.where, name)
        undecided = {variable.key for layer in layers for variable in layer.undecided}
        for role in roles.keys() - undecided:
            _check_role(role, f"{values.where}, {name}")
        if len(layers) > 1:
            hint = "use JSON, which stores the exact names"
            raise BnstatError(f"{values.where}, {name}", "is the name of several layers", hint)
        if layers and matches(layers[0].name, globs):
            for role, given in roles.items():
                yield layers[0], role, name, "name", given


def _pairs_of_models(model: Model, values: Model, globs: Sequence[str]) -> Iterator[_Pair]:
    from bnstat.compare.alignment import align

    alignment = align(values, model)
    for layer in alignment.removed:
        if matches(layer.name, globs):
            raise _no_layer(model, values.source.path, layer.name)
    for pair in alignment.pairs:
        for role in pair.old.variables if matches(pair.new.name, globs) else ():
            if (array := pair.old.array(role)) is not None:
                yield pair.new, role, pair.old.name, pair.match, Given(array)


def _check_role(role: str, where: str) -> None:
    if role not in ROLES:
        raise BnstatError(where, f"{role!r} is not a role", f"the roles are {', '.join(ROLES)}")


def _no_layer(model: Model, where: str, name: str) -> NotFoundError:
    what = f"{model.source.path} has no batch-norm layer of this name"
    hint = near_names(name, [layer.name for layer in _all_layers(model)])
    return NotFoundError(f"{where}, {name}", what, hint)


def with_twins(contents: Contents, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return `arrays`, plus new values for duplicates of variables that the file stores twice.

    A duplicate gets the new values of the variable with the same name and bits. If matching
    variables get different values, the duplicate is not changed. No graph reads duplicates.
    """
    result = dict(arrays)
    full_names = {node.key: node.full_name for node in contents.objects if node.key}
    for key, candidates in saved_again(full_names).items():
        if key not in contents.variables or not any(first in arrays for first in candidates):
            continue
        twin = contents.variables[key].read()
        firsts = [first for first in candidates if first in contents.variables]
        same = [first for first in firsts if is_same(contents.variables[first].read(), twin)]
        new = [arrays[first] for first in same if first in arrays]
        if new and len(new) == len(same) and all(is_same(new[0], array) for array in new):
            result[key] = new[0]
    return result
