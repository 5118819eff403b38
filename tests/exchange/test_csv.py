from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from bnstat.errors import UnsupportedError
from bnstat.exchange import csv as output
from bnstat.model import ROLES
from tests.output.models import layer, model, usual


def written(a_model):
    file = io.StringIO()
    output.dump(a_model, file)
    assert "\r" not in file.getvalue()
    return list(csv.reader(io.StringIO(file.getvalue())))


def test_one_row_per_channel_with_every_bit():
    bn = usual("stem/bn", 100_000)
    head, *rows = written(model(bn))
    assert head == ["layer", "channel", *ROLES]
    assert [row[0] for row in rows] == ["stem/bn"] * 100_000
    assert [row[1] for row in rows] == list(map(str, range(100_000)))
    for column, role in enumerate(ROLES, start=2):
        read = np.array([float(row[column]) for row in rows]).astype(np.float32)
        np.testing.assert_array_equal(read.view(np.uint32), bn.array(role).view(np.uint32))


def test_missing_roles_are_empty_cells():
    bn = layer("bn", {"beta": np.float32([1, 2]), "moving_mean": np.float32([0.1, np.nan])})
    assert written(model(bn))[1:] == [
        ["bn", "0", "", "1.0", "0.1", ""],
        ["bn", "1", "", "2.0", "NaN", ""],
    ]


def test_a_vector_with_dimensions_of_size_1_has_plain_indices():
    mean = np.arange(3, dtype=np.float32).reshape(1, 1, 1, 3)
    bn = layer("bn", {"gamma": np.ones(3, np.float32), "moving_mean": mean})
    assert [row[1:3] + row[4:5] for row in written(model(bn))[1:]] == [
        ["0", "1.0", "0.0"],
        ["1", "1.0", "1.0"],
        ["2", "1.0", "2.0"],
    ]


def test_other_shapes_have_one_index_per_dimension():
    mean = np.arange(6, dtype=np.float32).reshape(2, 1, 3)
    rows = written(model(layer("bn", {"moving_mean": mean})))[1:]
    assert [row[1] for row in rows] == ["0:0:0", "0:0:1", "0:0:2", "1:0:0", "1:0:1", "1:0:2"]
    assert [float(row[4]) for row in rows] == [0, 1, 2, 3, 4, 5]
    for row in rows:
        assert mean[tuple(map(int, row[1].split(":")))] == float(row[4])


def test_roles_of_different_sizes():
    bn = layer("bn", {"gamma": np.float32([7]), "moving_mean": np.float32([1, 2])})
    assert written(model(bn))[1:] == [
        ["bn", "0", "7.0", "", "1.0", ""],
        ["bn", "1", "", "", "2.0", ""],
    ]


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+bn", "'+bn"),
        ("-bn", "'-bn"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\tbn", "\\tbn"),
        ("\r=1", "\\r=1"),
        ("a,b", "a,b"),
        ('say "bn"', 'say "bn"'),
        ("a\nb", "a\\nb"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\udc80", "\\udc80"),
        ("层/bn", "层/bn"),
    ],
)
def test_names_do_nothing_to_a_spreadsheet(name, cell):
    assert written(model(usual(name, 1)))[1][0] == cell


def test_a_huge_name_is_refused():
    with pytest.raises(UnsupportedError, match="too long"):
        written(model(usual("n" * 40_000, 1)))
