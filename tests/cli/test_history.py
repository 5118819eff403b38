from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from tests.cli.files import command_line, write_h5
from tests.output.models import usual

run = partial(command_line, "history")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five epochs; `b` does not change after the third."""
    for epoch in range(1, 6):
        layers = usual("a", seed=epoch), usual("b", seed=min(epoch, 3) + 10)
        write_h5(tmp_path / f"model-{epoch}.h5", *layers)
    return tmp_path


def test_shows_a_row_for_each_layer_and_role(folder: Path) -> None:
    result = run(folder)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[1] == "checkpoints  5: model-1.h5 to model-5.h5"
    assert sum("moving variance" in line for line in lines[:12]) == 2
    finding = "nothing has changed since model-3.h5 (2 intervals), but other layers have"
    assert finding in result.stdout


def test_the_last_ones(folder: Path) -> None:
    document = json.loads(run(folder, "--last", "2", "--json").stdout)
    assert [item["name"] for item in document["checkpoints"]] == ["model-4.h5", "model-5.h5"]
    everything = json.loads(run(folder, "--last", "99", "--json").stdout)
    assert len(everything["checkpoints"]) == 5


def test_layers_and_roles(folder: Path) -> None:
    options = ("--layer", "a", "--role", "beta", "--role", "gamma", "--json")
    tracks = json.loads(run(folder, *options).stdout)["tracks"]
    assert [(item["layer"], item["role"]) for item in tracks] == [("a", "gamma"), ("a", "beta")]


def test_a_damaged_checkpoint_is_skipped(folder: Path) -> None:
    damaged = folder / "model-3.h5"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    result = run(folder, "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert len(document["checkpoints"]) == 4
    (skipped,) = document["skipped"]
    assert skipped["name"] == "model-3.h5"
    (line,) = result.stderr.splitlines()
    assert line.startswith("skipped: ")
    assert "model-3.h5" in line


def test_event_files(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    logdir = tmp_path / "logs"
    result = run(folder, "--tensorboard", logdir)
    assert result.stdout == run(folder).stdout
    hint = f"to view it, run tensorboard --logdir {logdir}"
    assert result.stderr == f"wrote a log for TensorBoard; {hint}\n"
    (file,) = (logdir / "bnstat").iterdir()
    assert b"a/moving_variance" in file.read_bytes()
    assert run(folder, "--tensorboard", logdir, "-q").stderr == ""


def test_event_files_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "logs").write_text("a file")
    result = run(folder, "--tensorboard", tmp_path / "logs")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
