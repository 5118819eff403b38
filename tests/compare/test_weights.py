"""Orders of the axes of weights."""

from __future__ import annotations

import numpy as np
import pytest

from bnstat.compare.weights import reorderings

Shape = tuple[int, ...]


def turned(shape: Shape, wanted: Shape) -> list[list[float]]:
    """Return all reorderings of an array of consecutive numbers."""
    array = np.arange(float(np.prod(shape))).reshape(shape)
    found = [reorder(array) for reorder in reorderings(shape, wanted)]
    assert {each.shape for each in found} <= {wanted}
    return [each.ravel().tolist() for each in found]


@pytest.mark.parametrize(
    ("shape", "wanted", "orders"),
    [
        ((2, 3, 4), (2, 4, 3), [(0, 2, 1)]),
        ((2, 3, 4), (2, 3, 4), [(0, 1, 2)]),
        ((2, 3, 3), (2, 3, 3), [(0, 1, 2), (0, 2, 1)]),
        ((2, 3, 4, 5), (2, 5, 3, 4), [(0, 3, 1, 2)]),
        ((2, 3, 4), (3, 2, 4), []),
        ((2, 3, 4), (2, 12), []),
        ((2, 5), (2, 7), []),
        ((2, 7), (2, 7), [(0, 1)]),
    ],
)
def test_orders_of_the_axes(shape: Shape, wanted: Shape, orders: list[Shape]) -> None:
    array = np.arange(float(np.prod(shape))).reshape(shape)
    assert turned(shape, wanted) == [array.transpose(order).ravel().tolist() for order in orders]


@pytest.mark.parametrize(("size", "splits"), [(6, (2, 3)), (4, (2,)), (12, (2, 6, 3, 4))])
def test_an_axis_that_a_flatten_made_of_two(size: int, splits: Shape) -> None:
    array = np.arange(3.0 * size).reshape(3, size)
    expected = [array, *(array.reshape(3, each, -1).swapaxes(1, 2) for each in splits)]
    found = turned((3, size), (3, size))
    assert {tuple(each) for each in found} == {tuple(each.ravel()) for each in expected}
