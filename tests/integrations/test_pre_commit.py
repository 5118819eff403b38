"""The hook for pre-commit."""

from __future__ import annotations

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
from tests.cli.files import write_h5
from tests.output.models import layer

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests/data"
(HOOK,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    shutil.copytree(DATA / "digits", tmp_path / "good models")
    shutil.copytree(DATA / "digits_no_updates", tmp_path / "bad")
    write_h5(tmp_path / "dense.h5", layer("dense", {"kernel": np.ones((2, 2))}))
    return tmp_path


def commit(repository: Path, *changed: str, args: tuple[str, ...] = ()) -> tuple[int, str]:
    """Run the hook as pre-commit does: its entry, its args, then the changed files that match."""
    files = [name for name in changed if re.search(HOOK["files"], name)]
    bnstat, *entry = shlex.split(HOOK["entry"])
    assert bnstat == "bnstat"
    done = subprocess.run(
        [sys.executable, "-m", "bnstat", *entry, *args, *files],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def all_files(folder: Path) -> list[str]:
    return [
        str(path.relative_to(folder.parent)) for path in sorted(folder.rglob("*")) if path.is_file()
    ]


def test_sound_models_may_be_committed(repository: Path) -> None:
    code, output = commit(repository, *all_files(repository / "good models"), "dense.h5")
    assert code == 0
    assert output.count("path ") == 7
    assert "no batch-norm layer found in dense.h5" in output


def test_a_broken_model_may_not(repository: Path) -> None:
    code, output = commit(repository, "dense.h5", "bad/run/model-400.index")
    assert code == 1
    assert "warning BN018 unused-statistics" in output
    assert commit(repository, "bad/saved_model/saved_model.pb")[0] == 1
    assert commit(repository, "bad/saved_model/variables/variables.index")[0] == 1


def test_arguments_and_project_settings(repository: Path) -> None:
    changed = "bad/run/model-400.index"
    assert commit(repository, changed, args=("--ignore", "BN018"))[0] == 0
    (repository / "pyproject.toml").write_text(
        '[tool.bnstat.per-path]\nbad = ["unused-statistics"]'
    )
    assert commit(repository, changed)[0] == 0


def test_the_example_of_the_documentation() -> None:
    (example,) = re.findall(r"```yaml\n(- repo:.*?)```", docs.read("check"), re.DOTALL)
    ((hook,),) = (each["hooks"] for each in yaml.safe_load(example))
    assert hook["id"] == HOOK["id"]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("model.h5", True),
        ("a/b.weights.h5", True),
        ("model.hdf5", True),
        ("model.keras", True),
        ("model-1.index", True),
        ("export/1/saved_model.pb", True),
        ("frozen.pb", True),
        ("model-1.data-00000-of-00001", False),
        ("model-1.meta", False),
        ("checkpoint", False),
        ("train.py", False),
        ("index", False),
        ("model.h5.txt", False),
    ],
)
def test_the_files_that_match(name: str, wanted: bool) -> None:
    assert bool(re.search(HOOK["files"], name)) == wanted
