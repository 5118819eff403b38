from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.cli.files import command_line, write_h5
from tests.output.page.written import Shown
from tests.terminal import ROOT

DATA = ROOT / "tests/data"

run = partial(command_line, "report")


def test_one_model(old: str, tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    result = run(old, "-o", target)
    assert (result.exit_code, result.stdout) == (0, "")
    page = Shown(target.read_text(encoding="utf-8"))
    assert [row["name"] for row in page.data["rows"]] == ["a", "b"]
    assert page.data["kind"] == "model"
    page = Shown(run(old, "--layer", "b").stdout)
    assert [row["name"] for row in page.data["rows"]] == ["b"]


def test_two_models(old: str, new: str) -> None:
    result = run(old, new)
    assert result.exit_code == 0
    page = Shown(result.stdout)
    assert page.data["kind"] == "difference"
    assert [row["change"]["verdict"] for row in page.data["rows"]] == ["same", "different"]
    assert "1 of 2 layers differ" in page.all("p", id="headline")


def test_layers_that_were_folded(folded: tuple[str, str]) -> None:
    result = run(*folded, "--epsilon", "0.001", "-q")
    assert (result.exit_code, result.stderr) == (0, "")
    page = Shown(result.stdout)
    headline = "no difference in effect within 1e-06: 1 folded; other weights were not compared"
    assert page.all("p", id="headline") == [headline]
    (row,) = page.data["rows"]
    assert row["folded"] == "bn -> conv.weight + conv.bias"
    assert run(*folded).exit_code == 1
    assert run(folded[0], "--epsilon", "0.001").exit_code == 2


def test_a_training_folder_and_several_paths_are_runs(old: str, new: str) -> None:
    pages = [Shown(run(*paths).stdout) for paths in ([DATA / "digits/run"], [old, new, old])]
    assert [page.data["kind"] for page in pages] == ["history"] * 2
    steps, names = (page.data["checkpoints"] for page in pages)
    assert [checkpoint["step"] for checkpoint in steps] == [0, 100, 200, 300, 400]
    assert [checkpoint["name"] for checkpoint in names] == [old, new, old]


def test_one_checkpoint_of_a_folder() -> None:
    for options in (("--step", "200"), ("--checkpoint", "model-200")):
        page = Shown(run(DATA / "digits/run", *options).stdout)
        assert page.data["kind"] == "model"
        assert "200" in page.all("dd")


def test_each_model_without_batch_norm_is_reported_once(tmp_path: Path) -> None:
    paths = [write_h5(tmp_path / f"{number}.h5") for number in range(3)]
    errors = run(*paths).stderr.splitlines()
    assert errors == [f"no batch-norm layer found in {path}" for path in paths]


def test_a_damaged_checkpoint_is_reported(tmp_path: Path) -> None:
    for source in (DATA / "digits/run").iterdir():
        content = source.read_bytes()
        if source.name == "model-200.data-00000-of-00001":
            content = content[:100]
        (tmp_path / source.name).write_bytes(content)
    result = run(tmp_path)
    assert result.exit_code == 0
    assert "skipped: " in result.stderr
    assert len(Shown(result.stdout).data["checkpoints"]) == 4


def test_the_statistics_of_data(old: str, tmp_path: Path) -> None:
    from bnstat.estimate.drift import Drift, LayerDrift
    from bnstat.output import drift

    numbers = np.array([1, np.nan, np.inf, 0, 0.1, 5, 6, 7])
    measured = LayerDrift("b", *[numbers + step for step in range(7)], state="shifted")
    lines = drift.json_lines(Drift((measured,), {}, 100, None), old)
    (tmp_path / "drift.json").write_text("".join(lines))
    page = Shown(run(old, "--drift", tmp_path / "drift.json").stdout)
    row = page.data["rows"][1]["measured"]
    assert page.array(row["mean"]).tobytes() == measured.mean.tobytes()
    assert page.array(row["variance"]).tobytes() == measured.variance.tobytes()


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"layers": 3}', '{"layers": [{"name": "b"}]}', "\xff"),
        '{"layers": [{"name": 1, "state": "", "mean": [], "variance": [], "divergences": []}]}',
        '{"layers": [{"name": "b", "state": "", "mean": [1], "variance": [], "divergences": []}]}',
        '{"layers": [{"name": "b", "state": "", "mean": ["x"], "variance": [1], '
        '"divergences": [1]}]}',
        "[" * 100_000,
    ],
)
def test_invalid_drift_documents_are_refused(text: str, old: str, tmp_path: Path) -> None:
    (tmp_path / "drift.json").write_text(text, encoding="latin-1")
    target = tmp_path / "report.html"
    result = run(old, "--drift", tmp_path / "drift.json", "-o", target)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert not target.exists()
