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
        assert result.exit_code == 0
        assert result.stdout.splitlines()[-1] == "1 model: 1 without batch norm"
        return
    assert result.exit_code == 1
    assert f"no batch-norm layer found in {path}\n" in result.stderr
    if command in ("inspect", "check", "history"):
        assert result.stdout == ""
    if command not in ("inspect", "report"):
        document = json.loads(run(*command.format(path).split(), path, "--json").stdout)
        assert document.get("layers") in ([], 0, None)


WRONG = {
    "inspct": "",
    "--nonsense": "",
    "inspect": "--nonsense | second | --values --no-values | --values --plot | --layer nothing* | "
    "--max-download much | --storage-option key",
    "export": "-o | --json --csv | --json --format csv | --epsilon 0.1 | --folded | "
    "--folded --no-values | --csv --no-values | --npz --no-values | -o stats.csv --no-values | "
    "--format safetensors --no-values | --names caffe | --map nothing.csv",
    "check": "--threshold gamma | --threshold gamma=x | --threshold gama=1 | --threshold gamma=0 | "
    "--select BN999 | --ignore nonsense | --explain BN999 | --fail-on never | --json --sarif | "
    "--layer nothing*",
    "diff": "",
    "diff {0}": "--rtol -1 | --atol nan | --tolerance -1 | --epsilon -1 | --json --md | "
    "--layer nothing",
    "history": "--json --csv | --last 0 | --role mean | --layer nothing",
    "report": "--epsilon 0.001 | --drift nothing",
    "report {0}": "--drift nothing",
    "scan": "nowhere | --json --csv | --select BN999 | --engine slurm://here | --engine dask:// | "
    "--engine dask://[::1 | --engine ray://here:1 | --jobs -1 | --config-file nowhere.toml | "
    "--config-file a.toml --isolated | --state nowhere/state.db",
}


@pytest.mark.parametrize(
    ("command", "options"),
    [(command, options) for command, lines in WRONG.items() for options in lines.split(" | ")],
)
def test_wrong_usage_exits_with_2(run, command, options, sound, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*command.format(sound).split(), sound, *options.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert "rror: " in result.stderr
