from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnstat.output.numbers import Scale, compact, compact_pair


@pytest.mark.parametrize(
    ("number", "digits", "text"),
    [
        *((0.0, 3, "0"), (-0.0, 3, "0"), (1.0, 3, "1"), (-4096.0, 2, "-4096")),
        *((0.98765, 3, "0.988"), (0.98765, 2, "0.99"), (123.456, 2, "123")),
        *((0.012345, 2, "0.012"), (0.001234, 2, "0.001"), (0.0001234, 2, "1.2e-4")),
        *((123456.7, 3, "1.23e5"), (1e30, 2, "1.0e30")),
        *((math.nan, 3, "nan"), (-math.inf, 3, "-inf")),
    ],
)
def test_compact(number, digits, text):
    assert compact(number, digits) == text


@pytest.mark.parametrize(
    ("mean", "deviation", "texts"),
    [
        *((1.0, 0.0, "1 0"), (0.00247, 0.276, "0.00 0.28"), (-0.00247, 0.276, "0.00 0.28")),
        *((-0.0678, 0.0287, "-0.068 0.029"), (2104.4, 1006.9, "2104 1007")),
        *((1234.567, 0.0456, "1235 0.046"), (1.2345e-5, 3.2e-6, "1.2e-5 3.2e-6")),
        *((3e29, 4e29, "3.0e29 4.0e29"), (math.nan, math.nan, "nan nan")),
    ],
)
def test_compact_pair(mean, deviation, texts):
    assert " ".join(compact_pair(mean, deviation, 2)) == texts


FINITE = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=50)


@given(FINITE, st.integers(1, 40))
def test_all_finite_numbers_have_a_position(numbers, bins):
    values = np.array(numbers)
    scale = Scale.of(values)
    places = scale.places(values)
    assert ((places >= 0) & (places <= 1)).all()
    assert (np.diff(places[np.argsort(values)]) >= 0).all()
    counts = scale.counts(values, bins)
    assert counts.size == bins
    assert counts.sum() == values.size


@pytest.mark.parametrize(
    ("numbers", "places"),
    [([-1e308, 0, 1e308], [0, 0.5, 1]), ([0, 5e-324], [0, 1]), ([7, 7, 7], [0.5, 0.5, 0.5])],
)
def test_places_and_counts(numbers, places):
    values = np.array(numbers, float)
    scale = Scale.of(values)
    assert scale.places(values).tolist() == places
    assert scale.counts(values, 5).tolist() == np.histogram(places, 5, (0, 1))[0].tolist()


def test_positive_numbers_of_very_different_sizes_have_a_logarithmic_scale():
    values = np.array([1e-3, 1.0, 1e3])
    assert Scale.of(values).logarithmic
    assert Scale.of(values).places(values).tolist() == [0, 0.5, 1]
    assert not Scale.of(values, adaptive=False).logarithmic
    assert not Scale.of(np.array([0, 1e6])).logarithmic
    assert not Scale.of(np.array([1, 999.0])).logarithmic


@pytest.mark.parametrize(("count", "bins"), [(1, 2), (9, 6), (64, 16), (100_000, 30)])
def test_bins(count, bins):
    assert Scale(0, 1).histogram(np.linspace(0, 1, count), 30).size == bins
