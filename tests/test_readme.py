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
RUNS_A_MODEL = ("drift", "recalibrate")
BLOCKS = re.findall(r"```console\n\$ bnstat (.*?)\n(.*?)```", README, re.DOTALL)


def written_by(arguments: list[str]) -> Iterator[list[str]]:
    """The commands of the README that write what a command reads."""
    for command, _ in BLOCKS:
        earlier = shlex.split(command)
        if earlier != arguments and "-o" in earlier:
            copy = earlier[earlier.index("-o") + 1]
            if copy in arguments and "-o" not in arguments:
                yield earlier


def is_slow(command: str) -> bool:
    return "s3://" in command or command.startswith(RUNS_A_MODEL)


@pytest.mark.parametrize(
    ("command", "output"),
    [
        pytest.param(*block, id=block[0], marks=pytest.mark.slow if is_slow(block[0]) else ())
        for block in BLOCKS
    ],
)
def test_shows_what_the_command_prints(
    command: str, output: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if "s3://" in command:
        request.getfixturevalue("s3")
    # What a command writes is not to lie in the sources.
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    for earlier in written_by(shlex.split(command)):
        in_terminal(earlier, folder=tmp_path)
    shown = in_terminal(shlex.split(command), folder=tmp_path)
    if command.startswith(RUNS_A_MODEL):
        assert_same_but_for_last_digits(shown, output)
    else:
        lines = [line.rstrip() for line in shown.rstrip().split("\n")]
        assert lines == output.rstrip().split("\n")


def assert_same_but_for_last_digits(shown: str, expected: str) -> None:
    """The words are the same and numbers agree within 2 %: their last digits vary by processor."""
    number = r"\d+(?:\.\d+)?(?:e[+-]\d+)?"
    words, expected_words = (re.sub(number, "#", text).split() for text in (shown, expected))
    assert words == expected_words
    numbers, expected_numbers = (
        [float(found) for found in re.findall(number, text)] for text in (shown, expected)
    )
    assert numbers == pytest.approx(expected_numbers, rel=0.02, abs=2e-4)


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
