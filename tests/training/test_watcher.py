"""The callback reports each problem once, and `News` decides what is new."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from bnstat.checks import Finding
from bnstat.errors import BnstatError, UnsupportedError
from bnstat.keras import News, Watch, find_gravest
from tests.builders.in_memory import Network, Norm


@pytest.fixture
def reported(monkeypatch):
    lines = []
    monkeypatch.setattr(Watch, "_print", lambda self, line: lines.append(line))
    return lines


def check(watch, net, epoch):
    watch.set_model(net)
    watch.on_epoch_end(epoch)


def healthy():
    return Network(name="net", bn=Norm())


def broken():
    net = healthy()
    net.bn.moving_variance.assign([np.nan] + [1] * 7)
    return net


def test_a_healthy_model_is_not_reported(reported):
    net, watch = healthy(), Watch()
    for epoch in range(3):
        net.bn.gamma.assign(net.bn.gamma.values + 0.01)
        net.bn.moving_mean.values += 0.01  # in place, as some libraries do
        check(watch, net, epoch)
    means = watch.history.tracks["bn", "moving_mean"].mean
    np.testing.assert_allclose(np.diff(means), 0.01, rtol=1e-3)
    assert reported == []


def test_a_finding_and_its_end_are_reported_once(reported):
    net, watch = broken(), Watch()
    check(watch, net, 0)
    assert [line for line in reported if "BN004" in line] == [
        "epoch 1: error BN004 not-finite: bn: moving variance is NaN in 1 of 8 channels"
    ]
    count = len(reported)
    check(watch, net, 1)
    assert len(reported) == count
    assert any(finding.name == "not-finite" for finding in watch.findings)
    net.bn.moving_variance.assign(healthy().bn.moving_variance.values)
    for epoch in (2, 3):
        check(watch, net, epoch)
    assert [line for line in reported if "over: BN004" in line] == ["epoch 3: over: BN004 in bn"]


def test_a_growing_variance_is_reported(reported):
    net, watch = healthy(), Watch()
    for epoch in range(5):
        net.bn.gamma.assign(net.bn.gamma.values + 0.01)
        net.bn.moving_variance.assign(net.bn.moving_variance.values * 1e4)
        check(watch, net, epoch)
    lines = [line for line in reported if "diverging" in line]
    assert lines[0].startswith("epoch 4: warning BN103 diverging: bn: mean moving variance grows")
    assert lines[1].startswith("epoch 5: worse: warning BN103 diverging: bn: mean moving variance")
    assert len(lines) == 2


def test_the_history_is_written_at_each_check(tmp_path, reported):
    paths = tmp_path / "bn.csv", tmp_path / "bn.json"
    watches = [Watch(history=path) for path in paths]
    for epoch in range(2):
        for watch in watches:
            check(watch, healthy(), epoch)
        rows = list(csv.DictReader(paths[0].read_text().splitlines()))
        assert len(rows) == 4 * (epoch + 1)
        assert rows[-1]["checkpoint"] == f"epoch {epoch + 1}"
        assert len(json.loads(paths[1].read_text())["checkpoints"]) == epoch + 1
    assert reported == []


def test_an_unwritable_history_does_not_end_the_training(tmp_path, reported):
    path = tmp_path / "missing" / "bn.csv"
    watch = Watch(history=path)
    check(watch, healthy(), 0)
    (line,) = reported
    assert str(path) in line
    assert len(watch.history.checkpoints) == 1


def test_event_files(tmp_path, reported):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    watch = Watch(tensorboard=tmp_path)
    for epoch in range(2):
        check(watch, healthy(), epoch)
        (file,) = (tmp_path / "bnstat").iterdir()
        steps = {event.step for event in EventFileLoader(str(file)).Load() if event.summary.value}
        assert steps == set(range(epoch + 1))
    watch.on_train_end()
    check(watch, healthy(), 2)
    watch.on_train_end()
    assert len(list((tmp_path / "bnstat").iterdir())) == 2


def test_a_model_without_batch_norm_is_reported_once(reported):
    watch = Watch()
    for epoch in range(2):
        check(watch, Network(name="net"), epoch)
    assert reported == ["no batch-norm layer in net: nothing to watch"]


def test_rules_that_are_ignored(reported):
    watch = Watch(ignore=["not-finite"])
    check(watch, broken(), 0)
    assert reported == watch.findings == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"select": ["BN999"]}, BnstatError, "of a rule"),
        ({"history": "bn.txt"}, UnsupportedError, r"\.csv or \.json"),
        ({"every": 0}, ValueError, "every"),
        ({"fail_on": "fatal"}, ValueError, "fail_on"),
    ],
)
def test_wrong_arguments_fail_before_the_training(arguments, error, message):
    with pytest.raises(error, match=message):
        Watch(**arguments)


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
def test_three_layers_per_rule_are_named_and_the_others_counted(news, count, last):
    findings = [finding(f"block{number}") for number in range(count)]
    lines = news.lines([*findings, finding(rule="BN005")])
    assert lines[0] == "error BN004 bn004: block0: bad 1"
    assert lines[-2:] == [last, "error BN005 bn005: bn: bad 1"]
    assert len(lines) == min(count, 4) + 1


def test_the_findings_of_a_rule_in_a_layer_are_one_line(news):
    (line,) = news.lines([finding(message=message) for message in ("gamma", "beta")])
    assert line == "error BN004 bn004: bn: gamma 1; beta 1"


def test_info_and_a_continuing_finding_are_not_reported(news):
    assert news.lines([finding(severity="info")]) == []
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
def test_a_worse_finding_is_reported_again(news, worse):
    usual = {"severity": "warning", "channels": 10, "largest": 5.0}
    news.lines([finding(**usual)])
    later = [finding(**{**usual, **worse})]
    (line,) = news.lines(later)
    assert line.startswith("worse: ")
    assert news.lines(later) == []


def test_a_finding_that_ends_may_come_back(news):
    news.lines([finding(f"block{number}") for number in range(5)])
    assert news.lines([finding("block4")]) == [
        "over: BN004 in block0, block1, block2, and 1 more layer"
    ]
    assert news.lines([finding("block4")]) == []
    assert news.lines([finding("block4"), finding("block0")]) == [
        "error BN004 bn004: block0: bad 1"
    ]


def test_warming_up_is_reported_at_the_end(news, reported):
    early = [finding(f"bn{number}", rule="BN003", severity="warning") for number in range(5)]
    assert news.lines(early) == []
    assert find_gravest(early, "info") is None
    watch = Watch()
    watch.findings.extend([*early, finding("bn5", rule="BN003", severity="info")])
    watch.on_train_end()
    assert reported[-1] == "at the end: BN003 bn003: and 2 more layers"


def test_the_gravest_ends_a_training():
    findings = [finding("a", severity="warning"), finding("b"), finding("c")]
    for fail_on in ("error", "warning", "info"):
        assert find_gravest(findings, fail_on) is findings[1]
    assert find_gravest(findings, None) is find_gravest(findings[:1], "error") is None
