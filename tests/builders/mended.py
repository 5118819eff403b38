"""New values for the layers of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnstat.model import Model

NewValues = dict[str, dict[str, NDArray[np.generic]]]


def new_values(model: Model, seed: int = 11) -> NewValues:
    """Return random arrays for all roles; the same array for layers that share a variable."""
    random = np.random.default_rng(seed)
    by_key: dict[str, NDArray[np.generic]] = {}
    values: NewValues = {}
    for layer in model:
        for role, variable in layer.variables.items():
            old = np.asarray(layer.array(role))
            if variable.key not in by_key:
                # Values of float16 are exact in every dtype of the tests.
                fresh = random.uniform(0.5, 2.0, old.shape).astype(np.float16)
                by_key[variable.key] = fresh.astype(old.dtype)
            values.setdefault(layer.name, {})[role] = by_key[variable.key]
    return values


def assign(layers: Iterable[Any], values: Mapping[str, Mapping[str, Any]]) -> None:
    for layer in layers:
        for role, array in values.get(layer.name, {}).items():
            getattr(layer, role).assign(array)
