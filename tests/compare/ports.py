"""A network with batch norm by hand, as other programs have it: rewritten, folded, perturbed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bnstat.compare.diff import Difference, diff
from bnstat.model import BatchNorm, Model, Variable
from tests.output.models import layer, model, usual, variable

Arrays = dict[str, np.ndarray]

EPSILON = 1e-3


def arrays_of(of: BatchNorm) -> Arrays:
    return {role: np.array(of.array(role)) for role in of.variables}


def changed(of: BatchNorm, arrays: Mapping[str, np.ndarray], **settings: Any) -> BatchNorm:
    """A layer with some arrays replaced."""
    settings = {"epsilon": of.epsilon, "momentum": of.momentum, **settings}
    return layer(of.name, {**arrays_of(of), **arrays}, **settings)


def compared(old: BatchNorm, new: BatchNorm, **options: Any) -> Difference:
    return diff(model(old), model(new), **options)


def scale_and_shift(of: BatchNorm) -> tuple[np.ndarray, np.ndarray]:
    """As a converter computes it, in float32."""
    gamma, beta, mean, variance = (arrays_of(of)[role] for role in of.variables)
    scale = gamma / np.sqrt(variance + np.float32(of.epsilon))
    return scale, beta - mean * scale


def rewritten(of: BatchNorm, name: str, epsilon: float | None = 1e-9) -> BatchNorm:
    """As OnnxMLTools writes it: the scale and shift, at mean 0 and variance 1."""
    scale, shift = scale_and_shift(of)
    start = {"moving_mean": np.zeros_like(scale), "moving_variance": np.ones_like(scale)}
    return layer(name, {"gamma": scale, "beta": shift, **start}, epsilon=epsilon)


def trained(name: str, channels: int = 8, seed: int = 0, **settings: Any) -> BatchNorm:
    return usual(name, channels, seed, **{"epsilon": EPSILON, **settings})


def stored(arrays: Mapping[str, np.ndarray]) -> dict[str, Variable]:
    return {key: variable(key, array) for key, array in arrays.items()}


def holding(weights: Mapping[str, np.ndarray], *layers: BatchNorm, **fields: Any) -> Model:
    """A model of these layers and of weights beside them."""
    return model(*layers, stored=stored(weights), **fields)


def random_kernel(*shape: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32)
