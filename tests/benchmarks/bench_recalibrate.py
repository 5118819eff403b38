"""What a pass of `bnstat drift` and of `bnstat recalibrate` costs beside a plain forward pass.

    python tests/benchmarks/bench_recalibrate.py [--runs N] [--images N] [NAME ...]

NAMEs are MobileNetV2, at 96x96, ResNet50, at 128x128, and Small, three convolutions at 32x32, built
by tf-keras with random weights and saved as SavedModels. Each figure is of a process of its own, in
turn: the CPU time of one pass over the images in batches of 64, after one pass that is not counted,
and the peak memory of the process. Of `--exact` it is the time of all waves and of the verifying
pass, which may be half the number of waves and one more times that of a plain pass; `starts` is
where no activations are kept. CPU time is compared because other work on the machine disturbs it
least.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time

import numpy as np
from measure import Budget, environment, verdict

SIZES = {"MobileNetV2": 96, "ResNet50": 128, "Small": 32}
IMAGES = {"MobileNetV2": 512, "ResNet50": 512, "Small": 16384}
WAVES = {"MobileNetV2": 52, "ResNet50": 53, "Small": 3}
MOST = {"MobileNetV2": 1.7, "ResNet50": 1.25}
MOST_MEMORY = 1.3
WAYS = ("plain", "drift", "recalibrate", "exact", "starts")
BATCH = 64


def build(name: str, folder: Path) -> None:
    """Save a network of that name."""
    import tensorflow as tf
    import tf_keras

    size = SIZES[name]
    if name == "Small":
        model = tf_keras.Sequential([tf_keras.Input((size, size, 3))])
        for filters in (32, 64, 128):
            model.add(tf_keras.layers.Conv2D(filters, 3, 2, "same", use_bias=False))
            model.add(tf_keras.layers.BatchNormalization())
            model.add(tf_keras.layers.ReLU())
    else:
        model = getattr(tf_keras.applications, name)(weights=None, input_shape=(size, size, 3))
    tf.saved_model.save(model, str(folder))


def prepared(way: str, folder: str, images: np.ndarray) -> Callable[[], object]:
    """What makes one pass over the images."""
    if way == "plain":
        import tensorflow as tf

        model = tf.saved_model.load(folder)
        signature = model.signatures["serving_default"]
        (name,) = signature.structured_input_signature[1]

        def forward() -> None:
            for start in range(0, len(images), BATCH):
                signature(**{name: tf.constant(images[start : start + BATCH])})

        return forward
    from bnstat.estimate.passes import Kept, read, untracked
    from bnstat.estimate.recalibrating import Settings, scene
    from bnstat.estimate.recalibration import estimate

    settings = Settings(samples=len(images), batch_size=BATCH)
    opened = scene(folder, images, settings)
    subject = opened.subject
    if way in ("exact", "starts"):
        kept = Kept() if way == "exact" else Kept(0)
        return lambda: estimate(opened, exact=True, kept=kept)
    stored = subject.stored()
    runner = subject.runner(by_batch=way == "recalibrate", sample=True)
    layers = list(subject.layers)
    return lambda: read(subject, runner, opened.data, untracked, "", given=stored, layers=layers)


def work(way: str, folder: str, count: int, size: int) -> None:
    """Make two passes; print the CPU seconds of the second and the peak memory in MB.

    What makes a pass for each wave is made once.
    """
    images = np.random.default_rng(0).random((count, size, size, 3), np.float32)
    run = prepared(way, folder, images)
    if way not in ("exact", "starts"):
        run()
    start = process_time()
    run()
    taken = process_time() - start
    print(taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measured(way: str, folder: Path, count: int, size: int) -> tuple[float, float]:
    """The CPU seconds and the peak memory of a process that goes that way."""
    arguments = [sys.executable, __file__, "--worker", way, str(folder), str(count), str(size)]
    done = subprocess.run(
        arguments, capture_output=True, text=True, env=environment(), check=True, timeout=900
    )
    seconds, megabytes = done.stdout.split()[-2:]
    return float(seconds), float(megabytes)


def limits(name: str, way: str) -> list[tuple[int, str, float]]:
    """Which of the figures may be how many times those of a plain pass."""
    if way in ("exact", "starts"):
        return [(0, "time", WAVES[name] / 2 + 1)]
    return [(0, "time", MOST[name]), (1, "memory", MOST_MEMORY)] if name in MOST else []


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        way, folder, count, size = sys.argv[2:]
        work(way, folder, int(count), int(size))
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(SIZES))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--images", type=int, help="instead of 512, of Small 16384")
    parser.add_argument("--ways", nargs="*", choices=WAYS[1:], default=WAYS[1:])
    options = parser.parse_args()
    budgets = []
    for name in options.names:
        with tempfile.TemporaryDirectory() as folder:
            build(name, Path(folder))
            taken: dict[str, list[tuple[float, float]]] = {
                way: [] for way in ("plain", *options.ways)
            }
            for _ in range(options.runs):
                for way in taken:
                    figures = measured(
                        way, Path(folder), options.images or IMAGES[name], SIZES[name]
                    )
                    taken[way].append(figures)
                    print(f"{name} {way}: {figures[0]:.2f} s, {figures[1]:.0f} MB", flush=True)
        for way in options.ways:
            for place, what, most in limits(name, way):
                ratios = [
                    ours[place] / plain[place]
                    for ours, plain in zip(taken[way], taken["plain"], strict=True)
                ]
                figure = statistics.median(ratios)
                budgets.append(Budget(f"{name}: {what} of {way}", figure, most, "x"))
    return verdict(budgets)


if __name__ == "__main__":
    raise SystemExit(main())
