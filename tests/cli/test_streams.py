"""Standard output and files that a command writes to."""

from __future__ import annotations

import os

import pytest

from tests.cli.files import in_child, write_h5
from tests.output.models import model, usual

RUN = "tests/data/digits/run"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    "command",
    [
        *("", "--help", "--version", "inspect --help", f"inspect {RUN}"),
        *(f"inspect --values {RUN}", f"export --json {RUN}", f"export --npz {RUN}"),
        f"export --csv {RUN} -o /dev/full",
    ],
)
def test_a_full_disk(command):
    with open("/dev/full", "wb") as full:
        process = in_child(*command.split(), stdout=full)
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert "No space left on device" in process.stderr


@pytest.mark.parametrize("options", [[], ["--values"], ["--no-values"], ["-v"]])
def test_ascii_streams(tmp_path, options):
    path = write_h5(tmp_path / "m.h5", usual("层/bn"))
    for arguments in ([path, *options], ["层"]):
        process = in_child("inspect", *arguments, env={"PYTHONIOENCODING": "ascii"})
        shown = process.stdout + process.stderr
        assert shown.isascii()
        assert r"\u5c42" in shown


@pytest.mark.parametrize("command", ["export --npz", "scan --parquet", "report"])
def test_binary_output_and_html_are_not_for_a_terminal(run, command, monkeypatch, tmp_path):
    monkeypatch.setattr("bnstat.output.sink.writes_to_terminal", lambda path: path == "-")
    result = run(*command.split(), tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "a terminal cannot show" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    "command", ["inspect", "inspect --values", "export --csv", "check --sarif"]
)
def test_a_file_has_the_same_content(run, loads, tmp_path, command):
    loads(model(usual("bn")))
    result = run(*command.split(), "-o", tmp_path / "out")
    assert (result.exit_code, result.output) == (0, "")
    assert (tmp_path / "out").read_text("utf-8") == run(*command.split()).stdout
