"""`bnstat scan` of a store of thousands of models: in two processes, again, and on Dask."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.measure import IMPORTS, ROOT, Result, Run, bnstat, compared, run, wall

TITLE = "Scan 3,000 models"
MODELS = 3000
SHIPPED = ROOT / "tests/data"


def measure(data: Path, runs: int) -> Iterator[Result]:
    store, state = linked(data), data / "state.db"
    ways = {
        "two processes": (),
        "first": ("--state", state),
        "again": ("--state", state),
        "dask": ("--engine", "dask://local"),
    }
    taken: dict[str, list[Run]] = {way: [] for way in ways}
    imports = []
    listed = []
    for _ in range(min(runs, 3)):
        state.unlink(missing_ok=True)
        imports.append(run(IMPORTS))
        for way, options in ways.items():
            cost, lines = scan(store, *options)
            taken[way].append(cost)
            listed.append(lines)
    seconds = {way: wall(scans) for way, scans in taken.items()}
    per_model = [1000 * each / len(listed[0]) for each in seconds["two processes"]]
    milliseconds = [1000 * each for each in wall(imports)]
    yield compared("time per model", "imports", 0.04, per_model, milliseconds, "ms")
    yield compared("a second scan with --state", "first", 0.1, seconds["again"], seconds["first"])
    yield compared("on Dask", "two processes", 1.25, seconds["dask"], seconds["two processes"])
    most = max(one.peak for way in taken.values() for one in way)
    yield Result("peak memory", most, "MB", 150)
    yield Result("scans with other lines", sum(each != listed[0] for each in listed), "", 0)


def linked(data: Path) -> Path:
    """Return a store with the models that ship with the tests, and hard links to them."""
    store = data / f"store_{MODELS}"
    if store.exists():
        return store
    unfinished = data / f"{store.name}.unfinished"
    for path in SHIPPED.iterdir():
        if path.is_dir():
            shutil.copytree(path, unfinished / "0" / path.name)
    _, lines = scan(unfinished / "0")
    for number in range(1, -(-MODELS // len(lines))):
        shutil.copytree(unfinished / "0", unfinished / str(number), copy_function=os.link)
    unfinished.rename(store)
    return store


def scan(store: Path, *options: object) -> tuple[Run, list[str]]:
    """Scan with two jobs, and return the cost and the sorted lines."""
    lines = store.parent / "lines.jsonl"
    cost = run(bnstat("scan", store, "--jobs", 2, "--json", "-q", "-o", lines, *options))
    return cost, sorted(lines.read_text().splitlines())
