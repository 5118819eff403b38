from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from bnstat.errors import UnsupportedError
from bnstat.exchange.naming import DEFAULTS, ExportOptions
from bnstat.model import ROLES
from tests.mending.exported import dumped
from tests.output.models import layer, model, usual


def written(a_model, options=DEFAULTS):
    text = dumped(a_model, "csv", options).decode()
    assert "\r" not in text
    return list(csv.reader(io.StringIO(text)))


def test_one_row_per_channel_with_every_bit():
    bn = usual("stem/bn", 100_000)
    head, *rows = written(model(bn))
    assert head == ["layer", "channel", *ROLES]
    assert [row[0] for row in rows] == ["stem/bn"] * 100_000
    assert [row[1] for row in rows] == list(map(str, range(100_000)))
    for column, role in enumerate(ROLES, start=2):
        read = np.array([float(row[column]) for row in rows]).astype(np.float32)
        np.testing.assert_array_equal(read.view(np.uint32), bn.array(role).view(np.uint32))


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        (ExportOptions("pytorch"), "weight,bias,running_mean,running_var"),
        (ExportOptions("onnx"), "scale,B,input_mean,input_var"),
        (ExportOptions("flax"), "scale,bias,mean,var"),
        (ExportOptions(folded=True), "scale,shift"),
    ],
)
def test_columns(options, columns):
    (head, *_) = written(model(usual("bn", epsilon=1e-3)), options)
    assert head == ["layer", "channel", *columns.split(",")]


SIX = np.arange(6, dtype="f4")


@pytest.mark.parametrize(
    ("arrays", "rows"),
    [
        ({"beta": [1, 2], "moving_mean": [0.1, np.nan]}, ["0,,1.0,0.1,", "1,,2.0,NaN,"]),
        ({"gamma": [7], "moving_mean": [1, 2]}, ["0,7.0,,1.0,", "1,,,2.0,"]),
        ({"gamma": [1, 1, 1], "moving_mean": SIX[:3].reshape(1, 1, 1, 3)},
         ["0,1.0,,0.0,", "1,1.0,,1.0,", "2,1.0,,2.0,"]),
        ({"moving_mean": SIX.reshape(2, 1, 3)},
         [f"{row}:0:{column},,,{3 * row + column}.0," for row in (0, 1) for column in range(3)]),
    ],
)  # fmt: skip
def test_missing_cells_and_other_shapes(arrays, rows):
    bn = layer("bn", {role: np.float32(array) for role, array in arrays.items()})
    assert written(model(bn))[1:] == [["bn", *row.split(",")] for row in rows]


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+bn", "'+bn"),
        ("-bn", "'-bn"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\tbn", "\\tbn"),
        ("\r=1", "\\r=1"),
        ('say "bn", b', 'say "bn", b'),
        ("\x1b[31m", "\\x1b[31m"),
        ("\udc80", "\\udc80"),
        ("层/bn", "层/bn"),
    ],
)
def test_names_do_nothing_to_a_spreadsheet(name, cell):
    assert written(model(usual(name, 1)))[1][0] == cell


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_a_huge_name_is_refused(kind):
    with pytest.raises(UnsupportedError, match="too long"):
        dumped(model(usual("n" * 70_000, 1)), kind)


@pytest.mark.parametrize("name", ["csv", "parquet"])
def test_arrays_that_do_not_fit_the_rows_are_refused(name):
    if name == "parquet":
        pytest.importorskip("pyarrow")
    bn = layer("bn", {"gamma": SIX[:2], "moving_mean": SIX.reshape(2, 3)})
    with pytest.raises(UnsupportedError, match="bn: its arrays differ in shape"):
        dumped(model(bn), name, DEFAULTS)
