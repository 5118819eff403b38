"""What `bnstat inspect` costs, cold, against its budgets.

    python tests/benchmarks/bench_inspect.py [--data FOLDER] [--runs N]

Whole processes, run in turn: the floor (an interpreter that imports what any such program needs),
bnstat, and the shortest TensorFlow script that prints the same numbers. Figures are medians; the
ratios are taken run by run, so that a machine that changes its speed does not bend them.

- MobileNetV2's checkpoint: within 1.3 times the floor's CPU time, ten times faster than
  TensorFlow, below 60 MB;
- 100,000 variables, by names and by objects: within 2.7 times the floor's CPU time;
  1,000,000 by objects: within 18 times, and 400 MB;
- bytes read: the index and the batch-norm tensors alone, and as many of a checkpoint of 10 GB as
  of one of 10 MB.

TensorFlow writes the inputs on the first run; FOLDER keeps them for the next. The exit code is 1
if a budget is not kept.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from measure import (
    FLOOR,
    Budget,
    Run,
    bnstat,
    build,
    environment,
    in_turn,
    median,
    ratio,
    started,
    table,
    tensorflow,
    verdict,
)

CPU_OF_FLOOR, SPEED_OF_TENSORFLOW, PEAK = 1.3, 0.1, 60
FLOORS_OF_100K, FLOORS_OF_A_MILLION, PEAK_OF_A_MILLION = 2.7, 18, 400
SLACK = 16 << 10
"""Bytes for the last block of a file and its marks, which are read to tell what a file is."""

READ = """
import sys
import bnstat

def counted():
    with open("/proc/self/io") as accounts:
        return int(accounts.readline().split()[1])

def everything():
    return sum(
        variable.read().nbytes
        for layer in bnstat.load(sys.argv[1])
        for variable in layer.variables.values()
    )

everything()
start = counted()
overhead = counted() - start
start = counted()
wanted = everything()
print(counted() - start - overhead, wanted)
"""


def measure(data: Path, runs: int) -> int:
    """Measure all that the module's documentation names."""
    build(data, "mobilenet", "names_100k", "objects_100k", "objects_1m")
    build(data, "sparse_10mb", "sparse_10gb")
    return verdict(
        [
            *cold(data / "mobilenet/model", runs),
            *many(data, max(3, runs // 3)),
            *a_million(data),
            *reading(data),
        ]
    )


def cold(model: Path, runs: int) -> list[Budget]:
    """A cold `inspect` on MobileNetV2."""
    commands = {
        "imports alone": FLOOR,
        "bnstat inspect, MobileNetV2": bnstat("inspect", model),
        "TensorFlow, MobileNetV2": tensorflow(model),
    }
    found = in_turn(commands, runs)
    table(found)
    floor, ours, theirs = found.values()
    return [
        Budget("CPU over that of the imports", ratio(ours, floor, _cpu), CPU_OF_FLOOR),
        Budget("wall over TensorFlow's", ratio(ours, theirs, _wall), SPEED_OF_TENSORFLOW),
        Budget("CPU over TensorFlow's", ratio(ours, theirs, _cpu), SPEED_OF_TENSORFLOW),
        Budget("peak memory", median(ours, _peak), PEAK, " MB"),
    ]


def many(data: Path, runs: int) -> list[Budget]:
    """`inspect` on 100,000 variables."""
    commands = {"imports alone": FLOOR}
    for kind in ("names", "objects"):
        model = data / f"{kind}_100k/model"
        commands[f"bnstat inspect, 100,000 variables by {kind}"] = bnstat("inspect", model)
        commands[f"TensorFlow, 100,000 variables by {kind}"] = tensorflow(model)
    found = in_turn(commands, runs)
    table(found)
    return [
        Budget(
            f"{label}: CPU over that of the imports",
            ratio(taken, found["imports alone"], _cpu),
            FLOORS_OF_100K,
            "x",
        )
        for label, taken in found.items()
        if label.startswith("bnstat")
    ]


def a_million(data: Path) -> list[Budget]:
    """`inspect` on 1,000,000 variables by objects."""
    label = "bnstat inspect, 1,000,000 variables by objects"
    commands = {"imports alone": FLOOR, label: bnstat("inspect", data / "objects_1m/model")}
    found = in_turn(commands, 3)
    table(found)
    floor, ours = found.values()
    return [
        Budget(
            f"{label}: CPU over that of the imports",
            ratio(ours, floor, _cpu),
            FLOORS_OF_A_MILLION,
            "x",
        ),
        Budget(f"{label}: peak memory", median(ours, _peak), PEAK_OF_A_MILLION, " MB"),
    ]


def reading(data: Path) -> list[Budget]:
    """The bytes that are read of a small and of a huge checkpoint."""
    if sys.platform != "linux":
        return []
    beside = {}
    print(f"{'':24}  {'file MB':>9}  {'read':>9}  {'index':>9}  {'tensors':>9}")
    for name in ("mobilenet", "sparse_10mb", "sparse_10gb"):
        model = data / name / "model"
        done = subprocess.run(
            [sys.executable, "-c", READ, model],
            env=environment(),
            capture_output=True,
            check=True,
            text=True,
        )
        read, tensors = map(int, done.stdout.split())
        index = model.with_suffix(".index").stat().st_size
        whole = model.with_suffix(".data-00000-of-00001").stat().st_size
        print(f"{name:24}  {whole / 1e6:9.1f}  {read:9}  {index:9}  {tensors:9}")
        beside[name] = read - index - tensors - _object_graph_size(model)
    print()
    more = beside["sparse_10gb"] - beside["sparse_10mb"]
    return [
        *(Budget(f"bytes beside what is needed, {name}", n, SLACK) for name, n in beside.items()),
        Budget("bytes more of 10 GB than of 10 MB", more, 0),
    ]


def _object_graph_size(model: Path) -> int:
    """The bytes of the string tensor that tells a checkpoint's structure."""
    from bnstat.formats.tensorflow.bundle import Bundle
    from bnstat.formats.tensorflow.object_graph import KEY
    from bnstat.storage.local import LocalFolder

    bundle = Bundle(LocalFolder(str(model.parent)), model.name, data=True)
    return bundle.entry(KEY).size if KEY in bundle.keys else 0


def _cpu(one: Run) -> float:
    return one.cpu


def _peak(one: Run) -> float:
    return one.peak


def _wall(one: Run) -> float:
    return one.wall


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.exit(started(__doc__, measure))
