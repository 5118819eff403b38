"""Measures commands as whole processes, in turn, by the operating system's own accounts."""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
BNSTAT = (sys.executable, "-m", "bnstat")
FLOOR = (sys.executable, "-c", "import numpy, click, rich.table, rich.console")

_PEER = """
import sys
import tensorflow as tf
reader = tf.train.load_checkpoint(sys.argv[1])
for key in sorted(reader.get_variable_to_shape_map()):
    name = key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE")
    if name.endswith(("/gamma", "/beta", "/moving_mean", "/moving_variance")):
        value = reader.get_tensor(key)
        print(name, value.mean(), value.std(), value.min(), value.max())
"""


class Run(NamedTuple):
    """What one run of a command took.

    Attributes:
        cpu, wall: seconds; `cpu` is user and system time together.
        peak: the most memory that it held, in MB.
        read: bytes that it asked of files, modules included; 0 where the system does not tell.
    """

    cpu: float
    wall: float
    peak: float
    read: int


class Budget(NamedTuple):
    """What a figure has to keep to."""

    what: str
    figure: float
    most: float
    unit: str = ""

    def __str__(self) -> str:
        verdict = "within" if self.figure <= self.most else "OVER"
        return f"{verdict:6}  {self.what}: {self.figure:.3g}{self.unit} (at most {self.most:g})"


def bnstat(*arguments: object) -> tuple[str, ...]:
    """The command that runs bnstat in a new process."""
    return (*BNSTAT, *map(str, arguments))


def tensorflow(prefix: Path) -> tuple[str, ...]:
    """The shortest TensorFlow script that prints a checkpoint's batch-norm statistics."""
    return (sys.executable, "-c", _PEER, str(prefix))


def environment() -> dict[str, str]:
    """For the commands: this checkout's bnstat, compiled once, and a silent TensorFlow."""
    kept = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}


def run(command: Sequence[str], timeout: float = 600) -> Run:
    """Run a command; its output is read by nobody.

    Raises:
        RuntimeError: it failed.
    """
    start = perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment()
    )
    signal.signal(signal.SIGALRM, lambda *_: process.kill())
    signal.setitimer(signal.ITIMER_REAL, timeout)
    assert process.stderr is not None
    said = process.stderr.read()
    # Until it is waited for, an ended process still has its accounts.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    wall = perf_counter() - start
    read = _bytes_read(process.pid)
    _, status, usage = os.wait4(process.pid, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{command}: exit {process.returncode}: {said.decode()[-500:]}")
    return Run(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024, read)


def in_turn(
    commands: Mapping[str, Sequence[str]], times: int, before: Callable[[], None] = lambda: None
) -> dict[str, list[Run]]:
    """Run the commands in turn, so many times over, after one run each that is not counted.

    `before` is called before each run, and not measured.
    """
    for command in commands.values():
        before()
        run(command)
    runs: dict[str, list[Run]] = {label: [] for label in commands}
    for _ in range(times):
        for label, command in commands.items():
            before()
            runs[label].append(run(command))
    return runs


def ratio(ours: Sequence[Run], theirs: Sequence[Run], figure: Callable[[Run], float]) -> float:
    """The median of a figure of ours over theirs, run by run."""
    pairs = zip(ours, theirs, strict=True)
    return statistics.median(figure(one) / figure(other) for one, other in pairs)


def median(runs: Sequence[Run], figure: Callable[[Run], float]) -> float:
    """The median of a figure."""
    return statistics.median(map(figure, runs))


def table(runs: Mapping[str, Sequence[Run]]) -> None:
    """Print a row of medians for each command, with the least and the most CPU time."""
    width = max(map(len, runs))
    print(
        f"{'':{width}}  {'CPU s':>7} {'min-max':>15}  {'wall s':>7}  {'peak MB':>7}  {'read MB':>8}"
    )
    for label, taken in runs.items():
        cpu = [one.cpu for one in taken]
        print(
            f"{label:{width}}  {statistics.median(cpu):7.3f}"
            f" {f'{min(cpu):.3f}-{max(cpu):.3f}':>15}"
            f"  {median(taken, lambda one: one.wall):7.3f}"
            f"  {median(taken, lambda one: one.peak):7.0f}"
            f"  {median(taken, lambda one: one.read) / 1e6:8.2f}"
        )
    print()


def verdict(budgets: Sequence[Budget]) -> int:
    """Print which budgets are kept; gives the exit code."""
    for budget in budgets:
        print(budget)
    return int(any(budget.figure > budget.most for budget in budgets))


def started(about: str, measure: Callable[[Path, int], int]) -> int:
    """What `measure` gives of the folder of the inputs and the number of runs that are asked for.

    Args:
        about: the script's documentation, of which the first line is shown.
        measure: measures, prints, and gives the exit code.
    """
    options = argparse.ArgumentParser(description=about.partition("\n")[0])
    options.add_argument("--data", type=Path, help="where inputs are kept; default: nowhere")
    options.add_argument("--runs", type=int, default=11)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return measure(given.data or Path(folder), given.runs)


def build(folder: Path, *names: str) -> None:
    """Have those inputs written to a folder, unless they are there already."""
    for name in names:
        if (folder / name).is_dir():
            continue
        print(f"writing {name} ...", file=sys.stderr)
        unfinished = folder / f"{name}.unfinished"
        unfinished.mkdir(parents=True, exist_ok=True)
        script = Path(__file__).with_name("inputs.py")
        subprocess.run([sys.executable, script, name, unfinished], check=True, env=environment())
        unfinished.rename(folder / name)


def _bytes_read(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/io") as accounts:
            return int(accounts.readline().split()[1])
    except OSError:
        return 0
