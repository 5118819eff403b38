"""Completion by click's protocol: what a shell gets for the line that it has."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bnstat.checks import RULES
from bnstat.cli import COMMANDS, COMPLETE_VAR, main
from bnstat.cli.shells import SHELLS
from bnstat.docs import TOPICS
from tests.cli.files import write_h5
from tests.output.models import layer, usual

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT / "tests/data/digits"
LAYERS = ["block1/bn", "block2/bn", "block3/bn"]
CHECKPOINTS = [f"model-{step}" for step in (400, 300, 200, 100, 0)]


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The completions of a line that ends at the cursor."""

    def complete(line: str, shell: str = "bash") -> list[str]:
        words = line.split(" ")
        monkeypatch.setenv("COMP_WORDS", "\n".join(words) if shell == "bash" else line)
        number = words[-1] if shell == "fish" else str(len(words) - 1)
        monkeypatch.setenv("COMP_CWORD", number)
        monkeypatch.chdir(DATA)
        return SHELLS[shell](main, {}, "bnstat", COMPLETE_VAR).complete().split("\n")

    return complete


def plain(values: list[str]) -> list[str]:
    return [f"plain,{value}" for value in values] or [""]


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("bnstat ", list(COMMANDS)),
        ("bnstat hi", ["history"]),
        ("bnstat help ", list(TOPICS)),
        ("bnstat help re", ["remote"]),
        ("bnstat inspect saved_model --layer ", LAYERS),
        ("bnstat inspect saved_model --layer block2", ["block2/bn"]),
        ("bnstat inspect saved_model --layer=block2", ["block2/bn"]),
        ("bnstat inspect saved_model --layer block2/bn --layer block3/", ["block3/bn"]),
        ("bnstat inspect saved_model -q --layer x", []),
        ("bnstat inspect --layer block1/bn saved_model --layer block3", ["block3/bn"]),
        ("bnstat inspect ./run/../saved_model/variables --layer block3", ["block3/bn"]),
        ("bnstat inspect nothing --layer ", []),
        ("bnstat inspect ../make_data.py --layer ", []),
        ("bnstat inspect --layer ", []),
        ("bnstat inspect run --step 100 --layer block1", ["block1/bn"]),
        ("bnstat inspect run --step 123 --layer ", []),
        ("bnstat inspect run --step x --layer ", LAYERS),
        ("bnstat inspect run --pattern x --layer ", LAYERS),
        (r"bnstat inspect run --pattern gamma=^(block1)/bn/beta --layer ", LAYERS),
        ("bnstat check run saved_model nothing --layer ", LAYERS),
        ("bnstat diff run saved_model --layer block1", ["block1/bn"]),
        ("bnstat history run --layer block1", ["block1/bn"]),
        ("bnstat export run -o x.npz --layer block1", ["block1/bn"]),
        ("bnstat inspect run --checkpoint ", CHECKPOINTS),
        ("bnstat inspect run/model-100 --checkpoint ", ["model-100"]),
        ("bnstat inspect saved_model --checkpoint ", []),
        ("bnstat inspect nothing --checkpoint ", []),
        ("bnstat inspect run --step ", ["400", "300", "200", "100", "0"]),
        ("bnstat inspect run --step 1", ["100"]),
        ("bnstat check run --select ", [rule.code for rule in RULES]),
        ("bnstat check run --ignore never", ["never-updated"]),
        ("bnstat check run --ignore BN001,never", ["BN001,never-updated"]),
        ("bnstat check --explain BN10", ["BN101", "BN102", "BN103"]),
        ("bnstat completion ", ["bash", "zsh", "fish"]),
    ],
)
def test_what_is_offered(line: str, values: list[str], complete: Callable[..., list[str]]) -> None:
    assert complete(line) == plain(values)


@pytest.mark.parametrize(
    "line",
    ["bnstat inspect ", "bnstat inspect sav", "bnstat diff run ", "bnstat export run -o x"],
)
def test_paths_are_left_to_the_shell(line: str, complete: Callable[..., list[str]]) -> None:
    (reply,) = complete(line)
    assert reply.split(",")[0] == "file"


def test_the_current_folder_and_home(
    complete: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_h5(tmp_path / "a.h5", usual("bn"))
    monkeypatch.setattr("tests.cli.tab.test_suggestions.DATA", DATA / "run")
    assert complete("bnstat inspect --layer block2") == ["plain,block2/bn"]
    assert complete("bnstat check --checkpoint model-4") == ["plain,model-400"]
    for path in ("~/a.h5", "$HOME/a.h5", "${HOME}"):
        assert complete(f"bnstat inspect {path} --layer ") == ["plain,bn"]


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("--layer a", r"a\ b/bn"),
        (r"--layer a\ b", r"a\ b/bn"),
        ("--layer 'a b", "a b/bn"),
        ('--layer "a b', "a b/bn"),
        ("--layer=a", r"a\ b/bn"),
        ("--layer i", r"it\'s"),
        ("--layer 'i", r"it'\''s"),
        ('--layer "i', "it's"),
        ("--layer $", r"\$\`\"\\"),
        ('--layer "', None),
        ("--layer s", r"s\[\*\]"),
    ],
)
def test_names_are_quoted_for_bash(
    line: str, value: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a b/bn", "it's", '$`"\\', "s*", "b\nc", "d\x1b[31m", "ünï"]
    path = write_h5(tmp_path / "a.h5", *map(usual, names))
    line = f"bnstat inspect {path} {line}"
    monkeypatch.setenv("COMP_LINE", line)
    words = line.split(" ", 4)
    monkeypatch.setenv("COMP_WORDS", "\n".join([*words, "'behind the cursor"]))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    replies = SHELLS["bash"](main, {}, "bnstat", COMPLETE_VAR).complete().split("\n")
    if value is None:
        assert replies == plain(["a b/bn", "it's", r"\$\`\"\\", "s[*]", "ünï"])
    else:
        assert replies == [f"plain,{value}"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells(shell: str, complete: Callable[..., list[str]]) -> None:
    separator = "," if shell == "fish" else "\n"
    reply = "\n".join(complete("bnstat inspect saved_model --layer block2", shell))
    assert reply == f"plain{separator}block2/bn" + ("\n_" if shell == "zsh" else "")
    reply = "\n".join(complete("bnstat inspect saved_model --layer=block2", shell))
    assert reply.startswith(f"plain{separator}--layer=block2/bn")


def test_a_process_of_its_own_imports_no_tensorflow() -> None:
    script = (
        "import atexit, sys; "
        "atexit.register(lambda: print(*{'tensorflow', 'rich'} & set(sys.modules), sep='')); "
        "from bnstat.__main__ import run; run()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ
        | {
            COMPLETE_VAR: "bash_complete",
            "COMP_WORDS": "bnstat inspect tests/data/digits/saved_model --layer block1",
            "COMP_CWORD": "4",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "plain,block1/bn\n\n", "")


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"COMP_WORDS": "bnstat inspect", "COMP_CWORD": "x"},
        {"COMP_WORDS": "bnstat inspect damaged.h5 --layer ", "COMP_CWORD": "4"},
        {"COMP_WORDS": "bnstat inspect a\udcff --layer ", "COMP_CWORD": "4"},
        {"COMP_WORDS": "bnstat inspect 'a --layer ", "COMP_CWORD": "4"},
        {"COMP_WORDS": "", "COMP_CWORD": "0"},
    ],
)
@pytest.mark.parametrize("shell", SHELLS)
def test_nothing_is_said_whatever_goes_wrong(
    shell: str, variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "damaged.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(
        main, [], env={COMPLETE_VAR: f"{shell}_complete", **variables}, prog_name="bnstat"
    )
    assert result.exit_code == 0
    assert result.stderr == ""


def test_variables_that_are_no_layers_are_not_offered(
    complete: Callable[..., list[str]], tmp_path: Path
) -> None:
    path = write_h5(tmp_path / "a.h5", usual("bn"), layer("dense", {"kernel": np.ones((2, 2))}))
    assert complete(f"bnstat inspect {path} --layer ") == ["plain,bn"]
