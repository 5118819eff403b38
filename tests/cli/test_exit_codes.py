"""Exit codes of all commands: 0 done, 1 the answer is "no", 2 the command failed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.files import write_h5
from tests.output.models import layer

READING = ["inspect", "export", "check", "diff {0}", "history", "report", "scan"]


@pytest.fixture(params=["nothing", "damaged"])
def unreadable(request, tmp_path: Path) -> str:
    if request.param == "damaged":
        (tmp_path / "damaged").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    return str(tmp_path / request.param)


@pytest.mark.parametrize("command", READING)
def test_an_unreadable_model_exits_with_2(run, command, sound, unreadable):
    result = run(*command.format(sound).split(), unreadable)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    if command != "scan" or unreadable.endswith("nothing"):
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"error: {unreadable}: ")
    if command.startswith("diff"):
        assert run("diff", unreadable, sound).exit_code == 2


@pytest.mark.parametrize("command", READING)
@pytest.mark.parametrize("kind", ["dense", "empty"])
def test_no_batch_norm_exits_with_1(run, command, kind, tmp_path):
    path = str(tmp_path / "model.h5")
    layers = [layer("dense", {"kernel": np.ones((2, 2))})] if kind == "dense" else []
    write_h5(tmp_path / "model.h5", *layers)
    result = run(*command.format(path).split(), path)
    if command == "scan":
        assert (result.exit_code, result.stdout.splitlines()[-1]) == (
            0,
            "1 model: 1 without batch norm",
        )
        return
    assert result.exit_code == 1
    assert f"no batch-norm layer found in {path}\n" in result.stderr
    if command in ("inspect", "check", "history"):
        assert result.stdout == ""
    if command not in ("inspect", "report"):
        document = json.loads(run(*command.format(path).split(), path, "--json").stdout)
        assert document.get("layers") in ([], 0, None)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("inspct", []),
        ("--nonsense", []),
        ("inspect", ["--nonsense"]),
        ("inspect", ["second"]),
        ("inspect", ["--values", "--no-values"]),
        ("inspect", ["--values", "--plot"]),
        ("inspect", ["--layer", "nothing*"]),
        ("export", ["-o"]),
        ("export", ["--json", "--csv"]),
        ("export", ["--json", "--format", "csv"]),
        ("export", ["--epsilon", "0.1"]),
        ("export", ["--folded"]),
        ("export", ["--folded", "--no-values"]),
        ("export", ["--csv", "--no-values"]),
        ("export", ["--npz", "--no-values"]),
        ("export", ["-o", "stats.csv", "--no-values"]),
        ("export", ["--format", "safetensors", "--no-values"]),
        ("export", ["--names", "caffe"]),
        ("export", ["--map", "nothing.csv"]),
        ("check", ["--threshold", "gamma"]),
        ("check", ["--threshold", "gamma=x"]),
        ("check", ["--threshold", "gama=1"]),
        ("check", ["--threshold", "gamma=0"]),
        ("check", ["--select", "BN999"]),
        ("check", ["--ignore", "nonsense"]),
        ("check", ["--explain", "BN999"]),
        ("check", ["--fail-on", "never"]),
        ("check", ["--json", "--sarif"]),
        ("check", ["--layer", "nothing*"]),
        ("diff", []),
        ("diff {0}", ["--rtol", "-1"]),
        ("diff {0}", ["--atol", "nan"]),
        ("diff {0}", ["--tolerance", "-1"]),
        ("diff {0}", ["--epsilon", "-1"]),
        ("diff {0}", ["--json", "--md"]),
        ("diff {0}", ["--layer", "nothing"]),
        ("history", ["--json", "--csv"]),
        ("history", ["--last", "0"]),
        ("history", ["--role", "mean"]),
        ("history", ["--layer", "nothing"]),
        ("report", ["--epsilon", "0.001"]),
        ("report", ["--drift", "nothing"]),
        ("report {0}", ["--drift", "nothing"]),
        ("scan", ["nowhere"]),
        ("scan", ["--json", "--csv"]),
        ("scan", ["--select", "BN999"]),
        ("scan", ["--engine", "slurm://here"]),
        ("scan", ["--engine", "dask://"]),
        ("scan", ["--engine", "dask://[::1"]),
        ("scan", ["--engine", "ray://here:1"]),
        ("scan", ["--jobs", "-1"]),
        ("scan", ["--config-file", "nowhere.toml"]),
        ("scan", ["--config-file", "a.toml", "--isolated"]),
        ("scan", ["--state", "nowhere/state.db"]),
    ],
)
def test_wrong_usage_exits_with_2(run, command, options, sound, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*command.format(sound).split(), sound, *options)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert "rror: " in result.stderr
