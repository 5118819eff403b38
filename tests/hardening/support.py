"""Helpers for these tests: models as text, the command line, hand-made layers."""

from __future__ import annotations

import io
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import numpy as np

import bnstat
from bnstat.exchange import json as as_json
from tests.cli.files import in_child
from tests.fuzz import handmade

command = partial(in_child, text=False)

Judge = Callable[[Path], str]
"""Judges a path within the limits of the fuzzer; gives `answer...` or `error: KIND`."""


def layers(name: str = "bn", channels: int = 3, count: int = 1) -> dict[str, np.ndarray]:
    """Return the variables of layers by key; several layers are numbered, and differ."""
    return {
        f"{name if count == 1 else f'{name}{number}'}/{role}": array * (number + 1)
        for number in range(count)
        for role, array in handmade.values(channels).items()
    }


def exported(path: Path | str) -> str:
    """Return everything that bnstat reads of a model, as JSON without its path."""
    model = bnstat.load(path)
    text = io.StringIO()
    as_json.dump(model, text)
    return text.getvalue().replace(str(path), "")


def exported_or_none(path: Path | str) -> str | None:
    """Do the same, but return None if bnstat refuses the model."""
    try:
        return exported(path)
    except bnstat.BnstatError:
        return None


def refused(path: Path | str) -> bool:
    return exported_or_none(path) is None


def assert_one_error(result: subprocess.CompletedProcess[bytes], text: bytes = b"") -> None:
    """The command ends with one line of error that contains the text."""
    assert (result.returncode, result.stderr.count(b"\n")) == (2, 1), result.stderr
    assert result.stderr.startswith(b"error: ")
    assert text in result.stderr


def lines_run(work: Callable[[], object], module: ModuleType) -> int:
    """Return how many lines of a module's code some work runs, which is alike on every machine."""
    counts: Counter[str] = Counter()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        counts[event] += 1
        return trace if frame.f_code.co_filename == module.__file__ else None

    before = sys.gettrace()
    sys.settrace(trace)
    with suppress(bnstat.BnstatError):
        work()
    sys.settrace(before)
    return counts["line"]


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder
