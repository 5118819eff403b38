"""Runs the benchmarks and prints each figure beside its peer and its bound.

    python -m tests.benchmarks [--data FOLDER] [--runs N] [--write] [NAME ...]

Every figure is the median of whole processes that run in turn with a peer: the imports that any
such program needs, the shortest script with the format's own library, `cp`, or a forward pass. No
bound is in seconds, so the result does not depend on the speed of the machine. The exit code is 1
if a bound is not kept.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name

from tests.benchmarks.measure import ROOT, Result

BENCHMARKS = {
    "reading": ("Inspect a checkpoint", "commands:reading"),
    "formats": ("Inspect EfficientNetB4 in each format", "commands:formats"),
    "export": ("Export 10,000,000 values", "commands:export"),
    "training": ("Follow a training run", "commands:training"),
    "applying": ("Apply new values to a checkpoint of 1 GB", "commands:applying"),
    "estimating": ("Run a network over data", "estimating:measure"),
    "scanning": ("Scan 3,000 models", "commands:scanning"),
    "remote": ("Load EfficientNetB4 from a server", "remote:measure"),
    "report": ("Make and use an HTML report", "commands:report"),
}
"""Name -> title, and function of the folder of the inputs and the number of runs.

Each is imported when its turn comes: a command's peak memory would include that of this process,
which starts it."""

PAGE = ROOT / "bnstat/docs/speed.md"
HEADER = ("what", "figure", "peer", "ratio", "bound", "kept")
INTRODUCTION = """\
# Speed

`python -m tests.benchmarks --write` measures these figures and writes this page; with names of
benchmarks, it writes only their sections. Each figure is the median of whole processes, measured in
turn with its peer. The bound is the largest ratio allowed, or the largest figure if there is no
peer.

"imports" is a Python process that imports NumPy, click and what bnstat uses of rich. A library's
name is the shortest script with that library that prints the same numbers. That script imports less
than a command with options and tables, so the goal of 1 is out of reach for safetensors.
"""


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--data", type=Path, help="where inputs are kept; default: nowhere")
    options.add_argument("--runs", type=int, default=7, help="runs of each short command")
    options.add_argument("--write", action="store_true", help=f"update sections of {PAGE.name}")
    options.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    given = options.parse_args()
    results: dict[str, list[Result]] = {}
    is_complete = True
    with tempfile.TemporaryDirectory() as temporary:
        data = given.data or Path(temporary)
        for name in given.names or BENCHMARKS:
            title, place = BENCHMARKS[name]
            measure = resolve_name(f"tests.benchmarks.{place}")
            results[title] = []
            try:
                for result in measure(data, given.runs):
                    results[title].append(result)
                    print("  ".join(cell for cell in result.cells() if cell), flush=True)
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                print(f"{name}: {error}", file=sys.stderr)
                is_complete = False
    if given.write:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    is_kept = all(row.is_within for rows in results.values() for row in rows)
    return int(not (is_complete and is_kept))


def page(old: str, results: dict[str, list[Result]]) -> str:
    """Return the Markdown page `old` with the sections of these results replaced or added.

    A section without rows, whose benchmark failed, stays as it is.
    """
    _, *parts = old.split("\n## ")
    sections = {part.partition("\n")[0]: part.partition("\n")[2].strip("\n") for part in parts}
    day = datetime.datetime.now(datetime.timezone.utc).date()
    measured = f"Measured on {day}: {machine()}."
    for title, rows in results.items():
        table = [f"| {' | '.join(row)} |" for row in (HEADER, *(row.cells() for row in rows))]
        table.insert(1, "| --- " * len(HEADER) + "|")
        if rows:
            sections[title] = "\n".join([measured, "", *table])
    titles = [title for title, _ in BENCHMARKS.values() if title in sections]
    return "\n".join([INTRODUCTION, *(f"## {title}\n\n{sections[title]}\n" for title in titles)])


def machine() -> str:
    processor = platform.machine()
    with suppress(OSError):
        found = re.search(r"model name\s*:(.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        processor = found[1].strip() if found else processor
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{processor}, {cores} cores, {platform.system()}, Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main())
