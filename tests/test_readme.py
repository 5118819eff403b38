"""Every command that the README shows prints what the README shows, in a terminal of 80 columns."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.terminal import ROOT, in_terminal

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```console\n\$ bnstat (.*?)\n(.*?)```", README, re.DOTALL)


def written_by(arguments: list[str]) -> Iterator[list[str]]:
    """The commands of the README that write what a command reads."""
    for command, _ in BLOCKS:
        earlier = shlex.split(command)
        if earlier != arguments and "-o" in earlier:
            copy = earlier[earlier.index("-o") + 1]
            if copy in arguments and "-o" not in arguments:
                yield earlier


@pytest.mark.parametrize(("command", "output"), BLOCKS, ids=[block[0] for block in BLOCKS])
def test_shows_what_the_command_prints(command: str, output: str, tmp_path: Path) -> None:
    # What a command writes is not to lie in the sources.
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    for earlier in written_by(shlex.split(command)):
        in_terminal(earlier, folder=tmp_path)
    shown = in_terminal(shlex.split(command), folder=tmp_path)
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
