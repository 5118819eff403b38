"""The README and the topics, and the commands that they show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.docs.generate import FOLDER
from tests.terminal import ROOT, in_terminal

PAGES = [ROOT / "README.md", *sorted(FOLDER.glob("*.md"))]

_CONSOLE = re.compile(r"```console\n\$ bnstat (.*?)\n(.*?)```", re.DOTALL)
_RUNS_A_MODEL = ("drift", "recalibrate")


class Block(NamedTuple):
    """A command that a page shows, with its output."""

    page: Path
    command: str
    output: str

    @property
    def runs_a_model(self) -> bool:
        return self.command.startswith(_RUNS_A_MODEL)

    @property
    def is_slow(self) -> bool:
        return self.runs_a_model or "s3://" in self.command

    @property
    def copy(self) -> str | None:
        """The file or folder that the command writes."""
        words = shlex.split(self.command)
        return words[words.index("-o") + 1] if "-o" in words else None


BLOCKS = [
    Block(page, command, output)
    for page in PAGES
    for command, output in _CONSOLE.findall(page.read_text(encoding="utf-8"))
]


class Runs:
    """Runs the commands of all pages in one folder, each of them once."""

    def __init__(self, folder: Path) -> None:
        # Copies do not belong into the sources.
        (folder / "tests").symlink_to(ROOT / "tests")
        self._folder = folder
        self._shown: dict[str, str] = {}

    def shown(self, command: str) -> str:
        """Return the output of a command, after the commands whose copies it reads."""
        if command not in self._shown:
            for earlier in _writing(command):
                self.shown(earlier)
            output = in_terminal(shlex.split(command), folder=self._folder)
            is_mistake = re.search(r"^Traceback|^\S+:\d+: \w*Warning:", output, re.MULTILINE)
            assert not is_mistake, f"mend what `bnstat {command}` reports:\n{output}"
            self._shown[command] = output
        return self._shown[command]


def _writing(command: str) -> Iterator[str]:
    words = shlex.split(command)
    for block in BLOCKS:
        if block.copy in words and block.command != command and "-o" not in words:
            yield block.command
