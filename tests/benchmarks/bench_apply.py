"""What a mended copy of a checkpoint of 1 GB costs, beside a plain one.

    python tests/benchmarks/bench_apply.py [--data FOLDER] [--runs N]

A copy by bnstat is on the disk when it gets its name; `cp` leaves that to the system, so it is
measured with and without waiting for it. Whole processes, run in turn; figures are medians.
FOLDER keeps the input for the next time: 1 GB.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from measure import Budget, Run, bnstat, build, in_turn, median, ratio, run, table, verdict

OF_A_COPY = 1.2
PEAK = 80
FILES = ("model.data-00000-of-00001", "model.index")


def main() -> int:
    """Write the input, measure, print; the exit code says whether the budgets are kept."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--data", type=Path, help="where inputs are kept; default: nowhere")
    options.add_argument("--runs", type=int, default=5)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as nowhere:
        data = given.data or Path(nowhere)
        build(data, "kernels_1gb")
        return verdict(measured(data / "kernels_1gb", given.runs))


def measured(folder: Path, runs: int) -> list[Budget]:
    """Copies into a folder that is emptied before each command."""
    values, copies = folder / "values.npz", folder / "copies"
    run(bnstat("export", folder / "model", "-o", values))
    plain = " && ".join(f"cp {shlex.quote(str(folder / file))} ." for file in FILES)
    mended = shlex.join(bnstat("apply", folder / "model", values, "-o", "model"))
    commands = {
        "cp": plain,
        "cp, and on the disk": f"{plain} && sync {' '.join(FILES)}",
        "bnstat apply": f"exec {mended}",
    }

    def emptied() -> None:
        # What is on the disk takes longer to remove than what is not: not a copy's time.
        shutil.rmtree(copies, ignore_errors=True)
        copies.mkdir()

    found = in_turn(
        {
            label: ("sh", "-c", f"cd {shlex.quote(str(copies))} && {command}")
            for label, command in commands.items()
        },
        runs,
        emptied,
    )
    table(found)
    copied, on_disk, ours = found.values()
    return [
        Budget("time over that of cp, on the disk", ratio(ours, on_disk, _wall), OF_A_COPY),
        Budget("time over that of cp", ratio(ours, copied, _wall), OF_A_COPY),
        Budget("peak memory", median(ours, lambda one: one.peak), PEAK, " MB"),
    ]


def _wall(one: Run) -> float:
    return one.wall


if __name__ == "__main__":
    sys.exit(main())
