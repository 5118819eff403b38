from __future__ import annotations

import numpy as np
import pytest

from bnstat.checks import Finding
from bnstat.training import News, find_gravest, warming_up


def finding(layer="bn", *, rule="BN004", severity="error", channels=1, message="bad", **numbers):
    return Finding(
        rule, rule.lower(), severity, layer, np.arange(channels), f"{message} {channels}", numbers
    )


@pytest.fixture
def news():
    return News()


@pytest.mark.parametrize(
    ("count", "last"),
    [
        (3, "error BN004 bn004: block2: bad 1"),
        (4, "BN004 bn004: and 1 more layer"),
        (52, "BN004 bn004: and 49 more layers"),
    ],
)
def test_three_layers_are_named_and_the_others_counted(news, count, last):
    lines = news.lines([finding(f"block{number}") for number in range(count)])
    assert lines[0] == "error BN004 bn004: block0: bad 1"
    assert lines[-1] == last
    assert len(lines) == min(count, 4)


def test_each_rule_has_its_own_three(news):
    lines = news.lines([finding(rule=rule) for rule in ("BN004", "BN005", "BN006", "BN007")])
    assert len(lines) == 4


def test_what_one_rule_finds_in_a_layer_is_one_line(news):
    (line,) = news.lines([finding(message=message) for message in ("gamma", "beta")])
    assert line == "error BN004 bn004: bn: gamma 1; beta 1"


def test_what_goes_on_is_not_said_again(news):
    assert news.lines([finding(channels=10, largest=5.0)])
    for channels in (10, 9, 19):
        assert news.lines([finding(channels=channels, largest=5.0 * channels / 5)]) == []


@pytest.mark.parametrize(
    "worse",
    [
        {"severity": "error"},
        {"channels": 20},
        {"largest": 51.0},
        {"least": -51.0},
        {"variance": float("inf")},
    ],
)
def test_what_becomes_worse_is_said_once_more(news, worse):
    usual = {"severity": "warning", "channels": 10, "largest": 5.0}
    news.lines([finding(**usual)])
    later = [finding(**{**usual, **worse})]
    (line,) = news.lines(later)
    assert line.startswith("worse: ")
    assert news.lines(later) == []


def test_what_is_over_is_said_once_and_may_come_back(news):
    news.lines([finding(f"block{number}") for number in range(5)])
    assert news.lines([finding("block4")]) == [
        "over: BN004 in block0, block1, block2, and 1 more layer"
    ]
    assert news.lines([finding("block4")]) == []
    assert news.lines([finding("block4"), finding("block0")]) == [
        "error BN004 bn004: block0: bad 1"
    ]


def test_information_is_no_news(news):
    assert news.lines([finding(severity="info")]) == []


def test_warming_up_is_for_the_end(news):
    early = [finding(f"bn{number}", rule="BN003", severity="warning") for number in range(5)]
    assert news.lines(early) == []
    assert find_gravest(early, "info") is None
    assert list(warming_up(early))[-1] == "BN003 bn003: and 2 more layers"
    assert list(warming_up([finding(rule="BN003", severity="info")])) == []


@pytest.mark.parametrize(
    ("fail_on", "expected"), [(None, None), ("error", "b"), ("warning", "b"), ("info", "b")]
)
def test_the_gravest_ends_a_training(fail_on, expected):
    found = [finding("a", severity="warning"), finding("b"), finding("c")]
    failing = find_gravest(found, fail_on)
    assert (failing and failing.layer) == expected
    assert find_gravest(found[:1], "error") is None
