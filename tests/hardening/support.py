"""What the tests of this folder share: what bnstat shows of a file, and its command line."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import bnstat
from bnstat.exchange import json as as_json

ROOT = Path(__file__).resolve().parents[2]

Judge = Callable[[Path], str]
"""Judges a path within the limits of the fuzzer; gives `answer...` or `error: KIND`."""


def shown(path: Path | str) -> str:
    """Everything that bnstat tells of a model, as JSON, but for its path."""
    model = bnstat.load(path)
    text = io.StringIO()
    as_json.dump(model, text)
    return text.getvalue().replace(str(path), "")


def refused(path: Path | str) -> bool:
    """Whether a model cannot be shown, by an error of bnstat's own."""
    try:
        shown(path)
    except bnstat.BnstatError:
        return True
    return False


def shown_or_error(path: Path | str) -> str | None:
    """What is shown of a model; None where bnstat refuses it."""
    try:
        return shown(path)
    except bnstat.BnstatError:
        return None


def command(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the command line in a process of its own, five minutes at most."""
    environment = {**os.environ, **options.pop("env", {})}
    return subprocess.run(
        [*options.pop("prefix", ()), sys.executable, "-m", "bnstat", *map(str, arguments)],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 300, **options},
        env=environment,
        cwd=options.get("cwd", ROOT),
        check=False,
    )


def lines_run(work: Callable[[], object], module: ModuleType) -> int:
    """Return how many lines of a module's code are run by some work, errors of bnstat included.

    It measures work alike on every machine.
    """
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename != module.__file__:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except bnstat.BnstatError:
        pass
    finally:
        sys.settrace(before)
    return count


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder
