from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import bnstat
from tests.builders.oracle import same_bits
from tests.cli.files import write_h5
from tests.output.models import layer
from tests.terminal import ROOT

HEALTHY = ROOT / "tests/data/digits/saved_model"
BROKEN = ROOT / "tests/data/digits_no_updates/saved_model"


@pytest.fixture
def h5(tmp_path):
    moments = dict.fromkeys(("moving_mean", "moving_variance"), np.ones(3, "f4"))
    arrays = {"gamma": np.arange(3, dtype="f4"), **moments}
    return Path(write_h5(tmp_path / "m.h5", *(layer(name, arrays) for name in ("a", "b\x1b[31m"))))


@pytest.mark.parametrize("form", ["json", "csv", "npz"])
def test_export_edit_apply(run, tmp_path, form):
    exported = tmp_path / f"values.{form}"
    assert run("export", HEALTHY, "-o", exported).exit_code == 0
    result = run("apply", BROKEN, exported, "-o", tmp_path / "copy")
    assert "80 of 160 values new" in result.stdout
    assert result.stderr == ""
    assert run("diff", HEALTHY, tmp_path / "copy").exit_code == 0
    assert run("check", tmp_path / "copy").exit_code == 0


@pytest.mark.parametrize("where", [["--in-place"], ["-o", "c.h5"]])
def test_missing_values_are_kept(run, h5, tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    old = bnstat.load(h5, eager=True)
    (tmp_path / "v.csv").write_text("layer,channel,gamma\na,0,7\na,1,8\na,2,9\n")
    result = run("apply", h5, "v.csv", *where)
    assert "1 layer written, 3 of 3 values new; 1 layer unchanged" in result.stdout
    new = bnstat.load(h5 if where == ["--in-place"] else "c.h5")
    assert new["a"].gamma.tolist() == [7, 8, 9]
    assert same_bits(new["a"].moving_mean, old["a"].moving_mean)
    assert same_bits(new[1].gamma, old[1].gamma)


def test_layers_and_roles(run, h5, tmp_path):
    run("export", h5, "-o", tmp_path / "v.json")
    text = (tmp_path / "v.json").read_text().replace("[1.0, 1.0, 1.0]", "[5, 5, 5]")
    (tmp_path / "v.json").write_text(text)
    options = ("--layer", "a", "--role", "moving_mean", "--json")
    result = run("apply", h5, tmp_path / "v.json", "-o", tmp_path / "c.h5", *options)
    document = json.loads(result.stdout)
    (layer,) = document["layers"]
    assert (layer["name"], list(layer["roles"]), document["moved"]) == ("a", ["moving_mean"], 3)
    assert layer["roles"]["moving_mean"]["largest"] == 4
    assert (document["output"], len(document["untouched"])) == (str(tmp_path / "c.h5"), 1)


def test_the_same_values_are_noted(run, h5, tmp_path):
    result = run("apply", h5, h5, "-o", tmp_path / "c.h5")
    assert "MODEL already has these values; nothing changed" in result.stderr
    assert (tmp_path / "c.h5").read_bytes() == h5.read_bytes()
    quiet = run("apply", h5, h5, "-o", tmp_path / "d.h5", "-q")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")


def test_layers_that_are_called_otherwise(run, h5, tmp_path):
    values = tmp_path / "v.h5"
    values.write_bytes(h5.read_bytes().replace(b"\x1b[31m", b"\x1b[32m"))
    result = run("apply", h5, values, "-o", tmp_path / "c.h5")
    assert "by position and shape" in result.stdout
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("{h5} {h5}", "pass either -o COPY or --in-place"),
        ("{h5} {h5} -o c --in-place", "pass either -o COPY or --in-place"),
        ("{h5} {h5} -o c --role mean", "'mean' is not one of 'gamma'"),
        ("{h5} {h5} -o {h5}", "is the model itself"),
        ("{h5} nothing -o c", "nothing: no such file"),
        ("nothing {h5} -o c", "nothing: no such file"),
        ("{h5} {h5} -o c --layer x", "has no values for the chosen"),
        ("{h5} {h5} -o no/where/c", "the folder no/where does not exist"),
    ],
)
def test_errors(run, h5, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = run("apply", *arguments.format(h5=h5).split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.h5"]
