"""Quantized numbers: integers that stand for `scale * (number - zero point)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import DamagedError


class Scales(NamedTuple):
    """How numbers are quantized.

    Attributes:
        scales: one, or one for each index along an axis.
        zeros: what stands for 0; one, or as many as scales.
        axis: the axis.
    """

    scales: NDArray[np.float64]
    zeros: NDArray[np.float64]
    axis: int = 0

    def unpack(self, stored: NDArray[np.generic], where: str) -> NDArray[np.float32]:
        """The numbers that integers stand for, rounded once.

        Raises:
            DamagedError: there are other scales than the shape needs; `where` names the tensor.
        """
        scales = self._along(self.scales, stored.shape, where)
        zeros = self._along(self.zeros, stored.shape, where)
        with np.errstate(over="ignore", invalid="ignore"):
            return ((stored.astype(np.float64) - zeros) * scales).astype(np.float32)

    def step(self, shape: Sequence[int], where: str) -> NDArray[np.float64]:
        """How far apart neighbours are, to be broadcast to a shape. Raises as `unpack` does."""
        return np.abs(self._along(self.scales, shape, where))

    def _along(
        self, values: NDArray[np.float64], shape: Sequence[int], where: str
    ) -> NDArray[np.float64]:
        if values.size == 1:
            return values.reshape(())
        if not 0 <= self.axis < len(shape) or shape[self.axis] != values.size:
            raise DamagedError(where, "is quantized by other scales than its shape needs")
        return values.reshape([-1 if each == self.axis else 1 for each in range(len(shape))])
