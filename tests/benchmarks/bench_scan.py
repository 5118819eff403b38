"""What `bnstat scan` costs over stores of many models, against its budgets.

    python tests/benchmarks/bench_scan.py [--data FOLDER] [--models N] [--runs N] [--large]

The stores are hard links to the models that ship with the tests and, where they lie beside the
project, to real ones. On two cores:

- 10,000 models with `--jobs 2`: a model takes at most 0.04 of the time in which an interpreter
  imports what any such program needs;
- a second scan of them with `--state`, of which none changed: within 0.05 of the first;
- over two local worker processes of Dask at least 0.8 of the speed, and the same lines;
- the memory of the scan's own process, workers not counted: below 150 MB for 1,000, 10,000 and,
  with `--large`, 100,000 models.

Times are of whole processes; a cluster's start is in them. The exit code is 1 if a budget is not
kept.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from measure import FLOOR, ROOT, Budget, bnstat, environment, run, verdict

MODEL_OF_FLOOR, SECOND_SCAN, OF_LOCAL, PEAK = 0.04, 0.05, 0.8, 150
REAL = ROOT.parent / "shared/real"
SHIPPED = ROOT / "tests/data"


class Scan(NamedTuple):
    """A scan: seconds, the most memory of its own process in MB, its lines in order."""

    seconds: float
    peak: float
    lines: list[str]


def main() -> int:
    """Link the stores, scan them, print."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--data", type=Path, help="where stores are kept; default: nowhere")
    options.add_argument("--models", type=int, default=10_000)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--large", action="store_true", help="also ten times as many models")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return measure(given.data or Path(folder), given.models, given.runs, given.large)


def measure(folder: Path, models: int, runs: int, large: bool) -> int:
    """Scan stores of different sizes in different ways; gives the exit code."""
    store = stored(folder, models)
    state = folder / "state.db"
    taken: dict[str, list[Scan]] = {}
    floors = []
    for _ in range(runs):
        state.unlink(missing_ok=True)
        floors.append(run(FLOOR).wall)
        for label, options in {
            "--jobs 2": (),
            "--state, the first": ("--state", state),
            "--state, the second": ("--state", state),
            "dask://local": ("--engine", "dask://local"),
        }.items():
            taken.setdefault(label, []).append(scan(store, *options))
            row(label, taken[label][-1])
    small = scan(stored(folder, models // 10))
    row(f"--jobs 2, {models // 10:,} models", small)
    peaks = [small.peak, *(one.peak for scans in taken.values() for one in scans)]
    if large:
        huge = scan(stored(folder, 10 * models))
        row(f"--jobs 2, {10 * models:,} models", huge)
        peaks.append(huge.peak)
    local, first, again, dask = taken.values()
    found = len(local[0].lines)
    differing = sum(one.lines != local[0].lines for one in [*again, *dask])
    return verdict(
        [
            Budget(
                "the time per model, of that of the imports",
                of([scan.seconds / found for scan in local], floors),
                MODEL_OF_FLOOR,
                "x",
            ),
            Budget(
                "a second scan, of the time of the first",
                of([scan.seconds for scan in again], [scan.seconds for scan in first]),
                SECOND_SCAN,
                "x",
            ),
            Budget(
                "the time over Dask, of that of --jobs 2",
                of([scan.seconds for scan in dask], [scan.seconds for scan in local]),
                1 / OF_LOCAL,
                "x",
            ),
            Budget("scans with other lines", differing, 0),
            Budget("the most memory", max(peaks), PEAK, " MB"),
        ]
    )


def of(times: Sequence[float], others: Sequence[float]) -> float:
    """Return the median ratio of times that were measured in turn."""
    return statistics.median(one / other for one, other in zip(times, others, strict=True))


def stored(folder: Path, models: int) -> Path:
    """A store of at least so many models, unless it is there already."""
    store = folder / f"store_{models}"
    if store.exists():
        return store
    print(f"linking {models:,} models ...", file=sys.stderr)
    seeds = [path for path in SHIPPED.iterdir() if path.is_dir()]
    seeds += [path for path in REAL.iterdir() if path.is_dir()] if REAL.is_dir() else []
    unfinished = folder / f"{store.name}.unfinished"
    copy_all(seeds, unfinished / "0")
    each = len(scan(unfinished / "0").lines)
    for number in range(1, -(-models // each)):
        copy_all(seeds, unfinished / str(number))
    unfinished.rename(store)
    return store


def copy_all(seeds: list[Path], folder: Path) -> None:
    """The folders in another, by hard links where these are to be had."""
    for seed in seeds:
        shutil.copytree(seed, folder / seed.name, copy_function=link)


def link(source: str, target: str) -> None:
    """A hard link, or else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def scan(store: Path, *options: object) -> Scan:
    """Run a scan with two jobs.

    Raises:
        RuntimeError: it failed.
    """
    lines = store.parent / "lines.jsonl"
    start = perf_counter()
    process = subprocess.Popen(
        bnstat("scan", store, "--jobs", 2, "--json", "-q", "-o", lines, *options),
        env=environment(),
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1):
        raise RuntimeError(f"exit {process.returncode}")
    return Scan(seconds, usage.ru_maxrss / 1024, sorted(lines.read_text().splitlines()))


def row(label: str, taken: Scan) -> None:
    """Print a scan."""
    count = len(taken.lines)
    print(
        f"{label:32} {count:7,} models {taken.seconds:7.2f} s {count / taken.seconds:7,.0f}/s"
        f" {taken.peak:5.0f} MB",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
