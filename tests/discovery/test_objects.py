"""Batch norm in object graphs made up for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pytest

from bnstat.discovery import discover
from bnstat.discovery.objects import from_objects
from bnstat.formats.contents import Contents, Node, Objects
from bnstat.formats.tensorflow.object_graph import best_names
from bnstat.model import ROLES
from tests.discovery.made import keys_in, made


class Graph:
    """An object graph that is put together node by node."""

    def __init__(self) -> None:
        self.nodes: list[Node] = [Node({}, None, "")]

    def add(self, children: Mapping[str, int] | None = None) -> int:
        self.nodes.append(Node(dict(children or {}), None, ""))
        return len(self.nodes) - 1

    def variable(self, key: str, full_name: str = "") -> int:
        self.nodes.append(Node({}, key, full_name))
        return len(self.nodes) - 1

    def norm(self, stem: str, scope: str = "", roles: Sequence[str] = ROLES) -> int:
        return self.add(
            {
                role: self.variable(f"{stem}/{role}", f"{scope}/{role}" if scope else "")
                for role in roles
            }
        )

    def root(self, **children: int) -> None:
        self.nodes[0] = Node(children, None, "")

    def contents(self, missing: Collection[str] = ()) -> Contents:
        stored = [node.key for node in self.nodes if node.key and node.key not in missing]
        return made(stored, names=best_names(self.nodes), objects=Objects(self.nodes))


def keys(graph: Graph) -> dict[str, dict[str, str]]:
    return keys_in(discover(graph.contents()))


def test_layers_are_named_by_their_variables() -> None:
    graph = Graph()
    graph.root(a=graph.norm("k0", "net/bn"), b=graph.norm("k1"))
    assert keys(graph) == {
        "net/bn": {role: f"k0/{role}" for role in ROLES},
        "b": {role: f"k1/{role}" for role in ROLES},
    }


def names(graph: Graph) -> list[tuple[str, str]]:
    """Name and path of what the object graph alone shows."""
    return [(one.name, one.longer_name) for one in from_objects(graph.contents())]


def in_operations(*layers: tuple[str, str], model: str = "_operations") -> Graph:
    """Layers as Keras 3 keeps a network's: (path within the network, scope of the variables)."""
    graph = Graph()
    tree: dict[str, Any] = {}
    for number, (path, scope) in enumerate(layers):
        *parents, last = f"{model}/{path}".split("/")
        inner = tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = graph.norm(f"k{number}", scope)

    def build(tree: Mapping[str, Any]) -> dict[str, int]:
        return {
            name: graph.add(build(below)) if isinstance(below, dict) else below
            for name, below in tree.items()
        }

    graph.root(**build(tree))
    return graph


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
    graph = in_operations(*layers)
    assert [name for name, _ in names(graph)] == expected
    assert [path for _, path in names(graph)] == [f"_operations/{path}" for path, _ in layers]


def test_a_layer_elsewhere_has_its_scope() -> None:
    graph = in_operations(("3/norm", "blk"), model="layers")
    assert names(graph) == [("blk", "layers/3/norm")]
    graph = in_operations(("x/norm", "blk"))
    assert names(graph) == [("blk", "_operations/x/norm")]


def test_layers_with_one_scope_are_named_by_their_paths_in_order() -> None:
    graph = Graph()
    names = [f"bn_{number}" for number in (3, 1, 10, 2)]
    graph.root(**{name: graph.norm(f"k/{name}", "net") for name in names})
    assert list(keys(graph)) == names


def test_a_shared_object_is_one_layer() -> None:
    graph = Graph()
    norm = graph.norm("k")
    graph.root(left=graph.add({"norm": norm}), right=norm)
    assert list(keys(graph)) == ["left/norm"]
    graph.root(right=norm, left=graph.add({"norm": norm}))
    assert names(graph) == [("right", "right")]


def test_cycles_end() -> None:
    graph = Graph()
    inner = graph.add()
    graph.nodes[inner] = Node({"me": inner, "top": 0, "norm": graph.norm("k")}, None, "")
    graph.root(inner=inner)
    assert list(keys(graph)) == ["inner/norm"]


def test_a_deep_graph() -> None:
    graph = Graph()
    below = graph.norm("k")
    for _ in range(20_000):
        below = graph.add({"x": below})
    graph.root(x=below)
    assert names(graph) == [("/".join(["x"] * 64),) * 2]


def test_sonnet_averages() -> None:
    graph = Graph()
    children = {
        "scale": graph.variable("s", "bn/scale"),
        "offset": graph.variable("o", "bn/offset"),
    }
    for role in ROLES[2:]:
        parts = {part: graph.variable(f"{role}/{part}", f"bn/{role}/{part}")
                 for part in ("average", "_hidden")}  # fmt: skip
        children[role] = graph.add(parts)
    graph.root(net=graph.add(children))
    averages = {role: f"{role}/average" for role in ROLES[2:]}
    assert keys(graph) == {"bn": {"gamma": "s", "beta": "o", **averages}}


def test_variables_that_are_not_stored() -> None:
    graph = Graph()
    graph.root(a=graph.norm("k0"), b=graph.norm("k1"), c=graph.norm("k2"))
    contents = graph.contents(missing={"k0/gamma", "k1/moving_mean", "k2/moving_variance"})
    assert {layer.name: set(layer.variables) for layer in discover(contents)} == {
        "a": {"beta", "moving_mean", "moving_variance"}
    }


def test_nodes_without_moving_statistics_are_not_layers() -> None:
    graph = Graph()
    graph.root(norm=graph.norm("k", roles=ROLES[:2]), other=graph.norm("j", roles=ROLES[2:3]))
    assert from_objects(graph.contents()) == []


def test_slots_and_extra_variables_take_no_role() -> None:
    graph = Graph()
    extra = ["renorm_mean", "renorm_stddev", "moving_stddev"]
    m, v = (graph.variable(f"bn/gamma/.OPTIMIZER_SLOT/opt/{n}", f"Adam/bn/gamma/{n}") for n in "mv")
    graph.root(bn=graph.norm("bn", "bn", [*ROLES, *extra]), opt=graph.add({"m": m, "v": v}))
    model = discover(graph.contents())
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
    graph = Graph()
    lost = [graph.variable(f"opt/{n}", name) for n, name in enumerate(full_names)]
    opt = graph.add({str(n): node for n, node in enumerate(lost)})
    graph.root(bn=graph.norm("k", "net"), opt=opt)
    told = discover(graph.contents()).notes
    assert len(told) == len(notes)
    assert all(note.startswith(start) for note, start in zip(told, notes, strict=True))
    alone = Graph()
    alone.root(bn=alone.norm("k", "net", ROLES[2:]), opt=alone.variable("opt/0", "net/beta"))
    assert list(discover(alone.contents()).notes) == []
    lacking = graph.contents(missing={f"opt/{n}" for n in range(len(lost))})
    assert list(discover(lacking).notes) == []
