"""What `bnstat history` costs over 200 checkpoints of a network of 50 layers, against its budgets.

    python tests/benchmarks/bench_history.py [--data FOLDER] [--rounds N]

- the CPU time that a checkpoint costs in a history: no more than that checkpoint costs alone in a
  warm process, where it is loaded and its arrays are read and summarized, as `inspect` does. The
  time without the summaries is printed beside it;
- the memory of the whole command: below 80 MB, of which an interpreter with NumPy takes 40;
  reading all 200 checkpoints and keeping them would take 40 more.

The two times are taken in turn in one process, and their ratio round by round. TensorFlow writes
the checkpoints on the first run; FOLDER keeps them for the next. The exit code is 1 if a budget is
not kept.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING

from measure import ROOT, Budget, bnstat, environment, in_turn, median, table, verdict

if TYPE_CHECKING:
    from bnstat.model import Array

CHECKPOINTS, LAYERS, CHANNELS = 200, 50, 256
PEAK = 80

WRITE = """
import sys
import numpy as np
import tensorflow as tf

folder, checkpoints, layers, channels = sys.argv[1], *map(int, sys.argv[2:])

class Layer(tf.Module):
    def __init__(self, name):
        super().__init__()
        self.kernel = tf.Variable(tf.zeros((3, 3, 4, channels)), name=f"{name}/conv/kernel")
        for role in ("gamma", "beta", "moving_mean", "moving_variance"):
            setattr(self, role, tf.Variable(tf.ones(channels), name=f"{name}/bn/{role}"))

network = {f"layer_{number}": Layer(f"block{number}") for number in range(layers)}
checkpoint = tf.train.Checkpoint(**network)
random = np.random.default_rng(0)
for step in range(checkpoints):
    for layer in network.values():
        for variable in layer.variables:
            if variable.shape.rank == 1:
                variable.assign_add(random.normal(0, 0.01, channels).astype(np.float32))
    checkpoint.write(f"{folder}/model-{step * 100}")
"""


def write(folder: Path) -> None:
    """Have the run written to a folder, unless it is there already."""
    if (folder / f"model-{(CHECKPOINTS - 1) * 100}.index").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    print("writing the run ...", file=sys.stderr)
    arguments = (str(folder), *map(str, (CHECKPOINTS, LAYERS, CHANNELS)))
    subprocess.run(
        [sys.executable, "-c", WRITE, *arguments],
        check=True,
        env=environment(),
        stderr=subprocess.DEVNULL,
    )


def alone(folder: Path, look: Callable[[Array], object]) -> float:
    """CPU seconds to load a checkpoint and look at its arrays, by a fifth of the checkpoints."""
    from bnstat import load

    start = process_time()
    for step in range(0, CHECKPOINTS, 5):
        for layer in load(folder / f"model-{step * 100}"):
            for variable in layer.variables.values():
                look(variable.read())
    return (process_time() - start) / (CHECKPOINTS // 5)


def in_history(folder: Path) -> float:
    """CPU seconds a checkpoint in a history of all of them."""
    from bnstat import load_all
    from bnstat.compare import history

    start = process_time()
    run = history(load_all(folder))
    seconds = process_time() - start
    if (len(run.checkpoints), len(run.layers)) != (CHECKPOINTS, LAYERS):
        raise RuntimeError(f"{len(run.checkpoints)} checkpoints, {len(run.layers)} layers")
    return seconds / CHECKPOINTS


def measured(folder: Path) -> tuple[float, float, float]:
    """CPU seconds of a checkpoint that is read alone, read and summarized, and in a history."""
    from bnstat.model import Summary

    return alone(folder, len), alone(folder, Summary.of), in_history(folder)


def main() -> int:
    """Measure, print, and give the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.data or Path(temporary)) / "history_200"
        write(folder)
        rounds = [measured(folder) for _ in range(arguments.rounds)]
        command = bnstat("history", folder, "--json", "-o", "/dev/null")
        runs = in_turn({"bnstat history, 200 checkpoints": command}, 3)
    table(runs)
    labels = ("read alone", "read and summarized alone", "in a history")
    for label, times in zip(labels, zip(*rounds, strict=True), strict=True):
        print(f"a checkpoint {label:25}  {statistics.median(times) * 1e3:6.2f} ms CPU")
    print()
    (taken,) = runs.values()
    return verdict(
        [
            Budget(
                "a checkpoint in a history, of one read and summarized alone",
                statistics.median(each / one for _, one, each in rounds),
                1.0,
                "x",
            ),
            Budget("peak of the command", median(taken, lambda run: run.peak), PEAK, " MB"),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
