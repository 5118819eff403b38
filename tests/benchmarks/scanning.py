"""`bnstat scan` of a store of thousands of models: in two processes, again, and on Dask."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from tests.benchmarks.measure import (
    IMPORTS,
    ROOT,
    Result,
    bnstat,
    compared,
    environment,
    run,
)

TITLE = "Scan 3,000 models"
MODELS = 3000
SHIPPED = ROOT / "tests/data"


@dataclass(frozen=True)
class Scan:
    """One scan: elapsed seconds, peak memory of its own process in MB, sorted lines."""

    seconds: float
    peak: float
    lines: list[str]


def measure(data: Path, runs: int) -> Iterator[Result]:
    store, state = linked(data), data / "state.db"
    ways = {
        "two processes": (),
        "first": ("--state", state),
        "again": ("--state", state),
        "dask": ("--engine", "dask://local"),
    }
    taken: dict[str, list[Scan]] = {way: [] for way in ways}
    imports = []
    for _ in range(min(runs, 3)):
        state.unlink(missing_ok=True)
        imports.append(run(IMPORTS).wall)
        for way, options in ways.items():
            taken[way].append(scan(store, *options))
    seconds = {way: [one.seconds for one in scans] for way, scans in taken.items()}
    count = len(taken["first"][0].lines)
    per_model = [1000 * each / count for each in seconds["two processes"]]
    milliseconds = [1000 * each for each in imports]
    yield compared("time per model", "imports", 0.04, per_model, milliseconds, "ms")
    yield compared("a second scan with --state", "first", 0.1, seconds["again"], seconds["first"])
    yield compared("on Dask", "two processes", 1.25, seconds["dask"], seconds["two processes"])
    scans = [one for way in taken.values() for one in way]
    yield Result("peak memory", max(one.peak for one in scans), "MB", 150)
    other = sum(one.lines != scans[0].lines for one in scans)
    yield Result("scans with other lines", other, "", 0)


def linked(data: Path) -> Path:
    """Return a store of models, each a hard link to a model that ships with the tests."""
    store = data / f"store_{MODELS}"
    if store.exists():
        return store
    models = [path for path in SHIPPED.iterdir() if path.is_dir()]
    unfinished = data / f"{store.name}.unfinished"
    copy_all(models, unfinished / "0")
    each = len(scan(unfinished / "0").lines)
    for number in range(1, -(-MODELS // each)):
        copy_all(models, unfinished / str(number))
    unfinished.rename(store)
    return store


def copy_all(models: list[Path], folder: Path) -> None:
    for model in models:
        shutil.copytree(model, folder / model.name, copy_function=link)


def link(source: str, target: str) -> None:
    """Make a hard link, or a copy where the file systems differ."""
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
