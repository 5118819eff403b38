"""Every command that the README shows prints what the README shows, in a terminal of 80 columns."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```console\n\$ bnstat (.*?)\n(.*?)```", README, re.DOTALL)


def in_terminal(arguments: list[str], folder: Path) -> str:
    """What the command shows in a terminal of 80 columns without colours."""
    screen, terminal = pty.openpty()
    environment = os.environ | {
        "COLUMNS": "80", "NO_COLOR": "1", "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "bnstat", *arguments],
        cwd=folder,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment,
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            chunk = os.read(screen, 1 << 16)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    process.wait()
    os.close(screen)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode().replace("\r\n", "\n"))


@pytest.mark.parametrize(("command", "output"), BLOCKS, ids=[block[0] for block in BLOCKS])
def test_shows_what_the_command_prints(command: str, output: str, tmp_path: Path) -> None:
    # What a command writes is not to lie in the sources.
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    shown = in_terminal(shlex.split(command), tmp_path)
    assert [line.rstrip() for line in shown.rstrip().split("\n")] == output.rstrip().split("\n")


def test_python_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {"x": np.ones((2, 4, 4, 8), np.float32)}
    directory = Path.cwd()
    os.chdir(ROOT)
    try:
        exec(compile(example, "README.md", "exec"), names)
    finally:
        os.chdir(directory)
    assert names["y"].shape == (2, 4, 4, 8)


def test_every_file_it_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert all((ROOT / link).is_file() for link in links)
