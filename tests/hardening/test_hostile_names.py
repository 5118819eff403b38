"""Names made to harm a terminal, a browser, a spreadsheet or a parser."""

from __future__ import annotations

import json
import math
from pathlib import Path

import h5py
import numpy as np
import pytest

import bnstat
from tests.builders import effort
from tests.fuzz import handmade
from tests.hardening.support import command, layers, write
from tests.terminal import in_terminal

HOSTILE = {
    "an escape": "\x1b[2J\x1b]0;owned\x07\x9b31m",
    "markup": "[bold red]x[/bold red][link=file:///etc/passwd]y[/link]",
    "a right-to-left override": "safe\u202egnp.exe\u2066\u200f",
    "lines": "a\r\nb\nc\u2028d\x85e\x0bf",
    "a formula": '=HYPERLINK("http://x","y")',
    "another formula": "@SUM(1+1)*cmd|' /C calc'!A0",
    "a tab": "\t=1+1",
    "a backspace": "abc\x08\x08\x08xyz\x7f",
    "bytes that are not text": "\udcff\udcfe",
    "a zero": "a\x00b",
    "quotes": "\"'`$(touch x);|&<script>alert(1)</script>",
    "combining": "Z" + "\u0301" * 300,
    "wide": "🏴‍☠️漢字" * 40,
    "percent": "%s%n%d{0}{x}",
    "dots": "../../etc/passwd",
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints with a layer of each such name, all with findings."""
    folder = tmp_path_factory.mktemp("run")
    for step in range(2):
        tensors = {
            f"{name}/{role}": array + step
            for name in HOSTILE.values()
            for role, array in handmade.values().items()
        }
        for name in HOSTILE.values():
            tensors[f"{name}/moving_variance"] = np.array([-1.0, 0.0, np.nan]) * (step + 1)
        write(folder, handmade.bundle(tensors, prefix=f"m-{step}"))
    assert len(bnstat.load(folder)) == len(HOSTILE)
    return folder


TEXTS = (
    "inspect {0}",
    "inspect {0} --values",
    "inspect {0} --no-values -v",
    "inspect {0} --layer nothing",
    "check {0}",
    "check {0} --github",
    "diff {0}/m-0 {0}/m-1 --all",
    "diff {0}/m-0 {0}/m-1 --md",
    "history {0}",
    "history {0} --csv",
    "export {0} --csv",
)


JSON = (
    "export {0}",
    "check {0} --json",
    "check {0} --sarif",
    "history {0} --json",
    "diff {0}/m-0 {0}/m-1 --json",
)


@pytest.mark.parametrize("line", TEXTS + JSON)
def test_hostile_names_in_text(line: str, hostile: Path) -> None:
    result = command(*line.format(hostile).split())
    assert b"Traceback" not in result.stderr
    if line in JSON:
        json.loads(result.stdout)
    for shown_line in (result.stdout + result.stderr).decode().split("\n"):
        assert shown_line.isprintable(), repr(shown_line)


@pytest.mark.parametrize("line", ["inspect {0}", "check {0}", "history {0}"])
def test_hostile_names_at_a_terminal(line: str, hostile: Path) -> None:
    shown = in_terminal(line.format(hostile).split())
    assert "Traceback" not in shown
    for shown_line in shown.split("\n"):
        assert shown_line.isprintable(), repr(shown_line)
    result = command(*line.format(hostile).split(), env={"FORCE_COLOR": "1"})
    assert b"\x1b[2J" not in result.stdout
    assert b"\x1b]" not in result.stdout


def test_hostile_names_are_exact_in_json_and_npz(hostile: Path, tmp_path: Path) -> None:
    model = bnstat.load(hostile)
    assert set(model.keys()) == set(HOSTILE.values())
    exported = json.loads(command("export", hostile).stdout)
    assert [layer["name"] for layer in exported["layers"]] == model.keys()
    target = tmp_path / "x.npz"
    assert command("export", hostile, "-o", target).returncode == 0
    with np.load(target, allow_pickle=False) as arrays:
        assert len(arrays.files) == 4 * len(model)
        for layer in model:
            for role in handmade.ROLES:
                # Names in a zip cannot contain zero bytes or invalid text.
                if layer.name not in (HOSTILE["a zero"], HOSTILE["bytes that are not text"]):
                    array = arrays[f"{layer.name}/{role}"]
                    np.testing.assert_array_equal(array, layer.array(role))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["bundle", "hdf5", "config"])
def test_a_name_of_ten_megabytes(where: str, tmp_path: Path) -> None:
    name = "n" * (10 << 20)
    if where == "bundle":
        path = write(tmp_path, handmade.bundle(layers(name)))
    else:
        path = tmp_path / ("m.keras" if where == "config" else "m.weights.h5")
        config = handmade.config()
        config["config"]["layers"][0]["config"]["name"] = name

        def fill(file: h5py.File) -> None:
            for index, array in enumerate(handmade.values().values()):
                file[f"layers/batch_normalization/vars/{index}"] = array
            if where == "hdf5":
                file.move("layers/batch_normalization", f"layers/{name}")

        content = handmade.keras_archive(config) if where == "config" else handmade.hdf5(fill)
        path.write_bytes(content)
    seconds = math.ceil(effort.LOOPS * effort.loop())
    limit = ["prlimit", "--as=1500000000", f"--cpu={seconds}"]
    # OpenBLAS reserves memory for each processor.
    one_thread = {"OPENBLAS_NUM_THREADS": "1"}
    for line in ("inspect", "inspect --values", "inspect --no-values -v", "check", "export --csv",
                 "export --npz", "export --json", "history"):  # fmt: skip
        result = command(*line.split(), path, prefix=limit, env=one_thread)
        assert b"Traceback" not in result.stderr, result.stderr[-2000:]
        assert result.returncode in (0, 1, 2), line
        assert len(result.stderr) < 10_000
        assert result.stdout or result.stderr.startswith(b"error: ")
        if line.partition(" ")[0] != "export":
            assert len(result.stdout) < 100_000, line
        elif line.endswith("json") and result.returncode == 0:
            assert json.loads(result.stdout)["schema"] == 1
