from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from bnstat.compare import alignment
from bnstat.compare.alignment import align
from bnstat.model import BatchNorm, Variable
from tests.compare.ports import arrays_of
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
    before = arrays_of(usual("", channels, seed))
    return layer(name, {role: a * np.float32(1.1) + np.float32(0.01) for role, a in before.items()})


def only(name: str, role: str, seed: int) -> BatchNorm:
    """Return a layer whose only role has the gamma of `usual(.., seed=seed)`."""
    return layer(name, {role: usual("", seed=seed).array("gamma")})


FLAT = usual("a", seed=1)
SONNET = layer("b", {role: array.reshape(1, 1, 1, 8) for role, array in arrays_of(FLAT).items()})
ABC = [usual(f"a{number}", seed=number) for number in range(3)]
NEAR = [usual("a0", seed=1), trained("a1", 1)]
WIDTHS = dict(enumerate((4, 8, 16, 32)))


def numbered(prefix: str, first: int = 0) -> list[BatchNorm]:
    return [usual(f"{prefix}.{first + n}", width, n) for n, width in WIDTHS.items()]


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
        *(([FLAT, usual("c", 4)], [layer("b", {r: n * a for r, a in arrays_of(FLAT).items()})], [])
          for n in (-1, 2)),
        # Two layers do not share a match.
        *((near, [trained("b", 1)], ["a1 b values"]) for near in (NEAR, NEAR[::-1])),
        ([usual("b", seed=1)], [NEAR[1], usual("a2", seed=1)], ["b a2 values"]),
        # Reassigned names are not trusted.
        (numbered("bn"), [usual(f"bn.{n + 2}", width, n + 9) for n, width in WIDTHS.items()],
         [f"bn.{n} bn.{n + 2} position" for n in WIDTHS]),
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


NAMES = ["bn1", "layer1/0/bn1", "layer1/0/bn2", "layer2/0/bn1"]
PARTS = [name.replace("/", ".") for name in NAMES]


@pytest.mark.parametrize(
    ("old", "new", "more", "match"),
    [
        (["net/block1/bn", "net/block2/bn"], ["block1/bn", "block2/bn"], [], "suffix"),
        # torch.nn.DataParallel prefixes all names, so no name is the end of only one other.
        (NAMES, [f"module/{name}" for name in NAMES], ["module/head/bn"], "suffix"),
        # Other separators, alone and with a prefix
        (NAMES[1:], PARTS[1:], ["first.bn"], "suffix"),
        (NAMES, [f"module.{name}" for name in PARTS], ["module.x.bn"], "suffix"),
        (["a/bn"], ["a.bn"], ["b"], "suffix"),
        # One sequence has one layer more, so the numbers belong to other layers.
        (numbered("features"), numbered("module.features", 1),
         [usual("module.features.0", 2)], "values"),
    ],
)  # fmt: skip
def test_names_with_a_common_end(old: Any, new: Any, more: Any, match: str) -> None:
    olds = [usual(each, seed=n) if isinstance(each, str) else each for n, each in enumerate(old)]
    news = [trained(each, n) if isinstance(each, str) else each for n, each in enumerate(new)]
    more = [usual(each, 4) if isinstance(each, str) else each for each in more]
    pairs = [(a.name, b.name, match) for a, b in zip(olds, news, strict=True)]
    alone = [each.name for each in more]
    assert matches(olds, [*more, *news]) == (pairs, [], alone)
    turned = [(new, old, match) for old, new, match in pairs]
    assert matches([*news, *more], olds) == (turned, alone, [])


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
def test_the_largest_distance_of_paired_layers(old, new, is_near) -> None:
    one, other = (
        {**ZEROS, **{role: np.full(8, value) for role, value in values.items()}}
        for values in (old, new)
    )
    # A hair's breadth, so that no two values are equal but for zeros and NaN.
    layers = [layer("a", one), usual("more", 4)]
    found = matches(layers, [layer("b", {k: v * (1 + 1e-9) for k, v in other.items()})])[0]
    assert bool(found) is is_near


def test_too_many_layers_are_not_compared_by_values(monkeypatch: pytest.MonkeyPatch) -> None:
    new = [trained(f"b{number}", number) for number in (2, 1)]
    monkeypatch.setattr(alignment, "_MOST_COMPARED", 6)
    assert len(matches(ABC, new)[0]) == 2
    monkeypatch.setattr(alignment, "_MOST_COMPARED", 5)
    assert matches(ABC, new)[0] == []


def test_values_are_read_only_where_they_can_decide() -> None:
    def unread(name: str, channels: int = 4) -> BatchNorm:
        reader = lambda: pytest.fail("is read")  # noqa: E731
        return BatchNorm(name, {"gamma": Variable(name, name, "float32", (channels,), reader)})

    old, new = [unread("a"), unread("b", 8)], [unread("a"), unread("c", 16)]
    assert matches(old, new[:1]) == ([("a", "a", "name")], ["b"], [])
    assert matches(old[:1], new) == ([("a", "a", "name")], [], ["c"])
    without_roles = [BatchNorm(name, {}) for name in ("a", "b", "c")]
    assert matches(without_roles[:2], without_roles[2:]) == ([], ["a", "b"], ["c"])


def test_thousands_of_layers_without_a_common_name() -> None:
    old = [usual(f"a{number}", 2, number) for number in range(2000)]
    new = [usual(f"b{number}", 2, number) for number in reversed(range(2000))]
    pairs, removed, added = matches(old, new)
    assert [(old[1:], new[1:]) for old, new, _ in pairs] == [
        (str(number), str(number)) for number in reversed(range(2000))
    ]
    assert removed == added == []
