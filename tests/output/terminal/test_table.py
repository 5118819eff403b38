from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnstat.output.terminal.screen import Screen
from bnstat.output.terminal.table import Column, shorten, shorten_all, table, text_width, wrapped

PRINTABLE = st.text(
    st.characters(exclude_categories=("C", "Z"), exclude_characters="#…"), max_size=40
)


def test_columns_line_up():
    columns = [Column("name", ["a", "long"]), Column("n", ["1", "200"], right=True)]
    assert list(table(columns, Screen())) == ["name    n", "a       1", "long  200"]
    assert list(table([Column("name", [])], Screen())) == ["name"]


def test_a_terminal_gets_a_rule_and_styles():
    columns = [Column("name", ["a"], styles={0: "red"})]
    screen = Screen(width=80, colour=True, boxes=True)
    lines = ["\x1b[1mname\x1b[0m", "\x1b[2m────\x1b[0m", "\x1b[31ma   \x1b[0m"]
    assert list(table(columns, screen)) == lines


def test_each_text_is_measured_a_few_times(monkeypatch):
    measured = []

    def counted(text):
        measured.append(text)
        return len(text)

    monkeypatch.setattr("bnstat.output.terminal.table.text_width", counted)
    assert len(list(table([Column("layer", ["x"] * 1000)], Screen()))) == 1001
    assert len(measured) < 5000


def test_wide_and_combining_characters():
    assert text_width("层bn") == 4
    assert text_width("e\N{COMBINING ACUTE ACCENT}") == 1
    assert text_width("±▁█…─") == 5
    columns = [Column("", ["层", "abc"]), Column("", ["1", "2"])]
    assert list(table(columns, Screen()))[1:] == ["层   1", "abc  2"]


@pytest.mark.parametrize(
    ("text", "width", "short"),
    [
        *(("block1/bn", 9, "block1/bn"), ("block1/bn", 8, "blo…1/bn"), ("block1/bn", 3, "b…n")),
        *(("block1/bn", 1, "b"), ("层层层层", 5, "层…层")),
    ],
)
def test_shorten(text, width, short):
    assert shorten(text, width, "…") == short


@given(PRINTABLE, st.integers(1, 50), st.sampled_from(["…", ".."]), st.floats(0, 1))
def test_shortened_texts_fit(text, width, ellipsis, head):
    short = shorten(text, width, ellipsis, head)
    assert text_width(short) <= width
    assert short == text or text_width(text) > width


@given(st.lists(PRINTABLE, min_size=1, max_size=30, unique=True), st.integers(6, 50))
def test_shortened_names_fit_and_stay_different(names, width):
    short = shorten_all(names, width, "…")
    assert max(map(text_width, short)) <= width
    assert len(set(short)) == len(names)
    for name, text in zip(names, short, strict=True):
        assert name == text or text_width(name) > width or "#" in text


def test_common_parts_of_names_go_first():
    units = ("block1/unit_1", "block1/unit_2", "block2/unit_1", "block2/unit_2")
    names = [f"resnet_v1_50/{unit}/bottleneck_v1/conv1/BatchNorm" for unit in units]
    short = [*(f"…{unit}…" for unit in units), "logits/bn"]
    assert shorten_all([*names, "logits/bn"], 20, "…") == short


def test_equal_short_names_get_row_numbers():
    names = ["ok", "aaaaaaaaXbbbbbbbb", "aaaaaaaaYbbbbbbbb"]
    assert shorten_all(names, 9, "…") == ["ok", "aaa…bbb#2", "aaa…bbb#3"]


def test_wrapped():
    assert wrapped("mean over the channels", Screen()) == ["mean over the channels"]
    assert wrapped("mean over the channels", Screen(width=15)) == ["mean over the", "  channels"]
