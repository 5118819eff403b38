from __future__ import annotations

import math

import numpy as np
import pytest

from bnstat.estimate.passes import Halves, Moments, in_deviations


def test_batches_of_any_size_merge_to_the_moments_of_all() -> None:
    x = np.random.default_rng(0).normal(1e4, 1e-2, (1000, 3))
    moments = Moments()
    for part in np.split(x, [1, 3, 400, 401]):
        moments.add(len(part), part.mean(0), part.var(0) * len(part))
    moments.add(0, np.full(3, np.nan), np.full(3, np.nan))
    assert moments.count == 1000
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance(unbiased=False), x.var(0), rtol=1e-9)
    np.testing.assert_allclose(moments.variance(unbiased=True), x.var(0, ddof=1), rtol=1e-9)


def test_two_halves_tell_how_sure_the_mean_is() -> None:
    halves = Halves()
    halves.first.add(100, [0.0, 5.0], [100.0, 100.0])
    assert halves.error is None
    halves.second.add(100, [1.0, 5.0], [100.0, 100.0])
    deviation = math.sqrt(1 + 0.25)
    assert halves.error == pytest.approx(0.5 / deviation)
    assert halves.whole.count == 200
    assert halves.first.count == 100


def test_a_constant_channel_is_no_distance_from_itself() -> None:
    distances = in_deviations(np.array([0.0, 1.0, 1.0]), np.array([0.0, 0.0, 2.0]))
    assert distances.tolist() == [0.0, math.inf, 0.5]
