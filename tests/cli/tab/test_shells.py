"""Completion in real shells: installed by the documented command, then used with the Tab key."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.files import write_h5
from tests.output.models import usual

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT / "tests/data/digits"
NAMES = ["plain/bn", "two words/bn", "it's", 'quo"te', "dollar$HOME", "star*[0]", "com,ma", "ünï"]
STARTS = {"bash": ["bash", "-i"], "zsh": ["zsh", "-i"], "fish": ["fish", "-i"]}

SHIM = """#!/bin/sh
if [ -n "$_BNSTAT_COMPLETE" ]; then exec {python} -m bnstat "$@"; fi
printf 'got'; printf '<%s>' "$@"; printf 'end\\n'
"""


class Session:
    """A shell at a terminal."""

    def __init__(self, arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.screen, terminal = pty.openpty()
        self.process = subprocess.Popen(
            arguments,
            cwd=folder,
            env=environment,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(terminal)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def until(self, pattern: str, seconds: float = 120) -> re.Match[str]:
        """Wait until the pattern appears in what was shown since the last call."""
        end = time.monotonic() + seconds
        while (match := re.search(pattern, self.shown)) is None:
            ready, _, _ = select.select([self.screen], [], [], max(0, end - time.monotonic()))
            assert ready, f"{pattern} did not appear: {self.shown!r}"
            self.shown += os.read(self.screen, 1 << 16).decode(errors="replace")
        self.shown = self.shown[match.end() :]
        return match

    def run(self, line: str) -> list[str]:
        """The arguments that bnstat gets after this was typed, with a Tab and Enter behind it."""
        self.type(f"{line}\t\n")
        got = self.until(r"got((?:<[^\r\n]*>)*)end\r?\n")
        return re.findall(r"<([^>]*)>", got[1])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.screen)


@pytest.fixture(params=STARTS)
def shell(request: pytest.FixtureRequest) -> str:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not on this machine")
    return request.param


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "bin").mkdir()
    shim = tmp_path / "bin/bnstat"
    shim.write_text(SHIM.format(python=sys.executable))
    shim.chmod(0o755)
    kept = {name: os.environ[name] for name in ("LANG", "LC_ALL") if name in os.environ}
    return {
        "LANG": "C.UTF-8",
        **kept,
        "HOME": str(tmp_path),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "TERM": "dumb",
    }


@pytest.fixture
def install(
    tmp_path: Path, environment: dict[str, str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    def install(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "bnstat", "completion", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return install


@pytest.fixture
def session(
    shell: str, tmp_path: Path, environment: dict[str, str], install: Callable[..., object]
) -> Iterator[Session]:
    write_h5(tmp_path / "model.h5", *map(usual, NAMES))
    shutil.copytree(DATA / "run", tmp_path / "run")
    install(shell, "--install")
    session = Session(STARTS[shell], tmp_path, environment)
    session.type("echo rea''dy\n")
    session.until("ready\r?\n")
    yield session
    session.close()


def test_the_tab_key(session: Session) -> None:
    assert session.run("bnstat insp") == ["inspect"]
    assert session.run("bnstat inspect mod") == ["inspect", "model.h5"]
    inspect = ["inspect", "model.h5", "--layer"]
    for typed, name in {
        "pl": "plain/bn",
        "tw": "two words/bn",
        "two\\ wo": "two words/bn",
        "'two w": "two words/bn",
        '"two w': "two words/bn",
        "it": "it's",
        "quo": 'quo"te',
        "do": "dollar$HOME",
        "st": "star[*][[]0]",
        "com": "com,ma",
        "ü": "ünï",
    }.items():
        assert session.run(f"bnstat inspect model.h5 --layer {typed}") == [*inspect, name], typed
    assert session.run("bnstat inspect model.h5 --layer=pl")[2:] == ["--layer=plain/bn"]
    assert session.run("echo x | A=1 bnstat inspect model.h5 --layer pl") == [*inspect, "plain/bn"]
    assert session.run("true && bnstat inspect ~/model.h5 --layer pl")[-1] == "plain/bn"
    assert session.run("bnstat inspect ru") in (["inspect", "run/"], ["inspect", "run"])
    assert session.run("bnstat inspect run --checkpoint model-2")[-1] == "model-200"
    assert session.run("bnstat inspect run --step 3")[-1] == "300"
    assert session.run("bnstat check run --select BN00,never")[-1] == "BN00,never-updated"
    assert session.run("bnstat inspect nothing --layer x") == ["inspect", "nothing", "--layer", "x"]
