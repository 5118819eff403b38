from __future__ import annotations

import numpy as np
import pytest

from bnstat.output.numbers import bars
from bnstat.output.terminal import listing
from bnstat.output.terminal.drawing import dots, drawings, framed
from bnstat.output.terminal.screen import UNICODE, Screen
from bnstat.output.terminal.table import text_width
from tests.output.models import layer, model, usual, variable

TERMINAL = Screen(width=80, boxes=True)


def test_bars_are_as_high_as_their_counts():
    assert bars(np.array([0, 1, 2, 4]), 4, 2, "") == ["   #", " ###"]
    assert bars(np.array([0, 1, 2, 4]), 4, 1, UNICODE.blocks) == [" ▂▄█"]
    assert bars(np.array([1, 2]), 5, 2, "") == ["   ##", "#####"]
    *_, lowest = bars(np.array([1, 10**9, 0]), 3, 6, UNICODE.blocks)
    assert lowest == "▁█ "


def test_dots_rise_from_the_bottom_to_the_top():
    rising = np.linspace(0, 1, 8)
    assert dots(rising, 4, 4, braille=False) == ["   *", "  * ", " *  ", "*   "]
    assert dots(rising, 4, 2, braille=True) == ["  ⡠⠊", "⡠⠊  "]


@pytest.mark.parametrize("boxes", [False, True])
def test_labels_are_beside_the_dots_of_their_numbers(boxes):
    lines = drawn(layer("bn", {"beta": np.linspace(-1, 4, 100)}), screen=Screen(100, boxes=boxes))
    start = next(number for number, line in enumerate(lines) if line.startswith("beta"))
    charts = [line[50:].split() for line in lines[start + 1 : start + 7]]
    assert [row[0] for row in charts if not row[0].startswith(("|", "│"))] == ["4", "0", "-1"]
    assert charts[4][0] == "0"


def test_notes_fit_the_screen():
    note = " ".join(map(str, range(100)))
    shown = model(usual("bn", notes=[note]))
    for screen in (Screen(60), Screen(80)):
        for view in (drawings, listing.variables, listing.values):
            lines = list(view(shown, screen))
            assert max(map(text_width, lines)) <= screen.width
            assert " ".join(" ".join(lines).split()).endswith(f"all layers: {note}")


def test_a_frame():
    labels = {0: "10", 1: "0"}, ("a", "mid", "z")
    lines = ["10 |##########", " 0 |##########", "   +----------", "    a  mid   z"]
    assert framed(lambda width: ["#" * width] * 2, *labels, 14, Screen()) == lines
    boxes = framed(lambda width: ["#" * width] * 2, *labels, 14, Screen(boxes=True))
    assert boxes[1:3] == [" 0 ┤##########", "   └──────────"]
    texts = {}, ("12345", "middle", "54321")
    assert framed(lambda width: [], *texts, 16, Screen())[-1] == "  12345    54321"
    assert framed(lambda width: [], *texts, 10, Screen())[-1] == "  12345 54"


def drawn(*layers, screen=TERMINAL):
    return list(drawings(model(*layers), screen))


@pytest.mark.parametrize("columns", [24, 40, 59, 60, 80, 100, 200, None])
def test_lines_fit_the_screen(columns):
    name = "a\x1b[2J\n" + "x" * 2000
    screen = Screen(width=columns, boxes=columns is not None)
    lines = drawn(usual(name, 300), screen=screen)
    text = "\n".join(lines)
    assert "\x1b" not in text
    if columns is None:
        assert text.isascii()
        assert {"*", "#"} < set(text)
    else:
        assert max(map(text_width, lines[6:])) <= columns
        assert set(UNICODE.blocks) & set(text)


def test_all_four_are_drawn_with_their_channels_sorted():
    bn = usual("bn", 64)
    lines = drawn(bn)
    for role, array in bn.variables.items():
        values = array.read()
        start = next(i for i, line in enumerate(lines) if line.startswith(role.replace("_", " ")))
        assert "64 channels" in lines[start]
        under = lines[start + 8].split()
        assert under[-5:] == ["ch", str(values.argmin()), "sorted", "ch", str(values.argmax())]


def test_values_that_are_not_finite():
    bad = np.float32([np.nan, 1, 2, np.inf, 3])
    lines = drawn(layer("bn", {"moving_mean": bad, "moving_variance": np.full(3, np.nan)}))
    (mean,) = (line for line in lines if line.startswith("moving mean"))
    assert mean == "moving mean: 2.000±0.816, 1..3, 5 channels, 2 of them NaN or infinite"
    assert any(line.split()[-5:] == ["ch", "1", "sorted", "ch", "4"] for line in lines)
    assert lines[-1] == "moving variance: 3 channels, 3 of them NaN or infinite"


@pytest.mark.parametrize("count", [0, 1, 5])
def test_channels_that_are_all_the_same(count):
    lines = drawn(layer("bn", {"moving_variance": np.ones(count, np.float32)}))
    assert "gamma: none" in lines
    undecided = layer("bn", {}, undecided=[variable("v", np.ones(4))])
    assert "gamma: not stored" in drawn(undecided)
    assert ("ch 0" in "\n".join(lines)) == (count > 0)


def test_numbers_at_the_ends_of_their_type():
    extremes = np.array([-np.finfo(np.float64).max, 0, np.finfo(np.float64).max])
    tiny = np.array([5e-324, 1e-323, 1e-300])
    lines = drawn(layer("bn", {"moving_mean": extremes, "moving_variance": tiny}))
    assert any("-1.80e308" in line for line in lines)
    assert any("logarithmic" in line for line in lines)
