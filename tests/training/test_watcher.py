from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from bnstat.errors import BnstatError, UnsupportedError
from bnstat.training import Watcher


class Cell:
    """A variable, as Keras and TensorFlow have them."""

    def __init__(self, values):
        self.values = np.array(values, np.float32)
        self.shape = self.values.shape
        self.dtype = self.values.dtype

    def numpy(self):
        return self.values

    def assign(self, values):
        self.values = np.array(values, np.float32)


class Norm:
    variables = ()

    def __init__(self, channels=8):
        random = np.random.default_rng(0)
        self.gamma = Cell(random.normal(1, 0.1, channels))
        self.beta = Cell(random.normal(0, 0.1, channels))
        self.moving_mean = Cell(random.normal(0, 1, channels))
        self.moving_variance = Cell(random.uniform(0.5, 2, channels))
        self.epsilon = 0.001


class Net:
    variables = ()
    name = "net"

    def __init__(self):
        self.bn = Norm()


@pytest.fixture
def said():
    return []


@pytest.fixture
def watcher(said):
    return Watcher(report=said.append)


def test_a_healthy_model_is_no_news(watcher, said):
    net = Net()
    for epoch in range(3):
        net.bn.gamma.assign(net.bn.gamma.values + 0.01)
        net.bn.moving_mean.assign(net.bn.moving_mean.values + 0.01)
        watcher.check(net, f"epoch {epoch}", epoch)
    assert said == []


def test_a_finding_is_said_once(watcher, said):
    net = Net()
    net.bn.moving_variance.assign([np.nan] + [1] * 7)
    watcher.check(net, "epoch 1", 0)
    assert [line for line in said if "BN004" in line] == [
        "epoch 1: error BN004 not-finite: bn: moving variance is NaN in 1 of 8 channels"
    ]
    count = len(said)
    watcher.check(net, "epoch 2", 1)
    assert len(said) == count
    assert any(each.name == "not-finite" for each in watcher.findings)


def test_what_ends_is_said_once(watcher, said):
    net = Net()
    healthy = net.bn.moving_variance.values
    net.bn.moving_variance.assign([np.nan] + [1] * 7)
    watcher.check(net, "epoch 1", 0)
    net.bn.moving_variance.assign(healthy)
    for epoch in (1, 2):
        watcher.check(net, f"epoch {epoch + 1}", epoch)
    assert [line for line in said if "over: BN004" in line] == ["epoch 2: over: BN004 in bn"]


def test_a_variance_that_grows_is_told(watcher, said):
    net = Net()
    for epoch in range(5):
        net.bn.gamma.assign(net.bn.gamma.values + 0.01)
        net.bn.moving_variance.assign(net.bn.moving_variance.values * 1e4)
        watcher.check(net, f"epoch {epoch + 1}", epoch)
    lines = [line for line in said if "diverging" in line]
    assert lines[0].startswith("epoch 4: warning BN103 diverging: bn: mean moving variance grows")
    assert lines[1].startswith("epoch 5: worse: warning BN103 diverging: bn: mean moving variance")
    assert len(lines) == 2


def test_the_history_is_recorded(watcher):
    net = Net()
    means = []
    for epoch in range(3):
        net.bn.moving_mean.values += 1  # in place, as some libraries do
        means.append(net.bn.moving_mean.values.mean())
        watcher.check(net, f"epoch {epoch + 1}", epoch, 100 * (epoch + 1))
    assert [(each.name, each.step) for each in watcher.history.checkpoints] == [
        ("epoch 1", 100),
        ("epoch 2", 200),
        ("epoch 3", 300),
    ]
    np.testing.assert_allclose(watcher.history.tracks["bn", "moving_mean"].mean, means, rtol=1e-6)


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_the_history_is_written_at_each_look(tmp_path, said, ending):
    path = tmp_path / f"bn.{ending}"
    watcher = Watcher(report=said.append, history=path)
    for epoch in range(2):
        watcher.check(Net(), f"epoch {epoch + 1}", epoch)
        text = path.read_text()
        if ending == "csv":
            rows = list(csv.DictReader(text.splitlines()))
            assert len(rows) == 4 * (epoch + 1)
            assert rows[-1]["checkpoint"] == f"epoch {epoch + 1}"
        else:
            assert len(json.loads(text)["checkpoints"]) == epoch + 1
    assert said == []


def test_what_cannot_be_written_does_not_end_the_training(tmp_path, said):
    path = tmp_path / "missing" / "bn.csv"
    watcher = Watcher(report=said.append, history=path)
    watcher.check(Net(), "epoch 1", 0)
    (line,) = said
    assert str(path) in line
    assert len(watcher.history.checkpoints) == 1


def test_event_files(tmp_path, said):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    watcher = Watcher(report=said.append, tensorboard=tmp_path)
    for epoch in range(2):
        watcher.check(Net(), f"epoch {epoch + 1}", epoch)
        (file,) = (tmp_path / "bnstat").iterdir()
        steps = {event.step for event in EventFileLoader(str(file)).Load() if event.summary.value}
        assert steps == set(range(epoch + 1))
    watcher.close()
    watcher.check(Net(), "epoch 3", 2)
    watcher.close()
    assert len(list((tmp_path / "bnstat").iterdir())) == 2


def test_a_model_without_batch_norm_is_told_once(watcher, said):
    net = Net()
    del net.bn
    for epoch in range(2):
        watcher.check(net, f"epoch {epoch}", epoch)
    assert said == ["no batch-norm layer found in net: nothing to watch"]


def test_rules_that_are_ignored(said):
    net = Net()
    net.bn.moving_variance.assign([np.nan] + [1] * 7)
    watcher = Watcher(report=said.append, ignore=["not-finite"])
    watcher.check(net, "epoch 1", 0)
    assert said == watcher.findings == []


def test_what_is_wrong_is_told_before_the_training(said):
    with pytest.raises(BnstatError, match="no rule"):
        Watcher(report=said.append, select=["BN999"])
    with pytest.raises(UnsupportedError, match=r"\.csv or \.json"):
        Watcher(report=said.append, history="bn.txt")
