from __future__ import annotations

import io
import json
import signal

import numpy as np
import pytest

from bnstat.exchange import csv, npz
from bnstat.exchange import json as json_output
from bnstat.model import ROLES
from tests.output.models import model, usual

MODEL = model(usual("stem/bn", 8), usual("head/bn", 3, seed=1))


def expected(form):
    if form == "npz":
        file = io.BytesIO()
        npz.dump(MODEL, file)
        return file.getvalue()
    file = io.StringIO()
    {"json": json_output, "csv": csv}[form].dump(MODEL, file)
    return file.getvalue().encode()


@pytest.mark.parametrize(
    ("arguments", "form"),
    [
        ([], "json"),
        (["--json"], "json"),
        (["--csv"], "csv"),
        (["--npz"], "npz"),
        (["--csv", "-o", "-"], "csv"),
    ],
)
def test_standard_output(run, loads, arguments, form):
    loads(MODEL)
    result = run("export", *arguments)
    assert result.exit_code == 0
    if form == "npz":  # unlike a file, a pipe cannot be gone back in
        assert set(np.load(io.BytesIO(result.stdout_bytes))) == {
            f"{bn.name}/{role}" for bn in MODEL for role in ROLES
        }
    else:
        assert result.stdout_bytes == expected(form)
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("name", "arguments", "form"),
    [
        ("stats.json", [], "json"),
        ("stats.csv", [], "csv"),
        ("stats.npz", [], "npz"),
        ("STATS.NPZ", [], "npz"),
        ("stats.txt", [], "json"),
        ("stats", [], "json"),
        ("stats.npz", ["--csv"], "csv"),
    ],
)
def test_a_file(run, loads, tmp_path, name, arguments, form):
    loads(MODEL)
    result = run("export", "-o", tmp_path / name, *arguments)
    assert (result.exit_code, result.output) == (0, "")
    assert (tmp_path / name).read_bytes() == expected(form)


def test_no_values(run, loads):
    loads(MODEL)
    first = json.loads(run("export", "--no-values").stdout)["layers"][0]
    assert first["gamma"] == {"variable": "stem/bn/gamma", "dtype": "float32", "shape": [8]}


def test_json_is_utf8_on_any_terminal(start):
    process = start(
        ["export"],
        model=r"model(usual('\u5c42/bn'))",
        stdout=-1,
        variables={"PYTHONIOENCODING": "ascii"},
    )
    out, _ = process.communicate(timeout=300)
    assert json.loads(out.decode("utf-8"))["layers"][0]["name"] == "层/bn"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15)])
def test_an_interrupted_export_leaves_no_trace(start, tmp_path, number, code):
    process = start(
        ["export", "-o", str(tmp_path / "stats.json")], model="model(usual('bn', 3_000_000))"
    )
    while not list(tmp_path.iterdir()):
        assert process.poll() is None
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == code
    assert err == b""
    assert list(tmp_path.iterdir()) == []
