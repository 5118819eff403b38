from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bnstat.checks import MODEL_RULES
from tests.cli.files import command_line, write_h5
from tests.compare.ports import arrays_of
from tests.output.models import layer, usual

DATA = Path(__file__).parents[1] / "data"
START = {"moving_mean": np.zeros(4, np.float32), "moving_variance": np.ones(4, np.float32)}

run = partial(command_line, "check")


@pytest.fixture
def stuck(tmp_path: Path) -> str:
    """A model with a warning about `bn`, and something of information in `other`."""
    arrays = {"gamma": np.full(4, 2, np.float32), "beta": np.full(4, 3, np.float32), **START}
    others = arrays_of(usual("other"))
    others["gamma"][3] = 0
    return write_h5(tmp_path / "stuck.h5", layer("bn", arrays), layer("other", others))


CODES = {
    0: "--select BN009,BN010 | --select BN009,BN010 --fail-on warning | --fail-on error | "
    "--ignore never-updated | --layer other",
    1: " | --select BN009,BN010 --fail-on info | --layer b*",
}


@pytest.mark.parametrize("code", CODES)
def test_the_exit_code_follows_the_options(code: int, stuck: str) -> None:
    for options in CODES[code].split(" | "):
        assert run(stuck, *options.split()).exit_code == code, options


def test_json(stuck: str) -> None:
    document = json.loads(run(stuck, "--json").stdout)
    assert document["counts"] == {"error": 0, "warning": 2, "info": 1}
    warnings = [finding for finding in document["findings"] if finding["severity"] == "warning"]
    found = [(finding["rule"], finding["layer"]) for finding in warnings]
    assert found == [("BN001", None), ("BN001", "bn")]
    assert document["trained_with"] == "unknown"
    reason = "no bias is added right before a layer with a beta"
    assert document["evidence"]["file"]["reason"] == reason


def test_rules_and_explain_need_no_model() -> None:
    result = run("--rules")
    assert result.exit_code == 0
    assert "BN001" in result.stdout
    for name in ("BN001", "bn001", "never-updated"):
        result = run("--explain", name)
        assert result.exit_code == 0
        assert "UPDATE_OPS" in result.stdout


GRAVE = {
    "brats17-wt32-niftynet-tf1": "BN001",
    "brats17-wt32-meta-niftynet-tf1": "BN018",
    # After 246 steps, too few for the variances.
    "facecls-tiny": "BN003",
}
"""A set of real files -> the only rule with an error or a warning."""


def test_real_models(real: Path) -> None:
    codes = {"unreadable": 2, "index-only": 2, "no-bn": 1}
    for truth in sorted(real.glob("*/truth.json")):
        expected, slug = json.loads(truth.read_text()), truth.parent.name
        result = run(truth.parent / expected["target"], "--json")
        rules = {rule for start, rule in GRAVE.items() if slug.startswith(start)}
        assert result.exit_code == codes.get(expected["kind"], int(bool(rules))), slug
        if expected["kind"] not in codes:
            found = json.loads(result.stdout)["findings"]
            grave = [finding for finding in found if finding["severity"] != "info"]
            assert {finding["rule"] for finding in grave} == rules, slug
            if rules == {"BN001"}:
                stuck = {finding["layer"] for finding in grave}
                assert stuck == {None, *expected["layers"]}


@pytest.mark.parametrize(
    ("path", "rules", "mode", "evidence"),
    [
        ("digits/run", [], "batch-statistics", [3, 6, 6, 0]),
        ("digits/saved_model", [], "unknown", None),
        ("digits_no_updates/run", ["BN018"], "batch-statistics", [3, 6, 0, 0]),
        ("digits_no_updates/saved_model", ["BN001"] * 4, "unknown", None),
    ],
)
def test_the_twin_whose_updates_never_ran(path, rules, mode, evidence) -> None:
    result = run(DATA / path, "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == bool(rules)
    assert [finding["rule"] for finding in document["findings"]] == rules
    assert document["trained_with"] == mode
    names = ("graph_layers", "updates", "updates_run", "layers_read")
    assert evidence in (None, [document["evidence"]["file"][name] for name in names])


def test_the_worst_exit_code_of_several_models(sound: str, stuck: str, tmp_path: Path) -> None:
    assert run(sound, sound).exit_code == 0
    result = run(sound, stuck)
    assert result.exit_code == 1
    assert result.stdout == f"{run(sound).stdout}\n{run(stuck).stdout}"
    result = run(stuck, str(tmp_path / "nothing.h5"), sound)
    assert result.exit_code == 2
    assert result.stdout == run(stuck, sound).stdout
    assert result.stderr.startswith(f"error: {tmp_path / 'nothing.h5'}: ")
    assert len(result.stderr.splitlines()) == 1


def test_several_models_in_documents(sound: str, stuck: str) -> None:
    document = json.loads(run(sound, stuck, "--json").stdout)
    assert document["models"] == [json.loads(run(path, "--json").stdout) for path in (sound, stuck)]
    assert document["errors"] == []
    (log,) = json.loads(run(sound, stuck, stuck, "--sarif").stdout)["runs"]
    findings = json.loads(run(stuck, "--sarif").stdout)["runs"][0]["results"]
    assert log["results"] == findings * 2
    lines = run(sound, stuck, "--github").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["::warning", "::warning", "::notice"]


def test_documents_list_errors(stuck: str) -> None:
    document = json.loads(run(stuck, "a,b\n.h5", "--json").stdout)
    assert len(document["models"]) == 1
    (error,) = document["errors"]
    assert error["path"] == "a,b\n.h5"
    assert error["error"].startswith("a,b\\n.h5: ")
    for paths in ([stuck, "a,b\n.h5"], ["a,b\n.h5"]):
        result = run(*paths, "--github")
        assert result.exit_code == 2
        first = result.stdout.splitlines()[0]
        assert first.startswith("::error file=a%2Cb\\n.h5,title=unreadable::a,b\\n.h5: ")
        assert result.stdout.count("title=unreadable") == 1


def test_a_model_without_batch_norm_can_be_allowed(sound: str, stuck: str, tmp_path: Path) -> None:
    dense = write_h5(tmp_path / "dense.h5", layer("dense", {"kernel": np.ones((2, 2))}))
    assert run(dense, sound).exit_code == 1
    assert run(dense, sound, "--allow-none").exit_code == 0
    assert run(dense, "--allow-none").exit_code == 0
    assert run(dense, stuck, "--allow-none").exit_code == 1
    assert run(dense, stuck).stdout == run(stuck).stdout


def test_the_projects_settings(stuck: str, tmp_path: Path) -> None:
    config = tmp_path / "bnstat.toml"
    config.write_text('ignore = ["BN001"]\nthresholds.gamma = 1e-30')
    assert run(stuck).exit_code == 0
    assert run(stuck, "--isolated").exit_code == 1
    assert run(stuck, "--select", "BN001").exit_code == 1
    assert run(stuck, "--fail-on", "info").exit_code == 1
    last = f"2 layers, {len(MODEL_RULES) - 3} rules: no findings\n"
    assert run(stuck, "--ignore", "BN009,BN010").stdout.endswith(last)
    options = ("--select", "BN010", "--fail-on", "info", "--threshold")
    assert [run(stuck, *options, f"gamma={least}").exit_code for least in (100, 1e-30)] == [1, 0]


def test_each_model_has_the_settings_of_its_own_project(stuck: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    ignoring = str(tmp_path / "a/m.h5")
    shutil.copy(stuck, ignoring)
    (tmp_path / "a/bnstat.toml").write_text('ignore = ["BN001"]')
    assert run(ignoring).exit_code == 0
    assert run(ignoring, stuck).stdout.count("BN001 never-updated") == 1
    other = tmp_path / "other.toml"
    for rules, code in (('["BN001"]', 0), ("[]", 1)):
        other.write_text(f"ignore = {rules}")
        assert run(ignoring, stuck, "--config-file", other).exit_code == code
    assert run(ignoring, "--config-file", other, "--isolated").exit_code == 2


def test_wrong_settings_are_reported_in_one_line(sound: str, stuck: str, tmp_path: Path) -> None:
    config = tmp_path / "pyproject.toml"
    config.write_text('[tool.bnstat]\nignore = ["nonsense"]')
    result = run(sound, stuck)
    assert (result.exit_code, result.stdout) == (2, "")
    message = "tool.bnstat.ignore: 'nonsense': is not a name or code of a rule; see check --rules"
    assert result.stderr == f"error: {config}: {message}\n"
