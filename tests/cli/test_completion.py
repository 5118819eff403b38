"""The script of `bnstat completion`, and the completions that a shell gets with it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.shell_completion import BashComplete

from bnstat.checks import RULES
from bnstat.cli import COMMANDS, main
from bnstat.docs import TOPICS
from tests.cli.files import command_line, write_h5
from tests.output.models import layer, usual
from tests.terminal import ROOT

DATA = ROOT / "tests/data/digits"
SHELLS = ["bash", "zsh", "fish"]
LAYERS = ["block1/bn", "block2/bn", "block3/bn"]
CHECKPOINTS = [f"model-{step}" for step in (400, 300, 200, 100, 0)]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_printed(shell: str) -> None:
    assert f"_BNSTAT_COMPLETE={shell}_complete" in command_line("completion", shell).stdout


@pytest.mark.parametrize("arguments", [[], ["tcsh"]])
def test_other_shells_are_refused(arguments: list[str]) -> None:
    result = command_line("completion", *arguments)
    assert result.exit_code == 2
    assert all(shell in result.stderr for shell in SHELLS)


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return the completions of a line, typed in a folder, with the cursor at its end."""

    def complete(line: str, folder: Path = DATA) -> list[str]:
        words = line.split(" ")
        monkeypatch.setenv("COMP_WORDS", "\n".join(words))
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        monkeypatch.chdir(folder)
        reply = BashComplete(main, {}, "bnstat", "").complete()
        return [line.removeprefix("plain,") for line in reply.split("\n") if line]

    return complete


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("bnstat ", list(COMMANDS)),
        ("bnstat hi", ["history"]),
        ("bnstat help ", list(TOPICS)),
        ("bnstat help re", ["remote"]),
        ("bnstat inspect saved_model --layer ", LAYERS),
        ("bnstat inspect saved_model --layer block2", ["block2/bn"]),
        ("bnstat inspect saved_model --layer block2/bn --layer block3/", ["block3/bn"]),
        ("bnstat inspect saved_model -q --layer x", []),
        ("bnstat inspect --layer block1/bn saved_model --layer block3", ["block3/bn"]),
        ("bnstat inspect ./run/../saved_model/variables --layer block3", ["block3/bn"]),
        ("bnstat inspect nothing --layer ", []),
        ("bnstat inspect --layer ", []),
        ("bnstat inspect run --step 100 --layer block1", ["block1/bn"]),
        ("bnstat inspect run --step 123 --layer ", []),
        ("bnstat inspect run --step x --layer ", LAYERS),
        ("bnstat inspect run --pattern x --layer ", LAYERS),
        (r"bnstat inspect run --pattern gamma=^(block1)/bn/beta --layer ", LAYERS),
        ("bnstat check run saved_model nothing --layer ", LAYERS),
        ("bnstat diff run saved_model --layer block1", ["block1/bn"]),
        ("bnstat export run -o x.npz --layer block1", ["block1/bn"]),
        ("bnstat inspect run --checkpoint ", CHECKPOINTS),
        ("bnstat inspect run/model-100 --checkpoint ", ["model-100"]),
        ("bnstat inspect saved_model --checkpoint ", []),
        ("bnstat inspect run --step ", ["400", "300", "200", "100", "0"]),
        ("bnstat inspect run --step 1", ["100"]),
        ("bnstat check run --select ", [rule.code for rule in RULES]),
        ("bnstat check run --ignore never", ["never-updated"]),
        ("bnstat check run --ignore BN001,never", ["BN001,never-updated"]),
        ("bnstat check --explain BN10", ["BN101", "BN102", "BN103", "BN104"]),
        ("bnstat completion ", SHELLS),
        # The shell itself completes paths.
        ("bnstat inspect ", ["file,"]),
        ("bnstat export run -o x", ["file,x"]),
    ],
)
def test_completions(line: str, values: list[str], complete: Callable[..., list[str]]) -> None:
    assert complete(line) == values


def test_paths_of_models(complete, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_h5(tmp_path / "a.h5", usual("bn"), layer("dense", {"kernel": np.ones((2, 2))}))
    (tmp_path / "damaged.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    for path in ("~/a.h5", "$HOME/a.h5", "${HOME}/a.h5", "damaged.h5 ~/a.h5"):
        assert complete(f"bnstat check {path} --layer ", tmp_path) == ["bn"]
    assert complete("bnstat inspect --layer block2", DATA / "run") == ["block2/bn"]
    assert complete("bnstat check --checkpoint model-4", DATA / "run") == ["model-400"]


def test_unusual_names(complete: Callable[..., list[str]], tmp_path: Path) -> None:
    names = ["a b/bn", "it's", "s*", "b\nc", "d\x1b[31m", "ünï"]
    write_h5(tmp_path / "a.h5", *map(usual, names))
    completions = complete("bnstat inspect a.h5 --layer ", tmp_path)
    assert completions == ["a b/bn", "it's", "s[*]", "ünï"]


def test_bash_completes_and_imports_no_tensorflow(tmp_path: Path) -> None:
    """The printed script calls the command `bnstat`."""
    (tmp_path / "bnstat").write_text(
        f"#!{sys.executable}\n"
        "import atexit, sys\n"
        "from bnstat.__main__ import run\n"
        "atexit.register(lambda: print(*{'tensorflow', 'rich'} & set(sys.modules), sep=''))\n"
        "run()\n"
    )
    (tmp_path / "bnstat").chmod(0o755)
    script = (
        'eval "$(bnstat completion bash)"; COMP_WORDS=(bnstat inspect saved_model --layer block1); '
        'COMP_CWORD=4; _bnstat_completion bnstat; echo "${COMPREPLY[@]}"'
    )
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    options = {"cwd": DATA, "env": env, "capture_output": True, "text": True, "check": False}
    result = subprocess.run(["bash", "-c", script], **options)
    assert (result.stdout.split(), result.stderr) == (["block1/bn"], "")
