"""Models in memory that only resemble Keras models, with the parts that bnstat uses."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnstat.model import ROLES


class Variable:
    """A variable of float32, whose array is `values`."""

    def __init__(self, values: Any) -> None:
        self.values = np.array(values, np.float32)
        self.shape, self.dtype = self.values.shape, self.values.dtype

    def numpy(self) -> Any:
        return self.values

    def assign(self, values: Any) -> None:
        self.values = np.array(values, np.float32)


class Norm:
    """A healthy batch norm of 8 channels, with further attributes."""

    variables = ()

    def __init__(self, **settings: Any) -> None:
        random = np.random.default_rng(0)
        for role, low, high in zip(ROLES, (0.8, -0.2, -2, 0.5), (1.2, 0.2, 2, 2), strict=True):
            setattr(self, role, Variable(random.uniform(low, high, 8)))
        self.__dict__.update({"epsilon": 0.001, **settings})


class Network:
    """A network whose layers are attributes."""

    variables: Any = ()

    def __init__(self, **children: Any) -> None:
        self.__dict__.update(children)
