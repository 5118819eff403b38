"""Measures commands as whole processes, in turn, by the accounts of the operating system."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Floats = Sequence[float]
IMPORTS = (sys.executable, "-c", "import numpy, click, rich.table, rich.console")


@dataclass(frozen=True)
class Run:
    """The cost of one run of a command: seconds of work and elapsed, and peak memory in MB."""

    cpu: float
    wall: float
    peak: float


@dataclass(frozen=True)
class Result:
    """A figure beside its bound, which limits the ratio if there is a peer, otherwise the figure.

    Figures are medians, and the ratio is the median of figure / peer, run by run.
    """

    subject: str
    figure: float
    unit: str
    bound: float
    peer: str = ""
    peer_figure: float = 0
    ratio: float | None = None

    @property
    def is_within(self) -> bool:
        return (self.figure if self.ratio is None else self.ratio) <= self.bound

    def cells(self) -> tuple[str, ...]:
        compared = self.ratio is not None
        return (
            self.subject,
            f"{self.figure:.3g} {self.unit}".strip(),
            f"{self.peer}: {self.peer_figure:.3g} {self.unit}" if compared else "",
            f"{self.ratio:.2f}" if self.ratio is not None else "",
            f"{self.bound:g}" if compared else f"{self.bound:g} {self.unit}".strip(),
            "yes" if self.is_within else "**no**",
        )


def bnstat(*arguments: object) -> tuple[str, ...]:
    """Return the command that runs bnstat in a new process, as its console script does."""
    return script("from bnstat.__main__ import run; run()", *arguments)


def script(code: str, *arguments: object) -> tuple[str, ...]:
    """Return the command that runs Python code in a new process."""
    return (sys.executable, "-c", code, *map(str, arguments))


def environment() -> dict[str, str]:
    """Return the environment of the commands: this checkout's bnstat, and a silent TensorFlow."""
    kept = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    path = os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))
    return kept | {"PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}


def run(command: Sequence[str], timeout: float = 600) -> Run:
    """Run a command and discard its output.

    Exit code 1 is allowed without a traceback: it is the answer "no".

    Raises:
        RuntimeError: the command failed, or took longer than the timeout in seconds.
    """
    start = perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment()
    )
    signal.signal(signal.SIGALRM, lambda *_: process.kill())
    signal.setitimer(signal.ITIMER_REAL, timeout)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = perf_counter() - start
    signal.setitimer(signal.ITIMER_REAL, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1) or b"Traceback" in errors:
        raise RuntimeError(f"{command}: exit {process.returncode}: {errors.decode()[-500:]}")
    return Run(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024)


def printed(command: Sequence[str]) -> Any:
    """Run a command, and return the JSON of the last line that it prints."""
    settings: dict[str, Any] = {"capture_output": True, "check": True, "text": True}
    done = subprocess.run(command, env=environment(), cwd=ROOT, timeout=900, **settings)
    return json.loads(done.stdout.splitlines()[-1])


def in_turn(
    commands: Mapping[str, Sequence[str]], times: int, before: Callable[[], None] = lambda: None
) -> dict[str, list[Run]]:
    """Run all commands in turn, `times` times, after one run of each that does not count.

    `before` is called before each run, and is not measured.
    """
    runs: dict[str, list[Run]] = {label: [] for label in commands}
    for number in range(times + 1):
        for label, command in commands.items():
            before()
            taken = run(command)
            if number:
                runs[label].append(taken)
    return runs


def compared(
    subject: str, peer: str, bound: float, ours: Floats, theirs: Floats, unit: str = "s"
) -> Result:
    """Return the result of figures in turn with a peer's, so that a change of speed cancels out."""
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    medians = statistics.median(ours), statistics.median(theirs)
    return Result(subject, medians[0], unit, bound, peer, medians[1], ratio)


def cpu(runs: Iterable[Run]) -> list[float]:
    return [run.cpu for run in runs]


def wall(runs: Iterable[Run]) -> list[float]:
    return [run.wall for run in runs]


def peak(runs: Iterable[Run]) -> float:
    """Return the median of the peak memory, in MB."""
    return statistics.median(run.peak for run in runs)


def build(folder: Path, *names: str) -> None:
    """Write inputs (functions of `inputs.py`) to subfolders, unless they exist already."""
    for name in names:
        if (folder / name).is_dir():
            continue
        print(f"writing {name} ...", file=sys.stderr)
        unfinished = folder / f"{name}.unfinished"
        unfinished.mkdir(parents=True, exist_ok=True)
        command = (sys.executable, "-m", "tests.benchmarks.inputs", name, unfinished)
        subprocess.run(command, check=True, env=environment(), cwd=ROOT)
        unfinished.rename(folder / name)
