"""Undecided layers are reported by every command, and `--config` decides them."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import h5py
import jsonschema
import numpy as np
import pytest


def write_weights(path: Path, seed: int = 0) -> Path:
    """Write batch norm without gamma as Keras 3 does in a wrapper without its class."""
    random = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/time_distributed/layer/vars")
        group.attrs["name"] = "plain721738"
        for number in range(3):
            group[str(number)] = random.random(4, np.float32)
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "m.weights.h5")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    settings = {"trainable": True, "epsilon": 0.01, "momentum": 0.9, "axis": -1, "center": True}
    settings |= {"name": "plain721738", "scale": False}
    norm = {"class_name": "BatchNormalization", "config": settings}
    settings = {"name": "td", "trainable": True, "layer": norm}
    wrapper = {"class_name": "TimeDistributed", "config": settings}
    path = tmp_path / "arch.json"
    path.write_text(json.dumps({"class_name": "Sequential", "config": {"layers": [wrapper]}}))
    return path


@pytest.mark.parametrize("command", ["inspect", "export", "check"])
def test_every_command_lists_undecided_layers(run, weights, command):
    result = run(command, weights)
    assert result.exit_code == 1
    assert "plain721738" in result.stdout
    for text in ("may be batch norm", "--config FILE", "no batch-norm layer found"):
        assert text in result.stderr
    assert "may be batch norm" not in run(command, weights, "-q").stderr


def test_the_schema_knows_undecided_layers(run, weights):
    document = json.loads(run("export", weights, "--json").stdout)
    schema = resources.files("bnstat.exchange").joinpath("schema.json").read_text()
    jsonschema.validate(document, json.loads(schema))
    assert document["layers"] == []
    (layer,) = document["undecided"]
    keys = [variable["variable"] for variable in layer["undecided"]]
    assert keys == [f"layers/time_distributed/layer/vars/{number}" for number in range(3)]
    assert [len(variable["values"]) for variable in layer["undecided"]] == [4] * 3


def test_the_architecture_decides(run, weights, config):
    result = run("export", weights, "--config", config, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert "undecided" not in document
    (layer,) = document["layers"]
    assert (layer["name"], layer["gamma"]) == ("plain721738", None)
    assert (layer["epsilon"], layer["momentum"], layer["axis"]) == (0.01, 0.9, -1)
    numbers = [layer[role]["variable"][-1] for role in ("beta", "moving_mean", "moving_variance")]
    assert numbers == ["0", "1", "2"]
    for command in ("inspect", "check"):
        assert run(command, weights, "--config", config).exit_code == 0


def test_diff_and_history_take_it_for_all_their_files(run, tmp_path, weights, config):
    other = write_weights(tmp_path / "o.weights.h5", seed=1)
    assert run("diff", weights, other, "--config", config).exit_code == 1
    assert run("diff", weights, weights, "--config", config).exit_code == 0
    config = config.rename(tmp_path.parent / f"{tmp_path.name}.json")
    assert "plain721738" in run("history", tmp_path, "--config", config).stdout
    assert run("history", tmp_path).exit_code == 1


def test_an_architecture_of_something_else_is_an_error(run, weights, config):
    config.write_text(config.read_text().replace('"scale": false', '"scale": true'))
    result = run("inspect", weights, "--config", config)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "plain721738 has 4 variables, but 3 in the weights" in result.stderr
