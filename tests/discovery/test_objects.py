"""Batch norm in object graphs made up for it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pytest

from bnstat.discovery import discover
from bnstat.discovery.objects import from_objects
from bnstat.formats.contents import Contents, Node, Objects
from bnstat.formats.tensorflow.object_graph import best_names
from bnstat.model import ROLES
from tests.discovery.made import keys_in, made, objects_of


def norm(stem: str, scope: str = "", roles: Sequence[str] = ROLES) -> dict[str, Any]:
    """The variables of a layer: role -> key and full name."""
    return {role: (f"{stem}/{role}", f"{scope}/{role}" if scope else "") for role in roles}


def contents(tree: Any, missing: Collection[str] = ()) -> Contents:
    """A file with this object graph and the variables in it."""
    objects = objects_of(tree)
    stored = [node.key for node in objects if node.key and node.key not in missing]
    return made(stored, names=best_names(objects), objects=objects)


def keys(tree: Any) -> dict[str, dict[str, str]]:
    return keys_in(discover(contents(tree)))


def names(tree: Any) -> list[tuple[str, str]]:
    """Name and path of what the object graph alone shows."""
    return [(one.name, one.longer_name) for one in from_objects(contents(tree))]


def test_layers_are_named_by_their_variables() -> None:
    assert keys({"a": norm("k0", "net/bn"), "b": norm("k1")}) == {
        "net/bn": {role: f"k0/{role}" for role in ROLES},
        "b": {role: f"k1/{role}" for role in ROLES},
    }


def in_operations(*layers: tuple[str, str], model: str = "_operations") -> dict[str, Any]:
    """Layers as Keras 3 keeps a network's: (path within the network, scope of the variables)."""
    tree: dict[str, Any] = {}
    for number, (path, scope) in enumerate(layers):
        *parents, last = f"{model}/{path}".split("/")
        inner = tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = norm(f"k{number}", scope)
    return tree


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        # A layer of the network, and one that a layer of it holds.
        ([("3", "bn")], ["bn"]),
        ([("3/norm", "blk")], ["blk/norm"]),
        ([("3/inner/norm", "blk")], ["blk/inner/norm"]),
        # Two that one layer holds have that layer's scope both.
        ([("3/a", "net/blk"), ("3/b", "net/blk")], ["net/blk/a", "net/blk/b"]),
        # Where the scope is a path of its own, or the network lies in another, it says all.
        ([("3/norm", "net/blk")], ["net/blk"]),
        ([("3/_operations/1/norm", "blk")], ["blk"]),
        ([("3/_functional/norm", "blk")], ["blk"]),
        # Without a scope there is the path.
        ([("3/norm", "")], ["_operations/3/norm"]),
        ([("3", "bn"), ("4", "bn")], ["_operations/3", "_operations/4"]),
    ],
)
def test_layers_of_keras_3(layers: Sequence[tuple[str, str]], expected: list[str]) -> None:
    paths = [f"_operations/{path}" for path, _ in layers]
    assert names(in_operations(*layers)) == [*zip(expected, paths, strict=True)]


@pytest.mark.parametrize(("model", "path"), [("layers", "3/norm"), ("_operations", "x/norm")])
def test_a_layer_elsewhere_has_its_scope(model: str, path: str) -> None:
    assert names(in_operations((path, "blk"), model=model)) == [("blk", f"{model}/{path}")]


def test_layers_with_one_scope_are_named_by_their_paths_in_order() -> None:
    names = [f"bn_{number}" for number in (3, 1, 10, 2)]
    assert list(keys({name: norm(f"k/{name}", "net") for name in names})) == names


def test_a_shared_object_is_one_layer() -> None:
    shared = norm("k")
    assert list(keys({"left": {"norm": shared}, "right": shared})) == ["left/norm"]
    assert names({"right": shared, "left": {"norm": shared}}) == [("right", "right")]


def test_a_deep_graph() -> None:
    chain = [Node({"x": number}, None, "") for number in range(1, 20_001)]
    variables = [Node({}, role, "") for role in ROLES]
    children = {role: 20_001 + at for at, role in enumerate(ROLES)}
    objects = Objects([*chain, Node(children, None, ""), *variables])
    (layer,) = from_objects(made(ROLES, objects=objects))
    assert (layer.name, layer.longer_name) == ("/".join(["x"] * 64),) * 2


def test_variables_that_are_not_stored() -> None:
    missing = {"a/gamma", "b/moving_mean", "c/moving_variance"}
    model = discover(contents({name: norm(name) for name in "abc"}, missing))
    assert keys_in(model) == {"a": {role: f"a/{role}" for role in ROLES[1:]}}


def test_nodes_without_moving_statistics_are_not_layers() -> None:
    assert names({"norm": norm("k", roles=ROLES[:2]), "other": norm("j", roles=ROLES[2:3])}) == []


def test_slots_and_extra_variables_take_no_role() -> None:
    extra = ["renorm_mean", "renorm_stddev", "moving_stddev"]
    slots = {n: (f"bn/gamma/.OPTIMIZER_SLOT/opt/{n}", f"Adam/bn/gamma/{n}") for n in "mv"}
    model = discover(contents({"bn": norm("bn", "bn", [*ROLES, *extra]), "opt": slots}))
    assert keys_in(model) == {"bn": {role: f"bn/{role}" for role in ROLES}}
    assert set(model["bn"].extra) == {*extra}
    assert not model.incomplete


GAMMA_AND_BETA, STATISTICS = "the file contains gamma and beta", "the file contains further"


@pytest.mark.parametrize(
    ("full_names", "notes"),
    [
        (["net/gamma", "net/beta"], [GAMMA_AND_BETA]),
        (["net/beta"], [GAMMA_AND_BETA]),
        (["net/moving_variance"], [STATISTICS]),
        (["net/gamma", "net/moving_variance"], [GAMMA_AND_BETA, STATISTICS]),
        (["net/kernel"], []),
        (["net/moving_mean"], []),
        (["other/gamma", "other/gamma"], []),
        ([""], []),
    ],
)
def test_lost_statistics_are_noted(full_names: Sequence[str], notes: list[str]) -> None:
    lost = {str(n): (f"opt/{n}", name) for n, name in enumerate(full_names)}
    tree = {"bn": norm("k", "net"), "opt": lost}
    told = discover(contents(tree)).notes
    assert len(told) == len(notes)
    assert all(note.startswith(start) for note, start in zip(told, notes, strict=True))
    assert list(discover(contents(tree, missing={key for key, _ in lost.values()})).notes) == []


def test_a_beta_of_a_layer_without_gamma_and_beta_is_not_noted() -> None:
    tree = {"bn": norm("k", "net", ROLES[2:]), "opt": ("opt/0", "net/beta")}
    assert list(discover(contents(tree)).notes) == []
