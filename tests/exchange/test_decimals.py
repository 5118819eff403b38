"""Decimal numbers, also of every bit pattern of the small floats."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from bnstat.errors import UnsupportedError
from bnstat.exchange.decimals import labels, nested_json, portable, shortest
from bnstat.model import as_float64

SMALL_TYPES = [
    np.float16,
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e4m3b11fnuz,
]


def every_element(dtype):
    """Every bit pattern of a type of one or two bytes."""
    size = np.dtype(dtype).itemsize
    return np.arange(1 << (8 * size), dtype=f"u{size}").view(dtype)


@pytest.mark.parametrize("dtype", SMALL_TYPES)
def test_no_small_float_has_a_shorter_text(dtype):
    array = every_element(dtype)
    array = array[np.isfinite(as_float64(array)) & (as_float64(array) != 0)]
    random = np.random.default_rng(1)
    for element in random.choice(array, 200):
        (text,) = shortest(np.array([element]))
        used = len(text.lstrip("-").split("e")[0].replace(".", "").strip("0"))
        for digits in range(1, used):
            rounded = np.array(float(f"{float(element):.{digits}g}")).astype(dtype)
            assert rounded != element, (text, digits)


@pytest.mark.parametrize(
    ("array", "texts"),
    [
        (np.float32([0.1, -0.0, 1e-45, 99999]), ["0.1", "-0.0", "1e-45", "99999.0"]),
        (np.array([0.1, 2.0, -0.0], ml_dtypes.bfloat16), ["0.1", "2.0", "-0.0"]),
        (np.array([0.1], ">f4"), ["0.1"]),
        (np.array([math.nan, math.inf, -math.inf]), ["NaN", "Infinity", "-Infinity"]),
        (np.array([math.nan, -math.inf], ml_dtypes.bfloat16), ["NaN", "-Infinity"]),
        (np.array([True, False]), ["true", "false"]),
        (np.array([-(2**63), 2**63 - 1]), ["-9223372036854775808", "9223372036854775807"]),
        (np.array([7, -8], ml_dtypes.int4), ["7", "-8"]),
        (np.array([], np.float32), []),
    ],
)
def test_texts_of_numbers(array, texts):
    assert shortest(array) == texts


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, ">f8"])
def test_nested_lists_with_what_is_not_a_number(dtype):
    array = np.array([[[0.5, math.nan], [-math.inf, 2]], [[0, 1], [math.inf, math.nan]]], dtype)
    assert nested_json(array) == (
        '[[[0.5, "NaN"], ["-Infinity", 2.0]], [[0.0, 1.0], ["Infinity", "NaN"]]]'
    )
    # A view whose elements do not follow each other in memory.
    assert nested_json(array.T[1]) == '[["NaN", 1.0], [2.0, "NaN"]]'


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([1j]), np.zeros(1, "V2")])
def test_other_types_are_refused(array):
    with pytest.raises(UnsupportedError):
        shortest(array)


def test_portable_leaves_numpys_own_types_alone():
    array = np.array([1, 2], ">f2")
    assert portable(array) is array
    assert portable(np.array([-8, 7], ml_dtypes.int4)).tolist() == [-8, 7]


@pytest.mark.parametrize(
    ("shape", "part", "texts"),
    [
        ((4,), (0, 4), "0 1 2 3"),
        ((1, 1, 1, 2), (0, 2), "0 1"),
        ((), (0, 1), "0"),
        ((2, 2), (0, 4), "0:0 0:1 1:0 1:1"),
        ((2, 1, 2), (0, 4), "0:0:0 0:0:1 1:0:0 1:0:1"),
        ((3, 4), (5, 9), "1:1 1:2 1:3 2:0"),
        ((3, 4), (0, 12, 5), "0:0 1:1 2:2"),
        ((100,), (20, 50, 10), "20 30 40"),
    ],
)
def test_labels(shape, part, texts):
    assert labels(shape, *part) == texts.split()


@pytest.mark.parametrize("dtype", [*SMALL_TYPES, np.float32, np.float64])
def test_every_number_reads_back_to_the_same_bits(dtype):
    if np.dtype(dtype).itemsize <= 2:
        array = every_element(dtype)
    else:
        random = np.random.default_rng(7).bytes(40_000 * np.dtype(dtype).itemsize)
        array = np.frombuffer(random, dtype)
    read = np.array([float(text) for text in shortest(array)])
    is_nan = np.isnan(as_float64(array))
    np.testing.assert_array_equal(np.isnan(read), is_nan)
    with np.errstate(all="ignore"):
        back = read.astype(array.dtype)
    assert back[~is_nan].tobytes() == array[~is_nan].tobytes()
