"""A repaired copy of a checkpoint of 1 GB, beside a plain copy."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.measure import Result, bnstat, build, compared, in_turn, peak, run, wall

TITLE = "Apply new values to a checkpoint of 1 GB"
FILES = ("model.data-00000-of-00001", "model.index")


def measure(data: Path, runs: int) -> Iterator[Result]:
    """Copy into a folder that is emptied before each command.

    A copy by bnstat is on the disk when it gets its name, and so is what `sync` waits for.
    """
    build(data, "kernels_1gb")
    folder = data / "kernels_1gb"
    values, copies = folder / "values.npz", folder / "copies"
    run(bnstat("export", folder / "model", "-o", values))
    plain = " && ".join(f"cp {shlex.quote(str(folder / file))} ." for file in FILES)
    commands = {
        "peer": f"{plain} && sync {' '.join(FILES)}",
        "ours": f"exec {shlex.join(bnstat('apply', folder / 'model', values, '-o', 'model'))}",
    }

    def empty() -> None:
        shutil.rmtree(copies, ignore_errors=True)
        copies.mkdir()

    inside = f"cd {shlex.quote(str(copies))} && "
    taken = in_turn(
        {label: ("sh", "-c", inside + command) for label, command in commands.items()},
        min(runs, 5),
        empty,
    )
    shutil.rmtree(copies)
    yield compared(
        "time until it is on the disk", "`cp; sync`", 1.2, wall(taken["ours"]), wall(taken["peer"])
    )
    yield Result("peak memory", peak(taken["ours"]), "MB", 80)
