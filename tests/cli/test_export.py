"""`bnstat export`, and `bnstat apply` of what it writes."""

from __future__ import annotations

import io
import json
import signal
from pathlib import Path

import numpy as np
import pytest

import bnstat
from bnstat.exchange import csv, npz
from bnstat.exchange import json as json_output
from bnstat.model import ROLES
from tests.cli.files import command_line as run
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


@pytest.mark.parametrize("names", ["keras", "pytorch", "onnx", "flax"])
@pytest.mark.parametrize("ending", ["json", "csv", "npz", "safetensors"])
def test_apply_reads_every_export(
    names: str, ending: str, old: str, new: str, tmp_path: Path
) -> None:
    values, copy = tmp_path / f"values.{ending}", tmp_path / "copy.h5"
    assert run("export", new, "--names", names, "-o", values).exit_code == 0
    result = run("apply", old, values, "-o", copy)
    assert result.exit_code == 0, result.output
    assert bnstat.diff(bnstat.load(new), bnstat.load(copy)).equal


def test_a_map_of_diff_renames_for_export(old: str, tmp_path: Path) -> None:
    names = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean",
             "moving_variance": "running_var"}  # fmt: skip
    arrays = {
        f"features.{place}.{names[role]}": layer.array(role)
        for place, layer in ((1, usual("", seed=1)), (4, usual("", seed=2)))
        for role in names
    }
    np.savez(tmp_path / "port.npz", **arrays)
    mapping = tmp_path / "map.csv"
    assert run("diff", old, tmp_path / "port.npz", "--map", "-o", mapping).exit_code == 0
    assert mapping.read_text() == "a,features.1\nb,features.4\n"
    target = tmp_path / "out.safetensors"
    result = run("export", old, "--names", "pytorch", "--map", mapping, "-o", target)
    assert result.exit_code == 0
    assert set(bnstat.load(target).keys()) == {"features.1", "features.4"}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a\n", "line 1: is not FROM,TO"),
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
