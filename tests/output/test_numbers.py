from __future__ import annotations

import math

import pytest

from bnstat.output.numbers import compact, compact_pair


@pytest.mark.parametrize(
    ("number", "digits", "text"),
    [
        (0.0, 3, "0"),
        (-0.0, 3, "0"),
        (1.0, 3, "1"),
        (-4096.0, 2, "-4096"),
        (0.98765, 3, "0.988"),
        (0.98765, 2, "0.99"),
        (123.456, 2, "123"),
        (0.012345, 2, "0.012"),
        (0.001234, 2, "0.001"),
        (0.0001234, 2, "1.2e-4"),
        (123456.7, 3, "1.23e5"),
        (1e30, 2, "1.0e30"),
        (math.nan, 3, "nan"),
        (-math.inf, 3, "-inf"),
    ],
)
def test_compact(number, digits, text):
    assert compact(number, digits) == text


@pytest.mark.parametrize(
    ("mean", "deviation", "texts"),
    [
        (1.0, 0.0, ("1", "0")),
        (0.00247, 0.276, ("0.00", "0.28")),
        (-0.00247, 0.276, ("0.00", "0.28")),
        (-0.0678, 0.0287, ("-0.068", "0.029")),
        (2104.4, 1006.9, ("2104", "1007")),
        (1234.567, 0.0456, ("1235", "0.046")),
        (1.2345e-5, 3.2e-6, ("1.2e-5", "3.2e-6")),
        (3e29, 4e29, ("3.0e29", "4.0e29")),
        (math.nan, math.nan, ("nan", "nan")),
    ],
)
def test_compact_pair(mean, deviation, texts):
    assert compact_pair(mean, deviation, 2) == texts
