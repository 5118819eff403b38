from __future__ import annotations

import io
import json
import os
import signal
import stat

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


def test_chosen_layers(run, loads):
    loads(MODEL)
    layers = json.loads(run("export", "--layer", "head*").stdout)["layers"]
    assert [bn["name"] for bn in layers] == ["head/bn"]


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


def test_permissions_are_those_of_any_new_file(run, loads, tmp_path):
    loads(MODEL)
    before = os.umask(0o022)
    try:
        run("export", "-o", tmp_path / "stats.json")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "stats.json").stat().st_mode) == 0o644


def test_a_real_file(run, real):
    folder = real / "phasenet-tf1-adam"
    truth = json.loads((folder / "truth.json").read_text())["layers"]
    document = json.loads(run("export", folder).stdout)
    assert {bn["name"] for bn in document["layers"]} == set(truth)
    for bn in document["layers"]:
        for role in ROLES:
            values = np.float32(bn[role]["values"]).astype(float)
            assert bn[role]["shape"] == truth[bn["name"]][role]["shape"]
            np.testing.assert_allclose(values.mean(), truth[bn["name"]][role]["mean"], rtol=1e-9)
            assert [values.min(), values.max()] == [
                truth[bn["name"]][role]["min"],
                truth[bn["name"]][role]["max"],
            ]
