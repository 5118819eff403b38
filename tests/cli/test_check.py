from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from bnstat.cli import main
from tests.cli.files import write_h5
from tests.output.models import layer, usual

DATA = Path(__file__).parents[1] / "data"
START = {"moving_mean": np.zeros(4, np.float32), "moving_variance": np.ones(4, np.float32)}


def run(*args: str) -> Result:
    return CliRunner().invoke(main, ["check", *args])


@pytest.fixture
def sound(tmp_path: Path) -> str:
    return write_h5(tmp_path / "sound.h5", usual("bn"))


@pytest.fixture
def stuck(tmp_path: Path) -> str:
    """A model with an error in `bn`, and something of information in `other`."""
    arrays = {"gamma": np.full(4, 2, np.float32), "beta": np.full(4, 3, np.float32), **START}
    other = usual("other")
    gamma = other.array("gamma").copy()
    gamma[3] = 0
    rest = {role: other.array(role) for role in ("beta", "moving_mean", "moving_variance")}
    return write_h5(
        tmp_path / "stuck.h5", layer("bn", arrays), layer("other", {"gamma": gamma, **rest})
    )


def test_a_sound_model_exits_with_0(sound: str) -> None:
    result = run(sound)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "nothing found"
    assert result.stderr == ""


def test_what_is_found_exits_with_1(stuck: str) -> None:
    result = run(stuck)
    assert result.exit_code == 1
    assert "error BN001 never-updated" in result.stdout
    assert "1 error, 1 info" in result.stdout


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--select", "BN009,BN010"], 0),
        (["--select", "BN009,BN010", "--fail-on", "warning"], 0),
        (["--select", "BN009,BN010", "--fail-on", "info"], 1),
        (["--fail-on", "error"], 1),
        (["--ignore", "never-updated"], 0),
        (["--layer", "other"], 0),
        (["--layer", "b*"], 1),
    ],
)
def test_the_exit_code_follows_the_options(options: list[str], code: int, stuck: str) -> None:
    assert run(stuck, *options).exit_code == code


def test_layers_are_narrowed(stuck: str) -> None:
    result = run(stuck, "--layer", "other", "--json")
    assert {each["layer"] for each in json.loads(result.stdout)["findings"]} == {"other"}


def test_thresholds(sound: str) -> None:
    result = run(sound, "--select", "BN009", "--select", "BN010", "--threshold", "gamma=100")
    assert "BN0" in result.stdout
    assert run(sound, "--threshold", "gamma=0.001").exit_code == 0


@pytest.mark.parametrize(
    "options",
    [
        ["--threshold", "gamma"],
        ["--threshold", "gamma=x"],
        ["--threshold", "gama=1"],
        ["--threshold", "gamma=0"],
        ["--select", "BN999"],
        ["--ignore", "nonsense"],
        ["--explain", "BN999"],
        ["--fail-on", "never"],
        ["--json", "--sarif"],
        ["--layer", "nothing*"],
    ],
)
def test_wrong_usage_exits_with_2_and_a_line(options: list[str], sound: str) -> None:
    result = run(sound, *options)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "rror: " in result.stderr.splitlines()[-1]
    assert isinstance(result.exception, SystemExit)


def test_what_cannot_be_read_exits_with_2(tmp_path: Path) -> None:
    assert run(str(tmp_path / "nothing.h5")).exit_code == 2
    (tmp_path / "cut.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    result = run(str(tmp_path / "cut.h5"))
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


def test_no_batch_norm_exits_with_1(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "dense.h5", layer("dense", {"kernel": np.ones((2, 2))}))
    result = run(path)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "no batch-norm layer found" in result.stderr
    assert json.loads(run(path, "--json").stdout)["findings"] == []


def test_json(stuck: str) -> None:
    document = json.loads(run(stuck, "--json").stdout)
    assert document["counts"]["error"] == 1
    (error,) = (each for each in document["findings"] if each["severity"] == "error")
    assert (error["rule"], error["layer"]) == ("BN001", "bn")


def test_github(stuck: str) -> None:
    lines = run(stuck, "--github").stdout.splitlines()
    assert lines[0].startswith("::error file=")
    assert lines[1].startswith("::notice file=")


def test_sarif_to_a_file(stuck: str, tmp_path: Path) -> None:
    target = tmp_path / "findings.sarif"
    result = run(stuck, "--sarif", "-o", str(target))
    assert (result.exit_code, result.stdout) == (1, "")
    (log,) = json.loads(target.read_text())["runs"]
    assert log["results"][0]["ruleId"] == "BN001"


def test_rules_and_explain_need_no_model() -> None:
    result = run("--rules")
    assert result.exit_code == 0
    assert "BN001" in result.stdout
    for name in ("BN001", "bn001", "never-updated"):
        result = run("--explain", name)
        assert result.exit_code == 0
        assert "UPDATE_OPS" in result.stdout


def test_real_models(real: Path) -> None:
    for truth in sorted(real.glob("*/truth.json")):
        told = json.loads(truth.read_text())
        result = run(str(truth.parent / told["target"]), "--json")
        slug = truth.parent.name
        if told["kind"] in ("unreadable", "index-only"):
            assert result.exit_code == 2, slug
        elif told["kind"] == "no-bn":
            assert result.exit_code == 1, slug
        elif slug in ("brats17-wt32-niftynet-tf1", "brats17-wt32-meta-niftynet-tf1"):
            found = json.loads(result.stdout)["findings"]
            stuck = [each["layer"] for each in found if each["rule"] == "BN001"]
            assert result.exit_code == 1
            assert stuck[0] is None
            assert set(stuck[1:]) == set(told["layers"])
            assert len(stuck) == 32
        else:
            assert result.exit_code == 0, slug
            assert {each["severity"] for each in json.loads(result.stdout)["findings"]} <= {"info"}


def test_the_twin_whose_updates_never_ran() -> None:
    for name, code in (("digits", 0), ("digits_no_updates", 1)):
        for saved in ("run", "saved_model"):
            result = run(str(DATA / name / saved), "--json")
            found = json.loads(result.stdout)["findings"]
            assert result.exit_code == code
            assert [each["rule"] for each in found] == ["BN001"] * 4 * code
