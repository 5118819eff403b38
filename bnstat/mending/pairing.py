"""Which values go to which variable of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bnstat.errors import BnstatError, NotFoundError
from bnstat.exchange.values import Document, Given
from bnstat.formats.contents import Contents
from bnstat.formats.tensorflow.object_graph import saved_again
from bnstat.model import ROLES, Array, BatchNorm, Model, Source, Variable, as_float64
from bnstat.model.models import matches, near_names

if TYPE_CHECKING:
    from bnstat.compare.alignment import Match


@dataclass(frozen=True, slots=True)
class Assignment:
    """Values for one role of one layer.

    Attributes:
        layer: the layer of the model that is mended.
        role: one that the layer has; the variable's key where its role is undecided.
        variable: the variable that gets the values.
        given: the values as they come.
        given_as: the layer's name where they come from.
        match: how that layer was found to be this one.
    """

    layer: BatchNorm
    role: str
    variable: Variable
    given: Given
    given_as: str
    match: Match


_Pair = tuple[BatchNorm, str, "Match", Mapping[str, Given]]
_Wanted = Callable[[str], bool]


def assignments(
    model: Model, values: Document | Model, roles: Sequence[str], globs: Sequence[str]
) -> list[Assignment]:
    """What is to be written, in the order of the model.

    Args:
        model: the model that is mended.
        values: what it gets.
        roles: the roles that are wanted.
        globs: what a layer's name must match, one of them; anything, where there is none.

    Raises:
        NotFoundError: the model lacks a layer or role that has values, or nothing is left.
    """
    for role in roles:
        _check_role(role, "roles")

    def wanted(name: str) -> bool:
        return matches(name, globs)

    if isinstance(values, Model):
        where, pairs = values.source.path, _of_model(model, values, wanted)
    else:
        where, pairs = values.where, _of_document(model, values, wanted)
    found = [
        _assignment(layer, role, given, name, match)
        for layer, name, match, all_roles in pairs
        for role, given in all_roles.items()
        if role in roles or (role not in ROLES and {*ROLES} <= {*roles})
    ]
    if not found:
        raise NotFoundError(where, "holds no values for what is asked for")
    place = {layer.name: number for number, layer in enumerate(_layers(model))}
    return sorted(found, key=lambda one: (place[one.layer.name], *_order(one.role)))


def _layers(model: Model) -> tuple[BatchNorm, ...]:
    """All layers, also those without moving statistics."""
    return (*model.layers, *model.incomplete)


def _order(role: str) -> tuple[int, str]:
    """Return a key that sorts the roles first, then the keys of undecided variables."""
    return (ROLES.index(role), "") if role in ROLES else (len(ROLES), role)


def _assignment(layer: BatchNorm, role: str, given: Given, name: str, match: Match) -> Assignment:
    held = {**layer.variables, **{each.key: each for each in layer.undecided}}
    if role not in held:
        has = ", ".join(held) or "none"
        raise NotFoundError(
            layer.name, f"has no {role} in the model, but is given values for it", f"it has {has}"
        )
    return Assignment(layer, role, held[role], given, name, match)


def _of_document(model: Model, values: Document, wanted: _Wanted) -> Iterator[_Pair]:
    """The layers of a document, each by its name."""
    by_name: dict[str, list[BatchNorm]] = {}
    for layer in _layers(model):
        for name in {layer.name, values.spelt(layer.name)}:
            by_name.setdefault(name, []).append(layer)
    for name, roles in values.layers.items():
        layers = by_name.get(name, [])
        if not layers and wanted(name):
            raise _no_layer(model, values.where, name)
        undecided = {each.key for layer in layers for each in layer.undecided}
        for role in roles.keys() - undecided:
            _check_role(role, f"{values.where}, {name}")
        if len(layers) > 1:
            raise BnstatError(
                f"{values.where}, {name}", "is the name of several layers", "use JSON"
            )
        if layers and wanted(layers[0].name):
            yield layers[0], name, "name", roles


def _of_model(model: Model, values: Model, wanted: _Wanted) -> Iterator[_Pair]:
    """The layers of another model, paired as `diff` pairs them."""
    from bnstat.compare.alignment import align

    alignment = align(values, model)
    for layer in alignment.removed:
        if wanted(layer.name):
            raise _no_layer(model, values.source.path, layer.name)
    for pair in alignment.pairs:
        if wanted(pair.new.name):
            roles = {
                role: Given(array)
                for role in pair.old.variables
                if (array := pair.old.array(role)) is not None
            }
            yield pair.new, pair.old.name, pair.match, roles


def _check_role(role: str, where: str) -> None:
    if role not in ROLES:
        raise BnstatError(
            where,
            f"{role!r} is not a role",
            f"the roles are {', '.join(ROLES)}",
        )


def _no_layer(model: Model, where: str, name: str) -> NotFoundError:
    return NotFoundError(
        f"{where}, {name}",
        f"{model.source.path} has no such batch-norm layer",
        near_names(name, [layer.name for layer in _layers(model)]),
    )


@dataclass(frozen=True, slots=True)
class Change:
    """A role of a layer that was given new values.

    Attributes:
        layer: the layer's name in the model.
        role: `gamma`, `beta`, `moving_mean` or `moving_variance`.
        key: the variable's key in the file.
        channels: how many elements it has.
        moved: how many of them have other bits than before.
        largest: the largest |new - old|; infinite to or from NaN or infinity.
        given_as: the layer's name where the values come from.
        match: how that layer was found to be this one.
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
    """A finished copy.

    Attributes:
        source: the model that was copied.
        output: where the copy is, to be given to `load`.
        values: where the values came from; None where they came from memory.
        changes: what was written, in the order of the network; also where nothing moved.
        untouched: layers of the model that got no values.
    """

    source: Source
    output: str
    values: str | None
    changes: Sequence[Change]
    untouched: Sequence[str]

    @property
    def moved(self) -> int:
        """How many values are others than before."""
        return sum(change.moved for change in self.changes)


def fit(assigned: Sequence[Assignment]) -> tuple[dict[str, Array], list[Change]]:
    """By key the new array of each variable, of its shape and dtype, and what changes by it.

    Raises:
        DamagedError: values have another shape than the variable.
        UnsupportedError: a value is not exactly one of the stored type.
        BnstatError: layers that share a variable are given different values for it.
    """
    arrays: dict[str, Array] = {}
    owners: dict[str, str] = {}
    changes = []
    for one in assigned:
        variable = one.variable
        stored = variable.read() if one.role not in ROLES else one.layer.array(one.role)
        assert stored is not None
        where = f"{one.layer.name}, {one.role}"
        array = one.given.fitted(variable, stored, where)
        known = arrays.setdefault(variable.key, array)
        owner = owners.setdefault(variable.key, where)
        if different(known, array).any():
            raise BnstatError(
                where,
                f"shares its variable with {owner}, but is given other values",
                "give both the same",
            )
        changes.append(
            Change(
                one.layer.name,
                one.role,
                variable.key,
                array.size,
                int(different(stored, array).sum()),
                _largest(stored, array),
                one.given_as,
                one.match,
            )
        )
    return arrays, changes


def different(old: Array, new: Array) -> Array:
    """Where two arrays of one shape and dtype have different bits."""

    def raw(array: Array) -> Array:
        flat = np.ascontiguousarray(array).reshape(-1)
        return flat.view(np.uint8).reshape(array.size, array.dtype.itemsize)

    return np.asarray((raw(old) != raw(new)).any(axis=1))


def _largest(old: Array, new: Array) -> float:
    """The largest distance of two elements; infinite to or from NaN or infinity."""
    with np.errstate(all="ignore"):
        distances = abs(as_float64(new) - as_float64(old))
    distances = np.where(different(old, new).reshape(old.shape), distances, 0.0)
    return float(np.nan_to_num(distances, nan=np.inf).max(initial=0.0))


def with_twins(contents: Contents, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays, with those of further keys of the same variables.

    The second key of a variable is known by its name and its stored bits. Where several variables
    share both and do not all become the same, the second keys are left: no graph reads them.

    Args:
        contents: the file as it is before the arrays are written.
        arrays: key -> new array.
    """
    result = dict(arrays)
    for key, first in saved_again(contents.objects).items():
        if key not in contents.variables or not any(one in arrays for one in first):
            continue
        twin = contents.variables[key]
        same = [one for one in first if _equal(contents.variables.get(one), twin)]
        new = [arrays[one] for one in same if one in arrays]
        if new and len(new) == len(same) and not any(different(new[0], a).any() for a in new):
            result[key] = new[0]
    return result


def _equal(one: Variable | None, other: Variable) -> bool:
    if one is None or (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return not different(one.read(), other.read()).any()
