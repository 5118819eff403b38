from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

import bnstat
from bnstat.exchange import csv
from bnstat.exchange import json as json_output
from tests.cli.files import command_line as run
from tests.output.models import model, usual

MODEL = model(usual("stem/bn", 8), usual("head/bn", 3, seed=1))


def expected(form):
    file = io.StringIO()
    {"json": json_output, "csv": csv}[form].dump(MODEL, file)
    return file.getvalue().encode()


@pytest.mark.parametrize(
    ("options", "form"),
    [
        *((options, "json") for options in ("", "--json", "-o out", "-o out.txt")),
        *((options, "csv") for options in ("--csv -o -", "-o OUT.CSV", "-o out.npz --csv")),
    ],
)
def test_the_format_follows_options_and_endings(run, loads, tmp_path, monkeypatch, options, form):
    monkeypatch.chdir(tmp_path)
    loads(MODEL)
    result = run("export", *options.split())
    assert (result.exit_code, result.stderr) == (0, "")
    files = [path.read_bytes() for path in tmp_path.iterdir()]
    assert (files or [result.stdout_bytes]) == [expected(form)]


def test_no_values(run, loads):
    loads(MODEL)
    first = json.loads(run("export", "--no-values").stdout)["layers"][0]
    assert first["gamma"] == {"variable": "stem/bn/gamma", "dtype": "float32", "shape": [8]}


def test_a_map_renames_for_export_and_diff_writes_it(old: str, tmp_path: Path) -> None:
    mapping, port = tmp_path / "map.csv", tmp_path / "port.safetensors"
    mapping.write_text("a,features.1\nb,features.4\n")
    run("export", old, "--names", "pytorch", "--map", mapping, "-o", port)
    assert set(bnstat.load(port).keys()) == {"features.1", "features.4"}
    result = run("diff", old, port, "--map")
    assert (result.exit_code, result.stdout) == (0, mapping.read_text())


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a\n", "line 1: must be two layer names"),
        ("a,x\nc,y\n", "line 2: no layer is called 'c'"),
        ("a,x\na,y\n", "a second time"),
        ("a,b\n", "is the name of two layers"),
        ("a/gamma,b/beta\n", "is the name of two tensors"),
        ("a/alpha,x\n", "line 1: no layer is called 'a/alpha'"),
        ('a,"x\n', "is not valid CSV"),
    ],
)
def test_a_wrong_map_is_refused(text: str, what: str, old: str, tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text(text)
    result = run("export", old, "--map", tmp_path / "map.csv")
    assert (result.exit_code, result.stdout) == (2, "")
    assert what in result.stderr


def test_folded(old: str) -> None:
    result = run("export", old, "--folded", "--epsilon", "0.001")
    first = json.loads(result.stdout)["layers"][0]
    scale, shift = bnstat.load(old)[0].scale_and_shift(0.001)
    np.testing.assert_array_equal(np.float32(first["scale"]["values"]), scale)
    np.testing.assert_array_equal(np.float32(first["shift"]["values"]), shift)
