"""Every bit pattern of the small floats, and random ones of the others, through JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from bnstat.exchange import csv as csv_format
from bnstat.exchange import json as json_format
from bnstat.model import ROLES, Array, Model, as_float64
from tests.output.models import layer, model

SMALL = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz")
RANDOM = 40_000


def patterns(name: str) -> Array:
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    unsigned = f"u{dtype.itemsize}"
    if name in SMALL:
        return np.arange(1 << (8 * dtype.itemsize), dtype=unsigned).view(dtype)
    random = np.random.default_rng(7)
    top = np.iinfo(unsigned).max
    return random.integers(0, top, RANDOM, unsigned, endpoint=True).view(dtype)


def through_json(of: Model) -> list[list[object]]:
    file = io.StringIO()
    json_format.dump(of, file)
    (document,) = json.loads(file.getvalue())["layers"]
    return [document[role]["values"] for role in ROLES]


def through_csv(of: Model) -> list[list[object]]:
    file = io.StringIO()
    csv_format.dump(of, file)
    _, *rows = csv.reader(io.StringIO(file.getvalue()))
    return [[row[2 + place] for row in rows] for place in range(len(ROLES))]


@pytest.mark.parametrize("through", [through_json, through_csv])
@pytest.mark.parametrize("name", [*SMALL, "float32", "float64"])
def test_every_number_reads_back_to_the_same_bits(
    name: str, through: Callable[[Model], list[list[object]]]
) -> None:
    array = patterns(name)
    parts = np.split(array, len(ROLES))
    columns = through(model(layer("bn", dict(zip(ROLES, parts, strict=True)))))
    read = np.array([float(text) for column in columns for text in column])  # type: ignore[arg-type]
    is_nan = np.isnan(as_float64(array))
    np.testing.assert_array_equal(np.isnan(read), is_nan)
    with np.errstate(all="ignore"):
        back = read.astype(array.dtype)
    unsigned = f"u{array.dtype.itemsize}"
    np.testing.assert_array_equal(back.view(unsigned)[~is_nan], array.view(unsigned)[~is_nan])
