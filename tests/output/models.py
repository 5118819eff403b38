"""Models built by hand, with values in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bnstat.model import ROLES, BatchNorm, Model, Source, Variable


def variable(key: str, array: Any) -> Variable:
    array = np.asarray(array)
    return Variable(key, key, array.dtype.name, array.shape, lambda: array)


def layer(name: str, arrays: Mapping[str, Any], **fields: Any) -> BatchNorm:
    return BatchNorm(
        name, {role: variable(f"{name}/{role}", array) for role, array in arrays.items()}, **fields
    )


def usual(name: str, channels: int = 8, seed: int = 0, **fields: Any) -> BatchNorm:
    """Return a trained layer with all four roles, in float32."""
    random = np.random.default_rng(seed)
    draws = {
        "gamma": random.normal(1, 0.2, channels),
        "beta": random.normal(0, 0.3, channels),
        "moving_mean": random.normal(0, 1, channels),
        "moving_variance": random.gamma(2, 0.5, channels),
    }
    return layer(name, {role: draws[role].astype(np.float32) for role in ROLES}, **fields)


def model(*layers: BatchNorm, **fields: Any) -> Model:
    source = Source("runs/cnn", "tf2-checkpoint", "model-1200", 1200, "tf.keras 2.4.0")
    return Model(fields.pop("source", source), layers, **fields)
