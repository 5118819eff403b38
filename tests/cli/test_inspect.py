from __future__ import annotations

import numpy as np
import pytest

from bnstat.model import Explanation
from bnstat.output.terminal.table import text_width
from tests.output.models import layer, model, usual, variable
from tests.terminal import ROOT, in_terminal

RUN = ROOT / "tests/data/digits/run"


def test_a_table(run, loads):
    loads(model(usual("conv1/bn"), usual("conv2/bn")))
    result = run("inspect")
    assert (result.exit_code, result.stderr) == (0, "")
    assert not {"\x1b", "─"} & set(result.stdout)
    head, table, legend = result.stdout.split("\n\n")
    assert head.startswith("path        runs/cnn\n")
    assert [line.split()[0] for line in table.splitlines()] == ["layer", "conv1/bn", "conv2/bn"]
    assert legend.startswith("mean±standard deviation")


def test_values_or_no_values(run, loads):
    loads(model(layer("bn", {"moving_mean": np.float32([0.1, 0.2])})))
    assert "  moving_mean  float32 [2]\n    0  0.1  0.2\n" in run("inspect", "--values").stdout
    assert "  moving_mean  float32  [2]  bn/moving_mean\n" in run("inspect", "--no-values").stdout


def test_verbose(run, loads):
    explanations = [Explanation("conv/kernel", None, None, "no statistics")]
    loads(model(usual("bn"), explain=lambda: explanations))
    assert "conv/kernel" not in run("inspect").stdout
    shown = run("inspect", "-v").stdout
    assert shown.endswith("\n\nvariable     why\nconv/kernel  no statistics\n")


def test_no_layers_and_a_hint(run, loads):
    loads(model(stored={"conv/kernel": variable("conv/kernel", np.ones((3, 4), np.float32))}))
    hint = "pass -v to list every variable, and why the variable is or is not batch norm"
    assert run("inspect").stderr.splitlines() == ["no batch-norm layer found in runs/cnn", hint]
    for options in (["-v"], ["-q"]):
        assert hint not in run("inspect", *options).stderr
    assert hint not in run("export").stderr


def test_colours_on_a_terminal():
    assert "\x1b[1m" in in_terminal(["inspect", str(RUN)], colours=True)
    plot = in_terminal(["inspect", str(RUN), "--plot"], colours=True)
    assert "\x1b[36m" in plot
    assert "└" in plot


def test_real_files(run, real):
    result = run("inspect", real / "brats17-wt32-niftynet-tf1")
    assert result.exit_code == 0
    assert "I  moving statistics still at their initial 0 and 1 (31 layers)\n" in result.stdout
    assert run("inspect", real / "neg-serving-halfplustwo-tf1-savedmodel").exit_code == 1
    result = run("inspect", real / "bad-mlzoo-lfs-savedmodel")
    assert result.exit_code == 2
    assert "git-lfs pointer" in result.stderr


def test_a_plot(run, loads):
    loads(model(usual("conv1/bn"), usual("conv2/bn")))
    shown = run("inspect", "--layer", "conv2/*", "--plot").stdout
    assert "conv1" not in shown
    assert "\nconv2/bn\n\ngamma: " in shown
    assert shown.isascii()


@pytest.mark.parametrize("columns", [40, 50])
@pytest.mark.parametrize(
    "command",
    [
        *(("inspect", RUN), ("history", RUN), ("diff", RUN / "model-0", RUN / "model-400")),
        ("check", ROOT / "tests/data/digits_no_updates/run"),
    ],
)
def test_tables_in_a_pipe_are_as_wide_as_columns_says(run, monkeypatch, command, columns):
    wide = run(*command).stdout.partition("\n\n")[2]
    monkeypatch.setenv("COLUMNS", str(columns))
    narrow = run(*command).stdout.partition("\n\n")[2]
    widths = [max(map(text_width, text.splitlines())) for text in (narrow, wide)]
    assert widths[0] <= columns < widths[1]
    assert "\x1b" not in narrow
