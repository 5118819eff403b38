from __future__ import annotations

import csv
import io
import json
import os
import signal
import sqlite3
from contextlib import closing
from operator import itemgetter
from pathlib import Path

import jsonschema
import pytest

from tests.builders.signals import started
from tests.cli.files import in_child
from tests.scanning.stores import DATA, RUN, copied, h5, store
from tests.terminal import ROOT, in_terminal

SCHEMA = json.loads((ROOT / "bnstat/output/scan_schema.json").read_text())
BAD = DATA / "digits_no_updates/saved_model"


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A store with models that are sound, wrong, and broken, and names that do something."""
    root = tmp_path / "store"
    copied(RUN, root / "run")
    copied(BAD, root / "bad")
    h5(root / "=1+1|<b>\x1b[31m\n.h5")
    whole = h5(root / "cut.h5").read_bytes()
    (root / "cut.h5").write_bytes(whole[: len(whole) // 2])
    return root


def objects(text: str) -> list[dict]:
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        jsonschema.validate(line, SCHEMA)
    return sorted(lines, key=itemgetter("path"))


def test_json_lines(run, mixed: Path, tmp_path: Path) -> None:
    result = run("scan", mixed, "--json")
    assert result.exit_code == 1
    lines = {os.path.relpath(line["path"], mixed): line for line in objects(result.stdout)}
    assert len(lines) == 8
    assert lines["bad"]["worst"] == "warning"
    assert lines["bad"]["findings"] == {"BN001": 4}
    assert lines["cut.h5"]["error"]["kind"] == "damaged"
    assert lines["run/model-100"]["step"] == 100
    assert "8 models: 5 sound, 1 with warnings, 1 with info, 1 not readable" in result.stderr
    assert "BN001" in result.stderr
    assert result.stdout.isascii()
    quiet = run("scan", mixed, "--json", "-q", "-o", tmp_path / "scan.jsonl")
    assert (quiet.stdout, quiet.stderr) == ("", "")
    assert (tmp_path / "scan.jsonl").read_text() == result.stdout


def test_csv_and_parquet_equal_the_json(run, mixed: Path, tmp_path: Path) -> None:
    lines = objects(run("scan", mixed, "--json").stdout)
    reader = csv.DictReader(io.StringIO(run("scan", mixed, "--csv").stdout))
    rows = sorted(reader, key=itemgetter("path"))
    assert [int(row["layers"]) for row in rows] == [line["layers"] for line in lines]
    assert {row["error"] for row in rows} == {"", "damaged"}
    assert "BN001:4" in {row["findings"] for row in rows}
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    assert run("scan", mixed, "--parquet", "-o", tmp_path / "s.parquet").exit_code == 1
    table = parquet.read_table(tmp_path / "s.parquet").to_pylist()
    names = ("checkpoint", "step", "format", "writer", "layers", "channels", "worst", "rule")
    same = itemgetter(*names)
    for row, line in zip(sorted(table, key=itemgetter("path")), lines, strict=True):
        assert dict(row["findings"]) == line["findings"]
        assert row["error"] == (line["error"] or {"kind": None})["kind"]
        assert same(row) == same(line)


def test_names_are_harmless_in_every_format(run, mixed: Path) -> None:
    for form in ("--json", "--csv", "--md", "-q"):
        text = run("scan", mixed, form).stdout
        assert "\x1b" not in text
        assert "<b>" not in text or form != "--md"
        assert len(text.splitlines()) < 20


def test_markdown(run, mixed: Path) -> None:
    lines = run("scan", mixed, "--md").stdout.splitlines()
    assert lines[0] == "| model | format | layers | worst finding |"
    table = lines[2 : lines.index("")]
    assert len(table) == 8
    assert {line.replace("\\|", "").count("|") for line in table} == {5}
    assert any("damaged: " in line for line in table)
    assert "- BN001 never-updated: 2" in lines


def test_text_in_a_terminal(mixed: Path) -> None:
    output = in_terminal(["scan", str(mixed)], folder=mixed)
    lines = output.rstrip().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("tf1-checkpoint" in line for line in lines) == 5
    assert any(line.startswith("damaged ") and line.endswith("cut.h5") for line in lines)
    assert "    is truncated: " in output
    assert "8 models: 5 sound" in output


def test_text_in_a_pipe_and_in_a_few_columns(run, mixed: Path, monkeypatch) -> None:
    lines = run("scan", mixed).stdout.splitlines()
    assert lines.index("") == 9
    assert any(str(mixed / "cut.h5: is truncated") in line for line in lines)
    monkeypatch.setenv("COLUMNS", "3")
    assert "damaged" in run("scan", mixed).stdout


CODES = {
    0: "--ignore BN001 --exclude cut.h5 | --exclude bad --exclude cut.h5 | "
    "--include run --fail-on info --newest | --include *-400",
    1: "--ignore BN001 | --exclude cut.h5 | --exclude bad --exclude cut.h5 --fail-on info | "
    "--include run --fail-on info | --include nothing",
}


@pytest.mark.parametrize("code", CODES)
def test_the_exit_code_follows_the_options(run, code: int, mixed: Path) -> None:
    for options in CODES[code].split(" | "):
        assert run("scan", mixed, *options.split()).exit_code == code, options


@pytest.mark.slow
def test_ctrl_c_keeps_results_and_the_next_scan_continues(tmp_path: Path) -> None:
    root = store(tmp_path / "store", 200)
    state = tmp_path / "state.db"
    arguments = ["scan", root, "--json", "--state", state]
    process = started("-m", "bnstat", *arguments, text=True)
    before = [process.stdout.readline() for _ in range(40)]
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGINT
    assert errors == ""
    assert len(before) + len(rest.splitlines()) < 1200
    with closing(sqlite3.connect(state)) as base:
        (kept,) = base.execute("select count(*) from models").fetchone()
    assert 40 <= kept < 1200
    again = in_child(*arguments)
    assert again.stderr.startswith("1,200 models: 1,000 sound, 200 with info")
    assert len({line["path"] for line in objects(again.stdout)}) == 1200
