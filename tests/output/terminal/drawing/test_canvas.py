from __future__ import annotations

import numpy as np
import pytest

from bnstat.output.terminal.drawing import Frame, bars, dots, framed, row_of
from bnstat.output.terminal.screen import UNICODE, Screen


def test_bars_are_as_high_as_their_counts():
    assert bars(np.array([0, 1, 2, 4]), 4, 2, "") == ["   #", " ###"]
    assert bars(np.array([0, 1, 2, 4]), 4, 1, UNICODE.blocks) == [" ▂▄█"]
    assert bars(np.array([1, 2]), 5, 2, "") == ["   ##", "#####"]


def test_a_bar_that_counts_anything_is_seen():
    *_, lowest = bars(np.array([1, 10**9, 0]), 3, 6, UNICODE.blocks)
    assert lowest == "▁█ "


def test_dots_rise_from_the_bottom_to_the_top():
    rising = np.linspace(0, 1, 8)
    assert dots(rising, 4, 4, braille=False) == ["   *", "  * ", " *  ", "*   "]
    assert dots(rising, 4, 2, braille=True) == ["  ⡠⠊", "⡠⠊  "]


@pytest.mark.parametrize("braille", [False, True])
def test_every_dot_is_in_the_row_that_is_told(braille):
    for place in np.linspace(0, 1, 41).tolist():
        drawn = dots(np.array([place]), 3, 6, braille)
        assert [number for number, row in enumerate(drawn) if row.strip()] == [
            row_of(place, 6, braille)
        ]


def test_a_frame():
    frame = Frame({0: "10", 1: "0"}, ("a", "mid", "z"))
    plain = framed(lambda width: ["#" * width] * 2, frame, 14, Screen())
    assert plain == [
        "10 |##########",
        " 0 |##########",
        "   +----------",
        "    a  mid   z",
    ]
    boxes = framed(lambda width: ["#" * width] * 2, frame, 14, Screen(boxes=True))
    assert boxes[1:3] == [" 0 ┤##########", "   └──────────"]


def test_what_does_not_fit_under_a_chart_is_left_out():
    frame = Frame({}, ("12345", "middle", "54321"))
    assert framed(lambda width: [], frame, 16, Screen())[-1] == "  12345    54321"
    assert framed(lambda width: [], frame, 10, Screen())[-1] == "  12345 54"
