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
from tests.cli.files import write_h5
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


@pytest.fixture
def network(tmp_path: Path) -> str:
    return write_h5(tmp_path / "network.h5", usual("b1/bn", seed=1), usual("b2/bn", seed=2))


@pytest.fixture
def other(tmp_path: Path) -> str:
    """The same layers with other values."""
    return write_h5(tmp_path / "other.h5", usual("b1/bn", seed=3), usual("b2/bn", seed=4))


@pytest.mark.parametrize("names", ["keras", "pytorch", "onnx", "flax"])
@pytest.mark.parametrize("ending", ["json", "csv", "npz", "safetensors"])
def test_apply_reads_every_export(
    names: str, ending: str, network: str, other: str, tmp_path: Path
) -> None:
    values, copy = tmp_path / f"values.{ending}", tmp_path / "copy.h5"
    assert run("export", other, "--names", names, "-o", values).exit_code == 0
    result = run("apply", network, values, "-o", copy)
    assert result.exit_code == 0, result.output
    assert bnstat.diff(bnstat.load(other), bnstat.load(copy)).equal


def test_a_map_of_diff_renames_for_export(network: str, tmp_path: Path) -> None:
    names = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean",
             "moving_variance": "running_var"}  # fmt: skip
    arrays = {
        f"features.{place}.{names[role]}": layer.array(role)
        for place, layer in ((1, usual("", seed=1)), (4, usual("", seed=2)))
        for role in names
    }
    np.savez(tmp_path / "port.npz", **arrays)
    mapping = tmp_path / "map.csv"
    assert run("diff", network, tmp_path / "port.npz", "--map", "-o", mapping).exit_code == 0
    assert mapping.read_text() == "b1/bn,features.1\nb2/bn,features.4\n"
    target = tmp_path / "out.safetensors"
    result = run("export", network, "--names", "pytorch", "--map", mapping, "-o", target)
    assert result.exit_code == 0
    assert set(bnstat.load(target).keys()) == {"features.1", "features.4"}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("b1/bn\n", "line 1: is not FROM,TO"),
        ("b1/bn,x\nb3/bn,y\n", "line 2: no layer is called 'b3/bn'"),
        ("b1/bn,x\nb1/bn,y\n", "a second time"),
        ("b1/bn,b2/bn\n", "is the name of two layers"),
        ("b1/bn/gamma,b2/bn/beta\n", "is the name of two tensors"),
        ("b1/bn/alpha,x\n", "line 1: no layer is called 'b1/bn/alpha'"),
        ('b1/bn,"x\n', "is not valid CSV"),
    ],
)
def test_a_wrong_map_is_refused(text: str, what: str, network: str, tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text(text)
    result = run("export", network, "--map", tmp_path / "map.csv")
    assert (result.exit_code, result.stdout) == (2, "")
    assert what in result.stderr


def test_folded(network: str) -> None:
    result = run("export", network, "--folded", "--epsilon", "0.001")
    first = json.loads(result.stdout)["layers"][0]
    scale, shift = bnstat.load(network)[0].scale_and_shift(0.001)
    np.testing.assert_array_equal(np.float32(first["scale"]["values"]), scale)
    np.testing.assert_array_equal(np.float32(first["shift"]["values"]), shift)
