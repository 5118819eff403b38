"""Charts made of characters, and the axes around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnstat.output.terminal.screen import Screen

Draw = Callable[[int], Sequence[str]]
"""Draws a chart of so many columns: its rows, from the top to the bottom."""

_BRAILLE: Final = 0x2800
_DOTS_DOWN: Final = 4
_DOTS: Final = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Row and column of a dot within a character of Braille -> its bit; see Unicode, chapter 21."""


class Frame(NamedTuple):
    """What stands around a chart.

    Attributes:
        beside: row -> what is written to the left of it.
        below: what is written under the left end, the middle and the right end.
    """

    beside: Mapping[int, str]
    below: tuple[str, str, str]


def bars(counts: NDArray[np.intp], width: int, height: int, blocks: str) -> list[str]:
    """Bars side by side, the highest of them as high as the chart.

    A bar that counts anything is not empty.

    Args:
        counts: one number a bar, at most `width` of them.
        width: the chart's columns.
        height: its rows.
        blocks: characters of growing height; empty where there are none to draw with.
    """
    blocks = blocks or "#"
    steps = height * len(blocks)
    heights = np.ceil(counts * (steps / max(1, counts.max()))).astype(int).tolist()
    columns = [heights[column * len(heights) // width] for column in range(width)]
    rows = []
    for row in reversed(range(height)):
        levels = [min(bar - row * len(blocks), len(blocks)) for bar in columns]
        rows.append("".join(blocks[level - 1] if level > 0 else " " for level in levels))
    return rows


def dots(places: NDArray[np.float64], width: int, height: int, braille: bool) -> list[str]:
    """A line of dots through numbers from 0 at the bottom to 1 at the top, left to right.

    Args:
        places: the numbers, one at least.
        width: the chart's columns.
        height: its rows.
        braille: whether a character holds 2 by 4 dots; else it is one star.
    """
    across, down = (2, _DOTS_DOWN) if braille else (1, 1)
    chosen = np.linspace(0, places.size - 1, width * across).round().astype(np.intp)
    levels = _levels(places[chosen], height * down).tolist()
    cells = [[0] * width for _ in range(height)]
    for column, level in enumerate(levels):
        cells[level // down][column // across] |= _DOTS[level % down][column % across]
    if braille:
        return ["".join(chr(_BRAILLE + bits) if bits else " " for bits in row) for row in cells]
    return ["".join("*" if bits else " " for bits in row) for row in cells]


def row_of(place: float, height: int, braille: bool) -> int:
    """The row, counted from the top, in which `dots` draws a number."""
    down = _DOTS_DOWN if braille else 1
    return int(_levels(np.array([place]), height * down)[0]) // down


def _levels(places: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """The number of the line of dots, counted from the top, for each number."""
    return ((1 - places) * (count - 1) + 0.5).astype(np.intp)


def framed(draw: Draw, frame: Frame, width: int, screen: Screen, style: str = "") -> list[str]:
    """A chart with its axes, in lines of exactly `width` columns.

    Lines and corners are drawn where the screen has them.
    """
    tick, side, corner, rule = "┤│└─" if screen.boxes and screen.glyphs.blocks else "||+-"
    margin = max(map(len, frame.beside.values()), default=0)
    room = max(1, width - margin - 2)
    lines = []
    for number, row in enumerate(draw(room)):
        label = frame.beside.get(number, "")
        axis = f"{label:>{margin}} {tick if label else side}"
        lines.append(screen.style(axis, "dim") + screen.style(f"{row:{room}}", style))
    lines.append(screen.style(f"{'':{margin}} {corner}{rule * room}", "dim"))
    lines.append(screen.style(f"{'':{margin + 2}}{_spread(frame.below, room)}", "dim"))
    return lines


def _spread(texts: tuple[str, str, str], width: int) -> str:
    """Three texts at the left, in the middle and at the right; the middle one where it fits."""
    left, middle, right = texts
    room = width - len(left) - len(right)
    if len(middle) + 2 > room:
        middle = ""
    start = max(len(left) + 1, (width - len(middle)) // 2) if middle else len(left)
    line = f"{left:{start}}{middle}"
    return f"{line}{right:>{max(len(right) + 1, width - len(line))}}"[:width]
