"""Which values go to which variable of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bnstat.errors import BnstatError, NotFoundError
from bnstat.mending.values.given import Document, Given
from bnstat.model import ROLES, BatchNorm, Model, Variable
from bnstat.model.matching import matches, near_names

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
