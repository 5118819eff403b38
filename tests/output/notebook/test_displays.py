from __future__ import annotations

import re
import sys

import ml_dtypes
import numpy as np
import pytest

import bnstat
from bnstat.checks.rule import Finding
from bnstat.errors import DamagedError, UnsupportedError
from bnstat.model import ROLES, Variable
from bnstat.output import notebook
from tests.output.models import layer, model, usual
from tests.output.page.written import Parts

HOSTILE = "<script>alert(1)</script>&\"'\x1b[31m\u202e"
PNG = b"\x89PNG\r\n"


def read(thing):
    parts = Parts(thing._repr_html_())
    names = {tag for tag, *_ in parts.elements}
    assert not names & {"script", "style", "iframe", "img", "link", "object"}
    assert not any(name.startswith("on") for _, attrs, _ in parts.elements for name in attrs)
    assert all(text.isprintable() for text in parts.texts)
    return parts


def rows_of(parts):
    return len(parts.all("tr")) - 1


def charts_of(parts):
    return [attrs["aria-label"] for tag, attrs, _ in parts.elements if tag == "svg"]


def test_a_model():
    reader = read(model(usual("one", 64), usual("two")))
    assert rows_of(reader) == 2
    assert len(charts_of(reader)) == 8
    assert charts_of(reader)[0].startswith("distribution of 64 channels from ")
    assert "two" in reader.texts
    many = read(model(*[usual(f"bn{n}", 2) for n in range(notebook.MOST_ROWS + 3)]))
    assert rows_of(many) == notebook.MOST_ROWS
    assert "and 3 more" in many.texts


def test_a_layer():
    reader = read(usual("bn", 64, epsilon=0.001))
    assert rows_of(reader) == 4
    assert "64 channels in order" in charts_of(reader)[1]
    assert any("epsilon 0.001" in text for text in reader.texts)


def test_findings():
    found = bnstat.check(model(layer("bn", {"moving_mean": [np.nan], "moving_variance": [1.0]})))
    reader = read(found)
    assert rows_of(reader) == len(found) > 0
    assert charts_of(reader)[0] == found[0].severity
    clean = read(bnstat.check(model(usual("bn")), select=["BN004"]))
    assert "1 layer, 1 rule: no findings" in clean.texts


def test_a_difference():
    reader = read(bnstat.diff(model(usual("bn", 8)), model(usual("bn", 8, seed=1))))
    assert rows_of(reader) == 4
    assert charts_of(reader) == ["8 of 8"] * 4
    same = read(bnstat.diff(model(usual("bn")), model(usual("bn"))))
    text = "no difference: 1 batch-norm layer is equal; other weights were not compared"
    assert text in same.texts
    assert rows_of(same) == -1


def test_a_history():
    run = bnstat.history((f"model-{n}", model(usual("bn", 8, seed=n))) for n in range(4))
    reader = read(run)
    assert rows_of(reader) == 4
    assert len(charts_of(reader)) == 8
    assert "4 checkpoints: model-0 to model-3" in reader.texts
    assert rows_of(read(bnstat.history([]))) == -1


@pytest.mark.parametrize(
    "numbers",
    [[], [1.0], [2.0] * 5, [np.nan] * 3, [np.inf, -np.inf, 0], [-1e308, 1e308], [1e-8, 1]],
)
def test_any_values(numbers):
    arrays = {"gamma": numbers, "moving_mean": numbers, "moving_variance": numbers}
    bn = layer("bn", {role: np.array(values) for role, values in arrays.items()})
    run = bnstat.history([model(bn), model(bn)])
    for thing in (bn, model(bn), run, bnstat.check(model(bn)), bnstat.diff(model(bn), model(bn))):
        page = thing._repr_html_()
        read(thing)
        assert not re.search(r'd="[^"]*(nan|inf)', page)


@pytest.mark.parametrize("numbers", [[], [1.0], [np.nan] * 3, [np.inf, 1, 2], [1e-8, 1]])
def test_a_figure_of_any_values(numbers):
    pytest.importorskip("matplotlib")
    bn = layer("$\\frac$ <b>\x1b", {"moving_variance": np.array(numbers, np.float64)})
    assert bn.plot()._repr_png_().startswith(PNG)


def test_names_are_never_markup():
    evil = usual(HOSTILE)
    found = bnstat.check(model(evil, usual("other")))
    found.append(Finding("BN001", "rule", "error", HOSTILE, np.empty(0, np.intp), HOSTILE))
    run = bnstat.history([(HOSTILE, model(evil)), ("b", DamagedError(HOSTILE, "is damaged"))])
    other = model(usual(HOSTILE, seed=1), usual(f"{HOSTILE}2"))
    for thing in (evil, model(evil), found, run, bnstat.diff(model(evil), other)):
        reader = read(thing)
        assert any("<script>alert(1)</script>" in text for text in reader.texts)


def test_the_table_contains_errors_of_reading():
    def fail():
        raise DamagedError("file", "is damaged")

    bn = usual("bn")
    bn.variables["gamma"] = Variable("k", "k", "float32", (8,), fail)
    for thing in (bn, model(bn)):
        assert "file: is damaged" in read(thing).texts


def test_a_figure_of_all_roles():
    pytest.importorskip("matplotlib")
    bn = usual("block/bn", 64)
    figure = bn.plot()
    assert len(figure.axes) == 8
    pairs = zip(figure.axes[::2], figure.axes[1::2], bn.variables.values(), strict=True)
    for left, right, variable in pairs:
        assert sum(bar.get_height() for bar in left.patches) == 64
        assert right.lines[0].get_ydata().tolist() == np.sort(variable.read()).tolist()
    assert figure._repr_png_().startswith(PNG)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_matplotlib_is_not_installed(monkeypatch):
    for name in ("matplotlib", "matplotlib.axes", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnsupportedError, match="pip install matplotlib"):
        usual("bn").plot()


@pytest.fixture(params=["pandas", "polars"])
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
    means = np.float32([np.nan, 2])
    bare = layer("bare", {"moving_mean": means, "moving_variance": np.ones(2)})
    frame = model(bare, usual("full", 1)).to_frame(library)
    missing = frame["gamma"].isna() if library == "pandas" else frame["gamma"].is_null()
    assert list(missing) == [True, True, False]
    assert list(frame["moving_mean"])[1] == 2
    if library == "polars":  # NaN is not a missing value.
        assert frame["moving_mean"].is_null().to_list() == [False] * 3
        assert frame["moving_mean"].is_nan().to_list() == [True, False, False]


def test_small_floats_odd_shapes_and_no_layers(library):
    means = np.array([[1.5, 2.5]], ml_dtypes.bfloat16)
    bn = layer("bn", {"moving_mean": means, "moving_variance": np.float32([3])})
    frame = model(bn).to_frame(library)
    assert frame["moving_mean"].to_numpy().tolist() == [1.5, 2.5]
    assert len(frame) == 2
    empty = model().to_frame(library)
    assert list(empty.columns) == ["layer", "channel", *ROLES]
    assert len(empty) == 0


def test_the_default_library(monkeypatch):
    installed = {"polars"}
    monkeypatch.setattr(notebook, "find_spec", lambda name: name in installed or None)
    for name in ("pandas", "polars"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert notebook._default_library() == "polars"
    installed.clear()
    with pytest.raises(UnsupportedError, match="pip install pandas, or polars"):
        model(usual("bn")).to_frame()
    with pytest.raises(UnsupportedError, match="pip install polars"):
        model(usual("bn")).to_frame("polars")
    monkeypatch.setitem(sys.modules, "pandas", object())
    assert notebook._default_library() == "pandas"
