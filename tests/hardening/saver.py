"""A training job that saves until it is killed: `python saver.py HOW FOLDER`.

Every number in a checkpoint is its step, so that a mixture of two checkpoints is noticed. HOW is
`manager` (tf.train.CheckpointManager, which keeps two checkpoints) or `same-name` (the same two
files replaced every 20 ms, like TensorFlow replaces them: a reader that starts again finds another
save).
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

LAYERS = 6
CHANNELS = 3000
ROLES = ("gamma", "beta", "moving_mean", "moving_variance")
NAMES = [f"layer_{layer}/{role}" for layer in range(LAYERS) for role in ROLES]


def manager(folder: Path) -> Callable[[int], object]:
    import tensorflow as tf

    layers = [tf.Module() for _ in range(LAYERS)]
    for layer in layers:
        for role in ROLES:
            setattr(layer, role, tf.Variable(np.zeros(CHANNELS, "f4"), name=role))
    checkpoint = tf.train.Checkpoint(layers=layers)
    keeper = tf.train.CheckpointManager(checkpoint, str(folder), max_to_keep=2)

    def save(step: int) -> None:
        for layer in layers:
            for role in ROLES:
                getattr(layer, role).assign(np.full(CHANNELS, step, "f4"))
        keeper.save(checkpoint_number=step)

    return save


def same_name(folder: Path) -> Callable[[int], object]:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from tests.fuzz.handmade import bundle

    def save(step: int) -> None:
        tensors = {name: np.full(CHANNELS, step, "f4") for name in NAMES}
        # The data first, the index last: the order of TensorFlow's BundleWriter.
        for name, content in reversed(bundle(tensors).items()):
            (folder / "unfinished").write_bytes(content)
            os.replace(folder / "unfinished", folder / name)
        time.sleep(0.02)

    return save


if __name__ == "__main__":
    _, how, where = sys.argv
    save = {"manager": manager, "same-name": same_name}[how](Path(where))
    for step in itertools.count(1):
        save(step)
