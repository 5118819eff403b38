from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from bnstat.cli import main
from tests.cli.files import write_h5
from tests.output.models import layer, usual


def run(*args: str) -> Result:
    return CliRunner().invoke(main, ["diff", *args])


@pytest.fixture
def old(tmp_path: Path) -> str:
    return write_h5(tmp_path / "old.h5", usual("a", seed=1), usual("b", seed=2))


@pytest.fixture
def near(tmp_path: Path) -> str:
    """The same, but for one variance of `b` that is larger by 0.001."""
    arrays = {role: usual("b", seed=2).array(role).copy() for role in usual("b").variables}
    arrays["moving_variance"][3] += np.float32(0.001)
    return write_h5(tmp_path / "near.h5", usual("a", seed=1), layer("b", arrays))


def test_equal_models_exit_with_0(old: str) -> None:
    result = run(old, old)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == (
        "no difference: 2 batch-norm layers are equal; other weights were not compared"
    )


def test_a_difference_exits_with_1(old: str, near: str) -> None:
    result = run(old, near)
    assert result.exit_code == 1
    assert "1 of 8" in result.stdout
    assert result.stdout.splitlines()[-1] == "1 of 2 layers differ"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--atol", "0.01"], 0),
        (["--atol", "0.0001"], 1),
        (["--rtol", "0.1"], 0),
        (["--rtol", "1e-5"], 1),
        (["--layer", "a"], 0),
        (["--layer", "b"], 1),
    ],
)
def test_tolerances_and_layers(options: list[str], code: int, old: str, near: str) -> None:
    assert run(old, near, *options).exit_code == code


def test_all_shows_equal_layers(old: str, near: str) -> None:
    def names(*options: str) -> set[str]:
        return {
            line.split()[0] for line in run(old, near, *options).stdout.splitlines()[4:] if line
        }

    assert "a" not in names()
    assert {"a", "b"} <= names("--all")


def test_json(old: str, near: str) -> None:
    document = json.loads(run(old, near, "--json").stdout)
    assert document["equal"] is False
    assert [layer_["equal"] for layer_ in document["layers"]] == [True, False]


def test_markdown(old: str, near: str, tmp_path: Path) -> None:
    target = tmp_path / "diff.md"
    result = run(old, near, "--md", "-o", str(target))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "| b | moving variance | 1 of 8 |" in target.read_text()


def test_two_containers_of_the_same_weights(real: Path) -> None:
    result = run(
        str(real / "ecg-keras3/best_model.keras"), str(real / "ecg-weights-h5/model.weights.h5")
    )
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("no difference: 3 batch-norm layers are")
