"""Sightings of one layer become one layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from bnstat.discovery.merge import Sighting, in_order, merge, unique_names

STATISTICS = {"moving_mean": "m", "moving_variance": "v"}


def merged(**evidence: Sequence[Sighting]) -> list[Sighting]:
    return merge(evidence)


def statistics(stem: str) -> dict[str, str]:
    return {role: f"{stem}/{key}" for role, key in STATISTICS.items()}


def test_structure_decides_the_roles_and_weaker_evidence_the_unknown_settings() -> None:
    named = Sighting("name", "bn", {"beta": "b", **STATISTICS}, momentum=0.9, trainable=False)
    (layer,) = merged(
        objects=[Sighting("object-graph", "net/bn", {"gamma": "g", **STATISTICS})],
        graphs=[Sighting("graph", "bn_1", STATISTICS, epsilon=0.5, axis=1, notes=("a",))],
        names=[replace(named, epsilon=0.2, notes=("a", "b"))],
        more=[Sighting("name", "c", STATISTICS, trainable=True)],
    )
    assert layer.evidence == "object-graph"
    assert (layer.epsilon, layer.axis, layer.momentum, layer.trainable) == (0.5, 1, 0.9, False)
    assert layer.notes == ("a", "b")
    assert layer.roles == {"gamma": "g", **STATISTICS}
    assert layer.is_complete
    assert unique_names([layer]) == ["net/bn"]


def test_weaker_evidence_fills_roles_where_none_is_structural() -> None:
    graph = Sighting("graph", "x", {"gamma": "g1", **STATISTICS}, extra={"x": "1"})
    roles, extra = {"gamma": "g2", "beta": "b", **STATISTICS}, {"x": "3", "y": "2"}
    (layer,) = merge({"graphs": [graph], "names": [Sighting("name", "bn", roles, extra=extra)]})
    assert layer.roles == {"gamma": "g1", "beta": "b", **STATISTICS}
    assert layer.extra == {"x": "1", "y": "2"}


def test_a_shared_gamma_does_not_join_layers() -> None:
    layers = merged(
        objects=[Sighting("object-graph", "a", {"gamma": "g", **statistics("a")})],
        names=[Sighting("name", "b", {"gamma": "g", **statistics("b")})],
    )
    assert len(layers) == 2


def test_a_sighting_without_statistics_joins_by_what_it_has() -> None:
    (layer,) = merged(
        objects=[Sighting("object-graph", "a", {"gamma": "g", **STATISTICS})],
        graphs=[Sighting("graph", "a", {"gamma": "g"}, epsilon=0.5)],
    )
    assert layer.epsilon == 0.5


def test_the_parts_of_a_layer_in_graphs_are_one_layer() -> None:
    """One function may train a layer by its gamma and beta, another may apply all variables."""
    affine = {"gamma": "g", "beta": "b"}
    parts = [Sighting("graph", "bn", affine), Sighting("graph", "bn", {**affine, **STATISTICS})]
    for ordered in (parts, parts[::-1]):
        (layer,) = merge({"graphs": ordered})
        assert layer.roles == {**affine, **STATISTICS}
    named = Sighting("name", "bn", {"gamma": "g"})
    assert len(merge({"patterns": [named], "objects": [parts[1]]})) == 2


def test_of_layers_that_share_a_gamma_one_has_the_beta() -> None:
    one, two = (
        Sighting("graph", name, {"gamma": "g", "beta": f"{name}/b", **statistics(name)})
        for name in ("one", "two")
    )
    part = Sighting("graph", "two", {"gamma": "g", "beta": "two/b"}, epsilon=0.5)
    assert [layer.epsilon for layer in merge({"graphs": [one, two, part]})] == [None, 0.5]


def layers_named(*names: str) -> list[Sighting]:
    return [Sighting("name", name, statistics(str(at))) for at, name in enumerate(names)]


def test_names_are_unique() -> None:
    layers = merge({"names": layers_named("a", "a", "b", "", "", "a")})
    names = unique_names(layers)
    assert len(set(names)) == len(names) == 6
    assert names[2] == "b"
    assert names[3] == "(root)"


@pytest.mark.parametrize("taken", ["a#2", "a#3"])
def test_a_name_that_is_made_unique_differs_from_all_others(taken: str) -> None:
    names = unique_names(merge({"names": layers_named("a", "a", "a", taken)}))
    assert len(set(names)) == 4
    assert taken in names


def test_another_evidence_names_layers_that_the_strongest_calls_alike() -> None:
    layers = merged(
        objects=[Sighting("object-graph", "bn", statistics(str(at))) for at in (0, 1)],
        names=[Sighting("name", f"n{at}", statistics(str(at))) for at in (0, 1)],
    )
    assert unique_names(layers) == ["n0", "n1"]


def test_order() -> None:
    layers = merged(
        objects=[Sighting("object-graph", n, statistics(n)) for n in ("bn_10", "bn_9")],
        graphs=[Sighting("graph", n, statistics(n)) for n in ("bn_9", "bn_10")],
        names=[Sighting("name", n, statistics(n)) for n in ("z_10", "z_9")],
    )

    def names(*origins: str) -> list[str]:
        return unique_names(in_order(layers, origins))

    assert names("graphs", "objects") == ["bn_9", "bn_10", "z_9", "z_10"]
    assert names("objects", "graphs") == ["bn_10", "bn_9", "z_9", "z_10"]
    assert names() == ["bn_9", "bn_10", "z_9", "z_10"]


def listed(*numbers: int) -> list[Sighting]:
    return [Sighting("graph", f"bn_{n}", statistics(f"variables/{n}")) for n in numbers]


def test_the_list_of_an_exported_model_is_in_order() -> None:
    layers = in_order(merged(graphs=listed(10, 1, 9, 0)), ("graphs",))
    assert unique_names(layers) == ["bn_0", "bn_1", "bn_9", "bn_10"]
    same = [Sighting("graph", n, statistics(f"variables/{n}")) for n in ("01", "1")]
    assert unique_names(in_order(merge({"graphs": same}), ())) == ["01", "1"]
    # A graph that contains all layers shows their order better.
    for graphs, expected in ((("f", "f"), ["bn_10", "bn_9"]), (("f", "g"), ["bn_9", "bn_10"])):
        layers = merge({"graphs": listed(10, 9)})
        for layer, graph in zip(layers, graphs, strict=True):
            layer.inputs = frozenset({(graph, "x")})
        assert unique_names(in_order(layers, ("graphs",))) == expected
    # A layer that the list does not have leaves the order to the evidence.
    layers = merge({"graphs": [*listed(10, 9), Sighting("graph", "a", statistics("a"))]})
    assert unique_names(in_order(layers, ("graphs",))) == ["bn_10", "bn_9", "a"]


@pytest.mark.parametrize(
    ("names", "longer_names", "expected"),
    [
        ("ba", ["y", "z"], ["a", "b"]),
        (["stem", "bn", "bn"], ["net/stem", "r/bn", "l/bn"], ["r/bn", "l/bn", "stem"]),
        ("aa", ["net/a", "net/a"], ["a", "a#2"]),
    ],
)
def test_longer_names(names: Sequence[str], longer_names: list[str], expected: list[str]) -> None:
    """They distinguish layers, but do not give the order."""
    sightings = [
        Sighting("config", name, statistics(str(at)), longer_name=longer)
        for at, (name, longer) in enumerate(zip(names, longer_names, strict=True))
    ]
    assert unique_names(in_order(merge({"layers": sightings}), ())) == expected


def test_the_order_of_the_evidence_that_shows_most_layers() -> None:
    layers = merged(
        layers=[Sighting("config", "b", statistics("b"))],
        graphs=[Sighting("graph", n, statistics(n)) for n in ("c", "b", "a")],
    )
    assert unique_names(in_order(layers, ("layers", "graphs"))) == ["c", "b", "a"]
