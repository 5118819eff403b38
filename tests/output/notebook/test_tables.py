from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

import bnstat
from bnstat.checks.rule import Finding
from bnstat.errors import DamagedError
from bnstat.model import Variable
from bnstat.output import notebook
from tests.output.models import layer, model, usual

HOSTILE = "<script>alert(1)</script>&\"'\x1b[31m\u202e"
VOID = {"br"}


class Reader(HTMLParser):
    """Collects tags and text, and checks that elements are nested correctly."""

    def __init__(self):
        super().__init__()
        self.open = []
        self.tags = []
        self.text = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(thing):
    reader = Reader()
    reader.feed(thing._repr_html_())
    assert reader.open == []
    names = {tag for tag, _ in reader.tags}
    assert not names & {"script", "style", "iframe", "img", "link", "object"}
    assert not any(name.startswith("on") for _, attrs in reader.tags for name in attrs)
    assert all(text.isprintable() for text in reader.text)
    return reader


def rows_of(reader):
    return sum(tag == "tr" for tag, _ in reader.tags) - 1


def charts_of(reader):
    return [attrs["aria-label"] for tag, attrs in reader.tags if tag == "svg"]


def test_a_model():
    reader = read(model(usual("one", 64), usual("two")))
    assert rows_of(reader) == 2
    assert len(charts_of(reader)) == 8
    assert charts_of(reader)[0].startswith("distribution of 64 channels from ")
    assert "two" in reader.text


def test_a_layer():
    reader = read(usual("bn", 64, epsilon=0.001))
    assert rows_of(reader) == 4
    assert "64 channels in order" in charts_of(reader)[1]
    assert any("epsilon 0.001" in text for text in reader.text)


def test_a_long_model_is_cut():
    many = model(*[usual(f"bn{number}", 2) for number in range(notebook.MOST_ROWS + 3)])
    reader = read(many)
    assert rows_of(reader) == notebook.MOST_ROWS
    assert "and 3 more" in reader.text


def test_findings():
    found = bnstat.check(model(layer("bn", {"moving_mean": [np.nan], "moving_variance": [1.0]})))
    reader = read(found)
    assert rows_of(reader) == len(found) > 0
    assert charts_of(reader)[0] == found[0].severity
    clean = read(bnstat.check(model(usual("bn")), select=["BN004"]))
    assert "1 layer, 1 rule: no findings" in clean.text


def test_a_difference():
    difference = bnstat.diff(model(usual("bn", 8)), model(usual("bn", 8, seed=1)))
    reader = read(difference)
    assert rows_of(reader) == 4
    assert charts_of(reader) == ["8 of 8"] * 4
    same = read(bnstat.diff(model(usual("bn")), model(usual("bn"))))
    assert "no difference: 1 batch-norm layer is equal; other weights were not compared" in (
        same.text
    )
    assert rows_of(same) == -1


def test_a_history():
    run = bnstat.history((f"model-{n}", model(usual("bn", 8, seed=n))) for n in range(4))
    reader = read(run)
    assert rows_of(reader) == 4
    assert len(charts_of(reader)) == 8
    assert "4 checkpoints: model-0 to model-3" in reader.text
    assert rows_of(read(bnstat.history([]))) == -1


@pytest.mark.parametrize(
    "numbers", [[], [1.0], [2.0] * 5, [np.nan] * 3, [np.inf, -np.inf, 0], [-1e308, 1e308]]
)
def test_any_values(numbers):
    arrays = {"gamma": numbers, "moving_mean": numbers, "moving_variance": numbers}
    bn = layer("bn", {role: np.array(values) for role, values in arrays.items()})
    run = bnstat.history([model(bn), model(bn)])
    for thing in (bn, model(bn), run, bnstat.check(model(bn)), bnstat.diff(model(bn), model(bn))):
        page = thing._repr_html_()
        read(thing)
        assert not re.search(r'd="[^"]*(nan|inf)', page)


def test_names_are_never_markup():
    evil = usual(HOSTILE)
    found = bnstat.check(model(evil, usual("other")))
    found.append(Finding("BN001", "rule", "error", HOSTILE, np.empty(0, np.intp), HOSTILE))
    run = bnstat.history([(HOSTILE, model(evil)), ("b", DamagedError(HOSTILE, "is damaged"))])
    other = model(usual(HOSTILE, seed=1), usual(f"{HOSTILE}2"))
    for thing in (evil, model(evil), found, run, bnstat.diff(model(evil), other)):
        reader = read(thing)
        assert any("<script>alert(1)</script>" in text for text in reader.text)


def test_the_table_contains_errors_of_reading():
    def fail():
        raise DamagedError("file", "is damaged")

    bn = usual("bn")
    bn.variables["gamma"] = Variable("k", "k", "float32", (8,), fail)
    for thing in (bn, model(bn)):
        assert "file: is damaged" in read(thing).text
