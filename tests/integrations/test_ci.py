"""The GitHub action and the hook for pre-commit, run as a runner and pre-commit do."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from bnstat import docs
from tests.cli.files import in_child, write_h5
from tests.output.models import layer

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests/data"
FOLDER = ROOT / ".github/actions/check"
ACTION = yaml.safe_load((FOLDER / "action.yml").read_text())
INSTALL, CHECK = ACTION["runs"]["steps"]
(HOOK,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
BASH = shutil.which("bash")

pytestmark = pytest.mark.skipif(BASH is None, reason="bash is not on this machine")


def run_step(step: dict, folder: Path, environment: dict) -> subprocess.CompletedProcess[str]:
    script = folder / "step.sh"
    script.write_text(str(step["run"]))
    command = [str(BASH), "--noprofile", "--norc", "-eo", "pipefail", str(script)]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment}
    options = {"cwd": folder / "workspace", "env": env, "capture_output": True, "text": True}
    return subprocess.run(command, check=False, **options)


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    workspace = tmp_path / "workspace"
    shutil.copytree(DATA / "digits", workspace / "good models")
    shutil.copytree(DATA / "digits_no_updates", workspace / "bad")
    write_h5(workspace / "dense.h5", layer("dense", {"kernel": np.ones((2, 2))}))
    return workspace


@pytest.fixture
def runner(repository: Path, tmp_path: Path) -> Path:
    """The folder of a runner that has installed bnstat as the action does."""
    executable(tmp_path / "temp/bnstat/bin/bnstat", f'exec {sys.executable} -m bnstat "$@"')
    return tmp_path


def check(runner: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """Run the step that checks, with the default of every other input."""
    values = {name: each["default"] for name, each in ACTION["inputs"].items()}
    values |= {name.replace("_", "-"): value for name, value in inputs.items()}

    def substituted(text: str) -> str:
        return re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda match: values[match[1]], text)

    environment = {name: substituted(text) for name, text in CHECK["env"].items()}
    return run_step(CHECK, runner, {"RUNNER_TEMP": str(runner / "temp"), **environment})


def test_inputs_are_passed_by_the_environment() -> None:
    assert all("${{" not in step["run"] for step in ACTION["runs"]["steps"])
    used = re.findall(r"inputs\.([\w-]+)", str(CHECK["env"]))
    assert sorted(used) == sorted(ACTION["inputs"])


def test_the_examples_of_the_documentation() -> None:
    (example,) = re.findall(r"```yaml\n(- uses:.*?)```", docs.read("check"), re.DOTALL)
    (step,) = yaml.safe_load(example)
    assert f"/{FOLDER.relative_to(ROOT)}@" in step["uses"]
    assert set(step["with"]) <= set(ACTION["inputs"])
    (example,) = re.findall(r"```yaml\n(- repo:.*?)```", docs.read("check"), re.DOTALL)
    ((hook,),) = (each["hooks"] for each in yaml.safe_load(example))
    assert hook["id"] == HOOK["id"]


def test_sound_models_pass(runner: Path) -> None:
    done = check(runner, path="good models/run\n\ngood models/run/model-100\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_findings_are_annotations(runner: Path) -> None:
    done = check(runner, path="good models/run\nbad/run")
    assert done.returncode == 1
    starts = [line.rpartition("::")[0] for line in done.stdout.splitlines()]
    assert starts == ["::warning file=bad/run,title=BN018 unused-statistics"]


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ({"path": "bad/run", "ignore": "BN018,BN002"}, 0),
        ({"path": "bad/run", "select": "BN002"}, 0),
        ({"path": "bad/run", "select": "BN002,unused-statistics"}, 1),
        ({"path": "good models/run", "select": "BN00", "fail-on": "info"}, 0),
        ({"path": "good models/run", "fail-on": "never"}, 2),
        ({"path": "dense.h5"}, 1),
        ({"path": "dense.h5", "allow-none": "true"}, 0),
        ({"path": "bad/run", "config-file": "own.toml"}, 0),
        ({"path": "nothing\ngood models/run"}, 2),
        ({}, 1),
    ],
)
def test_inputs(inputs: dict[str, str], code: int, runner: Path) -> None:
    (runner / "workspace/own.toml").write_text('ignore = ["BN018"]')
    assert check(runner, **inputs).returncode == code


@pytest.mark.parametrize(
    "text", ["-o harm", "\"; touch harm; '; touch harm; $(touch harm) `touch harm`"]
)
def test_inputs_are_never_executed(text: str, runner: Path) -> None:
    before = sorted((runner / "workspace").iterdir())
    for names in (["path"], [name for name in ACTION["inputs"] if name != "path"]):
        inputs = {"path": "good models/run", **dict.fromkeys(names, text)}
        assert check(runner, **inputs).returncode == 2
    assert sorted((runner / "workspace").iterdir()) == before


def test_the_action_installs_its_own_commit(runner: Path) -> None:
    log = runner / "log"
    pip = runner / "pip"
    executable(pip, f'printf "%s\\n" pip "$@" >> "{log}"')
    executable(
        runner / "bin/python3",
        f'printf "%s\\n" python3 "$@" >> "{log}"; mkdir -p "$3/bin"; cp "{pip}" "$3/bin/pip"',
    )
    temporary = runner / "a runner's temp"
    folders = {"RUNNER_TEMP": str(temporary), "GITHUB_ACTION_PATH": str(FOLDER)}
    search = f"{runner / 'bin'}:{os.environ['PATH']}"
    done = run_step(INSTALL, runner, {"PATH": search, **folders})
    assert done.returncode == 0, done.stderr
    *made, _, _, _, installed = log.read_text().splitlines()
    assert made == ["python3", "-m", "venv", f"{temporary}/bnstat"]
    assert Path(installed).resolve() == ROOT


def commit(repository: Path, *changed: str, args: tuple[str, ...] = ()) -> tuple[int, str]:
    """Run the hook as pre-commit does: its entry, its args, then the changed files that match."""
    files = [name for name in changed if re.search(HOOK["files"], name)]
    bnstat, *entry = shlex.split(HOOK["entry"])
    assert bnstat == "bnstat"
    done = in_child(*entry, *args, *files, cwd=repository)
    return done.returncode, done.stdout + done.stderr


def test_sound_models_may_be_committed(repository: Path) -> None:
    files = [str(path.relative_to(repository)) for path in repository.glob("good models/**/*.*")]
    code, output = commit(repository, *files, "dense.h5")
    assert code == 0
    assert output.count("path ") == 7
    assert "no batch-norm layer found in dense.h5" in output


def test_a_broken_model_may_not(repository: Path) -> None:
    for changed in ("run/model-400.index", "saved_model/variables/variables.index"):
        code, output = commit(repository, "dense.h5", f"bad/{changed}")
        assert code == 1
        assert "warning BN0" in output


def test_arguments_and_project_settings(repository: Path) -> None:
    changed = "bad/run/model-400.index"
    assert commit(repository, changed, args=("--ignore", "BN018"))[0] == 0
    settings = '[tool.bnstat.per-path]\nbad = ["unused-statistics"]'
    (repository / "pyproject.toml").write_text(settings)
    assert commit(repository, changed)[0] == 0


@pytest.mark.parametrize(
    ("names", "matches"),
    [
        ("model.h5 a/b.weights.h5 model.hdf5 model.keras", True),
        ("model-1.index export/1/saved_model.pb frozen.pb", True),
        ("model-1.data-00000-of-00001 model-1.meta checkpoint train.py index model.h5.txt", False),
    ],
)
def test_the_files_that_match(names: str, matches: bool) -> None:
    for name in names.split():
        assert bool(re.search(HOOK["files"], name)) == matches, name
