from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from bnstat.compare import alignment
from bnstat.compare.alignment import align
from bnstat.model import BatchNorm, Variable
from tests.output.models import layer, model, usual


def matches(
    old: Sequence[BatchNorm], new: Sequence[BatchNorm]
) -> tuple[list[tuple[str, str, str]], list[str], list[str]]:
    found = align(model(*old), model(*new))
    return (
        [(pair.old.name, pair.new.name, pair.match) for pair in found.pairs],
        [each.name for each in found.removed],
        [each.name for each in found.added],
    )


def trained(name: str, seed: int, channels: int = 8) -> BatchNorm:
    """Return the layer `usual(.., seed=seed)` after some training: near, but not equal."""
    before = usual("", channels, seed)
    return layer(
        name,
        {
            role: before.array(role) * np.float32(1.1) + np.float32(0.01)
            for role in before.variables
        },
    )


def _arrays(of: BatchNorm) -> dict[str, np.ndarray]:
    return {role: np.asarray(of.array(role)) for role in of.variables}


def times(factor: float, name: str, seed: int) -> BatchNorm:
    """Return the layer `usual(.., seed=seed)` with all values multiplied."""
    return layer(name, {role: factor * a for role, a in _arrays(usual("", seed=seed)).items()})


def only(name: str, role: str, seed: int) -> BatchNorm:
    """Return a layer whose only role has the gamma of `usual(.., seed=seed)`."""
    return layer(name, {role: usual("", seed=seed).array("gamma")})


FLAT = usual("a", seed=1)
SONNET = layer("b", {role: array.reshape(1, 1, 1, 8) for role, array in _arrays(FLAT).items()})
ABC = [usual(f"a{number}", seed=number) for number in range(3)]


@pytest.mark.parametrize(
    ("old", "new", "pairs"),
    [
        # by name, in any order, also if a layer was pruned
        ([usual("a", seed=1), usual("b", seed=2)], [usual("b", seed=3), usual("a", seed=4)],
         ["b b name", "a a name"]),
        ([usual("a", seed=1), usual("b", 4, seed=2)], [usual("a", seed=1), usual("c", 16, seed=3)],
         ["a a name"]),
        ([usual("a", 8), usual("b", 8)], [usual("a", 6), usual("b", 8)], ["a a name", "b b name"]),
        # The first layer of a sequence is removed, so the numbers belong to other layers.
        ([usual("1", 4, seed=1), usual("4", 6, seed=2), usual("7", 8, seed=3)],
         [usual("1", 6, seed=2), usual("4", 8, seed=4)], ["4 1 values"]),
        # A suffix must belong to one layer only, and be a whole name.
        ([usual("a/b", 4, seed=1), usual("a.b", 8, seed=2)], [usual("x/a/b", 8, seed=3)], []),
        ([usual("x/bn", 4, seed=1), usual("y/bn", 8, seed=2)], [usual("bn", 8, seed=3)], []),
        ([usual("x/block/bn", 4), usual("z", 8)], [usual("y/block/bn", 4)],
         ["x/block/bn y/block/bn values"]),
        ([usual("x/block/bn", 4)], [usual("block/bn", 8)], []),
        # by position, unless equal values contradict it
        ([usual("a0", 4), usual("a1", 8)], [trained("b0", 0, 4), trained("b1", 0)],
         ["a0 b0 position", "a1 b1 position"]),
        ([FLAT], [SONNET], ["a b position"]),
        (ABC, [usual(f"b{number}", seed=number) for number in (2, 0, 1)],
         ["a2 b2 values", "a0 b0 values", "a1 b1 values"]),
        (ABC, [usual(f"b{number}", seed=number) for number in range(3)],
         ["a0 b0 position", "a1 b1 position", "a2 b2 position"]),
        ([usual("a0", seed=1), usual("a1", seed=1)], [usual("b0", seed=1), usual("b1", seed=2)],
         ["a0 b0 position", "a1 b1 position"]),
        ([*ABC[:2], usual("a2", 4, seed=2)],
         [usual("b1", seed=1), usual("b0", seed=0), trained("b2", 2, 4)],
         ["a1 b1 values", "a0 b0 values", "a2 b2 position"]),
        ([only("a0", "gamma", 1), only("a1", "gamma", 2)],
         [only("b0", "beta", 2), only("b1", "beta", 1)], ["a0 b0 position", "a1 b1 position"]),
        # by near values
        (ABC, [trained("b2", 2), trained("b1", 1)], ["a2 b2 values", "a1 b1 values"]),
        ([usual("a", seed=1), usual("c", 4)], [times(-1, "b", 1)], []),
        ([usual("a", seed=1), usual("c", 4)], [times(2, "b", 1)], []),
        ([], [], []),
        ([], [usual("a")], []),
    ],
)  # fmt: skip
def test_pairs(old: Sequence[BatchNorm], new: Sequence[BatchNorm], pairs: list[str]) -> None:
    found, removed, added = matches(old, new)
    assert [" ".join(pair) for pair in found] == pairs
    paired_olds, paired_news = {pair[0] for pair in found}, {pair[1] for pair in found}
    assert removed == [each.name for each in old if each.name not in paired_olds]
    assert added == [each.name for each in new if each.name not in paired_news]


def test_by_the_end_of_the_name() -> None:
    old = [usual("net/block1/bn", seed=1), usual("net/block2/bn", seed=2)]
    new = [usual("block2/bn", seed=3), usual("block1/bn", seed=4)]
    expected = [
        ("net/block2/bn", "block2/bn", "suffix"),
        ("net/block1/bn", "block1/bn", "suffix"),
    ]
    assert matches(old, new) == (expected, [], [])
    turned = [(new, old, match) for old, new, match in expected][::-1]
    assert matches(new, old) == (turned, [], [])


def test_a_prefix_of_all_names_and_a_layer_more() -> None:
    """torch.nn.DataParallel prefixes all names, so no name is the end of only one other."""
    names = ["bn1", "layer1.0.bn1", "layer1.0.bn2", "layer2.0.bn1"]
    old = [usual(name, seed=seed) for seed, name in enumerate(names)]
    new = [trained(f"module.{name}", seed) for seed, name in enumerate(names)]
    more = usual("module.head.bn", 4)
    expected = [(name, f"module.{name}", "suffix") for name in names]
    assert matches(old, [*new, more]) == (expected, [], ["module.head.bn"])
    turned = [(longer, name, "suffix") for name, longer, _ in expected]
    assert matches([*new, more], old) == (turned, ["module.head.bn"], [])


def test_names_that_differ_by_what_separates_their_parts() -> None:
    names = ["bn1", "layer1/0/bn1", "layer1/0/bn2"]
    old = [usual(name, seed=seed) for seed, name in enumerate(names)]
    dotted = [name.replace("/", ".") for name in names]
    new = [trained(name, seed) for seed, name in enumerate(dotted)]
    expected = [
        ("bn1", "bn1", "name"),
        *((name, other, "suffix") for name, other in list(zip(names, dotted, strict=True))[1:]),
    ]
    assert matches(old, [usual("first.bn", 4), *new]) == (expected, [], ["first.bn"])
    new = [trained(f"module.{name}", seed) for seed, name in enumerate(dotted)]
    expected = [(name, f"module.{name.replace('/', '.')}", "suffix") for name in names]
    assert matches(old, [*new, usual("module.x.bn", 4)]) == (expected, [], ["module.x.bn"])
    alone = [usual("a/bn", 4), usual("b", 8)]
    assert matches(alone, [usual("a.bn", 4, seed=3)])[0] == [("a/bn", "a.bn", "suffix")]


def test_a_prefix_does_not_count_if_shapes_disagree() -> None:
    """One sequence has one layer more, so the numbers belong to other layers."""
    widths = (4, 8, 16, 32)
    old = [usual(f"features.{place}", width, place) for place, width in enumerate(widths)]
    new = [usual(f"module.features.{place + 1}", width, place) for place, width in
           enumerate(widths)]  # fmt: skip
    pairs = [(f"features.{place}", f"module.features.{place + 1}", "values") for place in range(4)]
    more = usual("module.features.0", 2)
    assert matches(old, [more, *new]) == (pairs, [], ["module.features.0"])


def test_two_layers_do_not_share_a_match() -> None:
    near = [usual("a0", seed=1), trained("a1", 1)]
    assert matches(near, [trained("b", 1)]) == ([("a1", "b", "values")], ["a0"], [])
    assert matches(near[::-1], [trained("b", 1)]) == ([("a1", "b", "values")], ["a0"], [])
    assert matches([usual("b", seed=1)], [*near[1:], usual("a2", seed=1)])[0] == [
        ("b", "a2", "values")
    ]


BROKEN = {"gamma": np.nan, "beta": np.nan, "moving_variance": 1.0}
ZEROS = {role: np.zeros(8) for role in ("gamma", "beta", "moving_mean", "moving_variance")}


@pytest.mark.parametrize(
    ("old", "new", "is_near"),
    [
        ({"gamma": 10.0}, {"gamma": 11.0}, True),
        ({"gamma": 1.0, "beta": 1.0}, {"gamma": 1.0}, True),
        ({"gamma": 1.0, "beta": 1.0}, {"gamma": 0.0}, False),
        ({"gamma": 1.0}, {"gamma": 1.0, "beta": 1.0, "moving_mean": 1.0}, False),
        ({"gamma": 1.0, "beta": np.nan}, {"gamma": 1.0, "beta": np.nan}, True),
        (BROKEN, BROKEN, False),
    ],
)
def test_the_largest_distance_of_paired_layers(
    old: Mapping[str, float], new: Mapping[str, float], is_near: bool
) -> None:
    one, other = (
        {**ZEROS, **{role: np.full(8, value) for role, value in values.items()}}
        for values in (old, new)
    )
    # A hair's breadth, so that no two values are equal but for zeros and NaN.
    layers = [layer("a", one), usual("more", 4)]
    found = matches(layers, [layer("b", {k: v * (1 + 1e-9) for k, v in other.items()})])[0]
    assert bool(found) is is_near


def test_too_many_layers_are_not_compared_by_values(monkeypatch: pytest.MonkeyPatch) -> None:
    old = [usual(f"a{number}", seed=number) for number in range(3)]
    new = [trained(f"b{number}", number) for number in (2, 1)]
    assert len(matches(old, new)[0]) == 2
    monkeypatch.setattr(alignment, "_MOST_COMPARED", 5)
    assert matches(old, new)[0] == []


def test_layers_without_roles_are_not_compared() -> None:
    bare = [BatchNorm(name, {}) for name in ("a", "b", "c")]
    assert matches(bare[:2], bare[2:]) == ([], ["a", "b"], ["c"])


def test_values_are_read_only_where_they_can_decide() -> None:
    def unread(name: str, channels: int = 4) -> BatchNorm:
        reader = lambda: pytest.fail("is read")  # noqa: E731
        return BatchNorm(name, {"gamma": Variable(name, name, "float32", (channels,), reader)})

    old, new = [unread("a"), unread("b", 8)], [unread("a"), unread("c", 16)]
    assert matches(old, new[:1]) == ([("a", "a", "name")], ["b"], [])
    assert matches(old[:1], new) == ([("a", "a", "name")], [], ["c"])


def test_reassigned_names_are_not_trusted() -> None:
    channels = (4, 8, 16, 32)
    old = [usual(f"bn_{number}", size, number) for number, size in enumerate(channels)]
    new = [usual(f"bn_{number + 2}", size, number + 9) for number, size in enumerate(channels)]
    assert matches(old, new)[0] == [
        (f"bn_{number}", f"bn_{number + 2}", "position") for number in range(4)
    ]


def test_thousands_of_layers_without_a_common_name() -> None:
    old = [usual(f"a{number}", 2, number) for number in range(2000)]
    new = [usual(f"b{number}", 2, number) for number in reversed(range(2000))]
    pairs, removed, added = matches(old, new)
    assert [(old[1:], new[1:]) for old, new, _ in pairs] == [
        (str(number), str(number)) for number in reversed(range(2000))
    ]
    assert removed == added == []
