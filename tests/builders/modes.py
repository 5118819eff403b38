"""Networks with mean 0 and variance 1 that are right in one mode of batch norm alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SIDES = np.where(np.arange(128) % 2, 1.0, -1.0)


def classifier(
    path: Path, gain: float = 6.0, activation: str = "softmax", scores: int = 2, **options: bool
) -> Path:
    """Write a network that classifies samples by the sign of what it normalizes."""
    import keras

    keras.backend.clear_session()
    norm = keras.layers.BatchNormalization(name="bn", **options)
    layers = [keras.Input((4,), name="x"), norm]
    model = keras.Sequential([*layers, keras.layers.Dense(scores, activation, name="score")])
    signs = [[-1.0, 1.0]] if scores == 2 else [[1.0]]
    kernel = gain / 4 * np.repeat(signs, 4, axis=0)
    model.get_layer("score").set_weights([kernel, np.zeros(scores)])
    model.save(path)
    return path


def samples(values: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 0.1, (len(values), 4))
    return (values[:, None] + noise).astype("float32")


FAR_OFF = samples(5 + SIDES)
"""Of one class with the stored statistics 0 and 1, and of two with their own."""

WIDE = samples(10 * SIDES)
"""Classified with certainty with the stored statistics, and without it with their own."""

UNEQUAL = samples(np.where(np.arange(256) % 8, np.where(np.arange(256) % 2, 1.0, 9.0), -3.0))
"""Mostly of one class. Many change their sign if the mean is subtracted."""
