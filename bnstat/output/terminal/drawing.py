"""Charts of the statistics of a layer, drawn with characters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bnstat.exchange.decimals import labels
from bnstat.model import ROLES, Array, BatchNorm, Model, Summary, as_float64
from bnstat.output.numbers import Floats, Scale, bars, compact, compact_pair, counted
from bnstat.output.terminal.overview import Track, footnotes, header
from bnstat.output.terminal.screen import ASCII, Screen, legible
from bnstat.output.terminal.table import legend, shorten, wrapped

_BRAILLE: Final = 0x2800
_DOTS_DOWN: Final = 4
_DOTS: Final = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bits of the dots in a Braille character, row by row. Source: Unicode, chapter 21."""


def dots(places: NDArray[np.float64], width: int, height: int, braille: bool) -> list[str]:
    """Return the rows, from top to bottom, of a chart that draws numbers from 0 to 1 as dots.

    A Braille character contains 2 by 4 dots. Without `braille`, each dot is a star.
    """
    across, down = (2, _DOTS_DOWN) if braille else (1, 1)
    chosen = np.linspace(0, places.size - 1, width * across).round().astype(np.intp)
    levels = dot_rows(places[chosen], height * down).tolist()
    cells = [[0] * width for _ in range(height)]
    for column, level in enumerate(levels):
        cells[level // down][column // across] |= _DOTS[level % down][column % across]
    if braille:
        return ["".join(chr(_BRAILLE + bits) if bits else " " for bits in row) for row in cells]
    return ["".join("*" if bits else " " for bits in row) for row in cells]


def dot_rows(places: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Convert places to indices of dot rows: place 1 is row 0 (top), place 0 is row `count - 1`."""
    return ((1 - places) * (count - 1) + 0.5).astype(np.intp)


def framed(
    draw: Callable[[int], Sequence[str]],
    beside: Mapping[int, str],
    below: tuple[str, str, str],
    width: int,
    screen: Screen,
) -> list[str]:
    """Return the lines, `width` columns wide, of a chart with axes and labels.

    `draw(columns)` returns the rows of a chart of that width. `beside` maps the index of
    a row to its label. `below` contains the labels under the left end, the middle and the right.
    """
    tick, side, corner, rule = "┤│└─" if screen.boxes and screen.glyphs.blocks else "||+-"
    margin = max(map(len, beside.values()), default=0)
    room = max(1, width - margin - 2)
    lines = []
    for number, row in enumerate(draw(room)):
        label = beside.get(number, "")
        axis = f"{label:>{margin}} {tick if label else side}"
        lines.append(screen.style(axis, "dim") + screen.style(f"{row:{room}}", "cyan"))
    lines.append(screen.style(f"{'':{margin}} {corner}{rule * room}", "dim"))
    left, middle, right = below
    text = left
    if middle and len(left) + len(middle) + len(right) + 2 <= room:
        text = f"{left:{max(len(left) + 1, (room - len(middle)) // 2)}}{middle}"
    text += f"{right:>{max(len(right) + 1, room - len(text))}}"
    lines.append(screen.style(f"{'':{margin + 2}}{text[:room]}", "dim"))
    return lines


_HEIGHT: Final = 6
_PIPE_WIDTH: Final = 80
_MAX_WIDTH: Final = 120
_MIN_WIDTH_OF_TWO: Final = 60  # the minimum width for two charts side by side
_GAP: Final = "   "


def drawings(model: Model, screen: Screen, track: Track = iter) -> Iterator[str]:
    """Yield the lines of the charts of each layer, in ASCII if the screen has no boxes."""
    yield from header(model, screen)
    for layer in track(model.layers):
        yield ""
        yield from _layer(layer, screen)
    yield from legend(footnotes(model), screen)


def _layer(layer: BatchNorm, screen: Screen) -> Iterator[str]:
    width = min(screen.width or _PIPE_WIDTH, _MAX_WIDTH)
    name = legible(layer.name)
    if screen.width is not None:
        name = shorten(name, width, screen.glyphs.ellipsis)
    yield screen.style(name, "bold")
    if not screen.boxes:
        screen = screen._replace(glyphs=ASCII)
    for role in ROLES:
        array = layer.array(role)
        title = role.replace("_", " ")
        yield ""
        if array is None:
            yield f"{title}: {'not stored' if layer.undecided else 'none'}"
            continue
        values = as_float64(array).ravel()
        yield from _title(title, array, screen)
        if np.isfinite(values).any():
            yield from _charts(values, array.shape, width, screen)


def _title(role: str, array: Array, screen: Screen) -> Iterator[str]:
    """Yield lines with the name of a role and a summary of its values."""
    summary, parts = Summary.of(array), []
    low, high = compact(summary.min, 3), compact(summary.max, 3)
    if summary.min == summary.max:
        parts.append(low)
    elif summary.bad < summary.count:
        mean, deviation = compact_pair(summary.mean, summary.std, 3)
        parts += [f"{mean}{screen.glyphs.plus_minus}{deviation}", f"{low}..{high}"]
    parts.append(counted(summary.count, "channel"))
    if summary.bad:
        parts.append(f"{summary.bad:,} of them NaN or infinite")
    for line in wrapped(f"{role}: {', '.join(parts)}", screen):
        yield screen.style(line, "red" if summary.bad else "")


def _charts(values: Floats, shape: tuple[int, ...], width: int, screen: Screen) -> Iterator[str]:
    """Yield the lines of a histogram and of a chart of the channels sorted by value."""
    finite = np.flatnonzero(np.isfinite(values))
    order = finite[np.argsort(values[finite], kind="stable")]
    values = values[order]
    ends = order[[0, -1]].tolist()
    first, last = (f"ch {labels(shape, end, end + 1)[0]}" for end in ends)
    scale = Scale.of(values)
    low, high = compact(scale.low, 3), compact(scale.high, 3)
    is_wide = width >= _MIN_WIDTH_OF_TWO
    room = (width - len(_GAP)) // 2 if is_wide else width
    blocks = screen.glyphs.blocks

    counts = scale.histogram(values, room // 2)
    beside = {0: f"{counts.max():,}", _HEIGHT - 1: "0"}
    kind = "logarithmic" if scale.logarithmic else ""
    below = ("", low, "") if scale.is_point else (low, kind, high)
    draw = partial(bars, counts, height=_HEIGHT, blocks=blocks)
    left = framed(draw, beside, below, room, screen)

    marks = {"0": 0.0} if scale.low < 0 < scale.high else {}
    marks |= {low: scale.low, high: scale.high}
    down = _DOTS_DOWN if blocks else 1
    rows = dot_rows(scale.places(np.array(list(marks.values()))), _HEIGHT * down) // down
    beside = dict(zip(rows.tolist(), marks, strict=True))
    below = ("", first, "") if values.size == 1 else (first, "sorted", last)
    draw = partial(dots, scale.places(values), height=_HEIGHT, braille=bool(blocks))
    right = framed(draw, beside, below, room, screen)
    if is_wide:
        for line, other in zip(left, right, strict=True):
            yield f"{line}{_GAP}{other}".rstrip()
    else:
        yield from (line.rstrip() for line in (*left, *right))
