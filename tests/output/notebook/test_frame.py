from __future__ import annotations

import sys

import ml_dtypes
import numpy as np
import pytest

from bnstat.errors import UnsupportedError
from bnstat.model import ROLES
from bnstat.output import notebook as frames
from tests.output.models import layer, model, usual

LIBRARIES = ["pandas", "polars"]


@pytest.fixture(params=LIBRARIES)
def library(request):
    pytest.importorskip(request.param)
    return request.param


def test_one_row_per_channel(library):
    two = model(usual("one", 3), usual("two", 5, seed=1))
    frame = two.to_frame(library)
    assert type(frame).__module__.partition(".")[0] == library
    assert list(frame.columns) == ["layer", "channel", *ROLES]
    assert list(frame["layer"]) == ["one"] * 3 + ["two"] * 5
    assert list(frame["channel"]) == [0, 1, 2, 0, 1, 2, 3, 4]
    for role in ROLES:
        stored = np.concatenate([bn.array(role) for bn in two])
        column = frame[role].to_numpy()
        assert column.dtype == np.float32
        assert column.tobytes() == stored.tobytes()


def test_missing_roles_are_missing_values(library):
    bare = layer("bare", {"moving_mean": np.float32([1, 2]), "moving_variance": np.ones(2)})
    frame = model(bare, usual("full", 1)).to_frame(library)
    missing = frame["gamma"].isna() if library == "pandas" else frame["gamma"].is_null()
    assert list(missing) == [True, True, False]
    assert list(frame["moving_mean"])[:2] == [1, 2]


def test_nan_is_not_a_missing_value():
    pytest.importorskip("polars")
    bn = layer("bn", {"moving_mean": np.float32([np.nan, 1]), "moving_variance": np.ones(2)})
    column = model(bn).to_frame("polars")["moving_mean"]
    assert column.is_null().to_list() == [False, False]
    assert column.is_nan().to_list() == [True, False]


def test_small_floats_and_odd_shapes(library):
    arrays = {
        "moving_mean": np.array([[1.5, 2.5]], ml_dtypes.bfloat16),
        "moving_variance": np.float32([3]),
    }
    frame = model(layer("bn", arrays)).to_frame(library)
    assert frame["moving_mean"].to_numpy().tolist() == [1.5, 2.5]
    assert len(frame) == 2


def test_no_layers(library):
    frame = model().to_frame(library)
    assert list(frame.columns) == ["layer", "channel", *ROLES]
    assert len(frame) == 0


def test_the_default_library(monkeypatch):
    monkeypatch.setattr(frames, "find_spec", lambda name: name if name == "polars" else None)
    for name in LIBRARIES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert frames._default_library() == "polars"
    monkeypatch.setitem(sys.modules, "pandas", object())
    assert frames._default_library() == "pandas"


def test_neither_is_installed(monkeypatch):
    for name in LIBRARIES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(frames, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="pip install pandas, or polars"):
        model(usual("bn")).to_frame()
    with pytest.raises(UnsupportedError, match="pip install polars"):
        model(usual("bn")).to_frame("polars")
