"""`bnstat history` over 200 checkpoints, and the Keras callback `bnstat.keras.Watch`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.measure import Result, bnstat, build, compared, in_turn, peak, printed, script

TITLE = "Follow a training run"
HISTORY = """
import json, sys
from time import process_time
import bnstat
from bnstat.model import Summary

def alone(folder, count):
    start = process_time()
    for step in range(0, count, 5):
        for layer in bnstat.load(f"{folder}/model-{step * 100}"):
            for variable in layer.variables.values():
                Summary.of(variable.read())
    return (process_time() - start) / (count // 5)

def together(folder, count):
    start = process_time()
    run = bnstat.history(bnstat.load_all(folder))
    assert len(run.checkpoints) == count
    return (process_time() - start) / count

folder, count = sys.argv[1], 200
print(json.dumps([(together(folder, count), alone(folder, count)) for _ in range(5)]))
"""
WATCH = """
import json, tempfile
from pathlib import Path
from time import perf_counter
import keras
import numpy as np
from bnstat.keras import Watch

class Timed(Watch):
    def on_epoch_end(self, epoch, logs=None):
        start = perf_counter()
        super().on_epoch_end(epoch, logs)
        ends.append(perf_counter())
        calls.append(ends[-1] - start)

calls, ends = [], []
model = keras.applications.MobileNetV2((96, 96, 3), weights=None, classes=10)
model.compile("sgd", "sparse_categorical_crossentropy")
x = np.random.default_rng(0).normal(size=(1920, 96, 96, 3)).astype("f4")
with tempfile.TemporaryDirectory() as folder:
    watch = Timed(tensorboard=folder, history=Path(folder) / "bn.json")
    model.fit(x, np.arange(1920) % 10, batch_size=32, epochs=4, verbose=0, callbacks=[watch])
print(json.dumps([calls[1:], np.diff(ends).tolist()]))
"""


def measure(data: Path, runs: int) -> Iterator[Result]:
    del runs
    build(data, "history_200")
    folder = data / "history_200"
    pairs = printed(script(HISTORY, folder))
    yield compared(
        "a checkpoint in a history of 200, CPU",
        "one that is loaded and summarized alone",
        1.0,
        [1000 * together for together, _ in pairs],
        [1000 * alone for _, alone in pairs],
        "ms",
    )
    taken = in_turn({"ours": bnstat("history", folder, "--json", "-o", "/dev/null")}, 3)
    yield Result("history of 200 checkpoints, peak memory", peak(taken["ours"]), "MB", 80)
    # The first call imports what the rules need.
    calls, epochs = printed(script(WATCH))
    yield compared(
        "Watch after an epoch of 60 batches of MobileNetV2", "the epoch", 0.01, calls, epochs
    )
