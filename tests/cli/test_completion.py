"""Setting up completion: the script for a shell, and where it is put."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from bnstat.cli import COMPLETE_VAR, main
from bnstat.cli.shells import SHELLS


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR", "SHELL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def completion(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["completion", *arguments])
    return result.exit_code, result.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_printed(shell: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, script = completion(shell)
    assert code == 0
    assert f"{COMPLETE_VAR}={shell}_complete" in script
    monkeypatch.setenv("SHELL", f"/usr/local/bin/{shell}")
    assert completion() == (0, script)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("shell", "place", "start"),
    [
        ("bash", ".local/share/bnstat/completion.bash", ".bashrc"),
        ("zsh", ".local/share/bnstat/completion.zsh", ".zshrc"),
        ("fish", ".config/fish/completions/bnstat.fish", None),
    ],
)
def test_it_is_installed_once(shell: str, place: str, start: str | None, home: Path) -> None:
    if start:
        (home / start).write_text("alias l=ls")
    for _ in range(2):
        assert completion(shell, "--install") == (0, "")
        assert (home / place).read_text() == completion(shell)[1]
        if start:
            first, *rest = (home / start).read_text().splitlines()
            assert first == "alias l=ls"
            assert rest == [f"[ -r {home / place} ] && . {home / place}"]


def test_other_homes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "my data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("ZDOTDIR", str(home))
    assert completion("zsh", "--install")[0] == completion("fish", "--install")[0] == 0
    script = home / "my data/bnstat/completion.zsh"
    assert (home / ".zshrc").read_text() == f"[ -r '{script}' ] && . '{script}'\n"
    assert (home / "config/fish/completions/bnstat.fish").is_file()


def test_what_cannot_be_installed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert completion()[0] == 2
    assert completion("tcsh")[0] == 2
    monkeypatch.setenv("SHELL", "/bin/dash")
    assert completion("--install")[0] == 2
    (home / ".bashrc").mkdir()
    assert completion("bash", "--install") == (2, "")
