"""Layers' names by the scopes of a graph: what proves a path, and what does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from bnstat.discovery.merge import Sighting, merge, unique_names
from bnstat.discovery.names import name_by_scopes
from bnstat.formats.contents import Contents, Node
from bnstat.model import Source
from tests.builders.effort import bounded

tf = pytest.importorskip("tensorflow")


def named(scopes: Mapping[str, str]) -> list[str]:
    """The names of layers: scope in the graph -> scope of their variables' full names."""
    nodes, sightings = [], []
    for number, (scope, full_name) in enumerate(scopes.items()):
        roles = {role: f"{number}/{role}" for role in ("moving_mean", "moving_variance")}
        nodes += [Node({}, key, f"{full_name}/{role}") for role, key in roles.items()]
        sightings.append(Sighting("graph", scope, roles))
    layers = merge({"graphs": sightings})
    name_by_scopes(layers, Contents(Source("", ""), {}, objects=nodes))
    return unique_names(layers)


def opened_twice(path: Sequence[Any]) -> list[str]:
    """The scopes that TensorFlow gives layers that Keras opens twice: (name, what is within)."""
    scopes = []

    def open_all(layers: Sequence[Any]) -> None:
        for name, within in layers:
            with tf.name_scope(name):
                pass
            with tf.name_scope(name) as scope:
                open_all(within)
                if not within:
                    scopes.append(scope.rstrip("/"))

    with tf.Graph().as_default():
        open_all(path)
    return scopes


@pytest.mark.parametrize(
    "names",
    [
        ["bn", "bn_1", "bn_2"],
        ["bn_2", "bn_1", "bn"],
        ["bn", "bn_1_1", "bn_1", "bn_2_2"],
        ["BN", "bn", "bn_1"],
        ["a_1", "a_1_1", "a", "a_1_1_1"],
    ],
)
def test_numbers_are_undone_as_tensorflow_gave_them(names: list[str]) -> None:
    scopes = opened_twice([("net", [("blk", [(name, []) for name in names])])])
    assert named(dict.fromkeys(scopes, "blk")) == [f"blk/{name}" for name in names]


def test_numbers_without_proof_are_kept() -> None:
    alien = {"net/blk_1/bn_1": "elsewhere", "net/blk_1/bn_2": "elsewhere"}
    assert named(alien) == list(alien)
    unnumbered = {"net/blk/bn_1": "blk", "net/blk/bn_2": "blk"}
    assert named(unnumbered) == ["blk/bn_1", "blk/bn_2"]
    for alone in ({"net/blk_1": "blk"}, {"net/blk": "blk"}, {"net/blk/bn": "blk"}):
        assert named(alone) == list(alone)
    impossible = {"net_1/blk_1/bn_7": "blk", "net_1/blk_1/bn_9": "blk"}
    assert named(impossible) == ["blk/bn_7", "blk/bn_9"]


def test_layers_of_one_name_in_nested_models() -> None:
    alike = {"top/first/bn": "bn", "top/second/bn": "bn", "top/end": "end"}
    assert named(alike) == ["first/bn", "second/bn", "top/end"]


def test_hostile_scopes_are_bounded() -> None:
    deep = {"/".join(["a_1"] * depth): "a" for depth in range(1, 2000, 100)}
    wide = {f"b_1/a_{number}_1": "b" for number in range(10_000)}
    mixed = {f"b_1/a_{number}": "b" for number in range(10_000)}
    with bounded():
        named(deep | wide | mixed)
