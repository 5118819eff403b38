"""What `bnstat.keras.Watch` costs of an epoch of MobileNetV2 (52 layers), against its budget.

    python tests/benchmarks/bench_watch.py [--library keras|tf_keras] [--steps N] [--epochs N]

An epoch of 60 batches of 32 small pictures is short: the share is smaller in any that trains
something. A look has to take at most 1 % of it: the looks at all epochs but the first together
(the first imports what the rules need), with a history and an event file written at each. The exit
code is 1 if the budget is not kept.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from measure import Budget, verdict

SIZE, BATCH = 96, 32


def timed(base: Any) -> Any:
    """`Watch`, which notes how long each of its looks took, and when."""

    class Timed(base):  # type: ignore[misc]
        looks: list[float]
        ends: list[float]

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            start = perf_counter()
            super().on_epoch_end(epoch, logs)
            self.ends.append(perf_counter())
            self.looks.append(self.ends[-1] - start)

    return Timed


def main() -> int:
    """Measure, print, and give the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", choices=("keras", "tf_keras"), default="keras")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    library = import_module(arguments.library)  # before bnstat.keras, which takes what it finds
    from bnstat.keras import Watch

    model = library.applications.MobileNetV2((SIZE, SIZE, 3), weights=None, classes=10)
    model.compile("sgd", "sparse_categorical_crossentropy")
    x = np.random.default_rng(0).normal(size=(BATCH * arguments.steps, SIZE, SIZE, 3))
    with tempfile.TemporaryDirectory() as folder:
        watch = timed(Watch)(tensorboard=folder, history=Path(folder) / "bn.json")
        watch.looks, watch.ends = [], []
        model.fit(
            x.astype(np.float32),
            np.arange(len(x)) % 10,
            batch_size=BATCH,
            epochs=arguments.epochs,
            verbose=0,
            callbacks=[watch],
        )
    epochs = np.diff(watch.ends)
    looks = np.array(watch.looks[1:])
    print(
        f"{arguments.library}: an epoch takes {np.median(epochs):.2f} s, a look "
        f"{1e3 * np.median(looks):.1f} ms, the first {1e3 * watch.looks[0]:.0f} ms"
    )
    return verdict([Budget("a look", float(100 * looks.sum() / epochs.sum()), 1, " % of an epoch")])


if __name__ == "__main__":
    sys.exit(main())
