"""One pass of `bnstat drift` and `bnstat recalibrate` over data, beside a plain forward pass."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import process_time

import numpy as np

from tests.benchmarks.measure import Result, build, compared, printed

BATCH = 64
NETWORKS = {
    "mobilenet_96": ("MobileNetV2 at 96x96", 96, 256, 52, 1.7),
    "resnet_128": ("ResNet50 at 128x128", 128, 128, 53, 1.25),
}
"""Input -> description, image size, numbers of images and of waves of an exact estimate, bound."""


def measure(data: Path, runs: int) -> Iterator[Result]:
    """Measure CPU time: other work on the machine disturbs it least."""
    del runs
    build(data, *NETWORKS)
    for name, (what, size, count, waves, largest) in NETWORKS.items():
        ways = ["plain", "drift", "recalibrate"] + ["exact"] * (name == "mobilenet_96")
        taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(3):
            for way, costs in taken.items():
                arguments = map(str, (way, data / name, count, size))
                costs.append(printed((sys.executable, "-m", __name__, *arguments)))
        plain_seconds, plain_memory = zip(*taken.pop("plain"), strict=True)
        for way, costs in taken.items():
            seconds, memory = zip(*costs, strict=True)
            bound = waves / 2 + 1 if way == "exact" else largest
            subject, peer = f"{what}: {way}", "forward pass"
            yield compared(f"{subject}, CPU", peer, bound, seconds, plain_seconds)
            if way != "exact":
                yield compared(f"{subject}, peak memory", peer, 1.3, memory, plain_memory, "MB")


def a_pass(way: str, folder: str, images: np.ndarray) -> Callable[[], object]:
    """Return a function that makes one pass over the images; for "exact", all passes."""
    if way == "plain":
        import tensorflow as tf

        model = tf.saved_model.load(folder)
        signature = model.signatures["serving_default"]
        (name,) = signature.structured_input_signature[1]

        def forward() -> None:
            for start in range(0, len(images), BATCH):
                signature(**{name: tf.constant(images[start : start + BATCH])})

        return forward
    from bnstat.estimate.data import Settings
    from bnstat.estimate.passes import Runner, read
    from bnstat.estimate.preparation import set_up
    from bnstat.estimate.recalibration import estimate

    setup = set_up(folder, images, Settings(samples=len(images), batch_size=BATCH))
    network = setup.network
    if way == "exact":
        return lambda: estimate(setup, exact=True)
    stored = network.stored()
    runner = Runner(network, by_batch=way == "recalibrate")
    layers = list(network.layers)
    return lambda: read(runner, setup.data, statistics=stored, layers=layers)


def main(way: str, folder: str, count: str, size: str) -> None:
    """Print the CPU seconds of a pass and the peak memory; a first pass is not counted."""
    shape = (int(count), int(size), int(size), 3)
    run = a_pass(way, folder, np.random.default_rng(0).random(shape, np.float32))
    if way != "exact":
        run()
    start = process_time()
    run()
    taken = process_time() - start
    print([taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024])


if __name__ == "__main__":
    main(*sys.argv[1:])
