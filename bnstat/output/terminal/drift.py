"""A drift for people: one row a layer, the farthest first, and what it means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from bnstat.mending.estimating.drift import SHIFTED, Drift, LayerDrift, State
from bnstat.mending.estimating.modes import percent
from bnstat.output.numbers import compact
from bnstat.output.terminal import modes
from bnstat.output.terminal.screen import Screen, legible
from bnstat.output.terminal.table import Column, shorten_all, table, total_width, wrapped

LEGEND: Final = (
    "shift: distance of the data's mean from the stored, in stored standard deviations, at the "
    "worst channel; variance: the data's as a multiple of the stored, lowest to highest; J: "
    f"symmetric divergence, mean over the channels, from {SHIFTED} on shifted"
)

VERDICTS: Final[Mapping[State, str]] = {
    "invalid": (
        "invalid: stored statistics, or what enters a layer, are NaN, infinite or, as a variance, "
        "negative; bnstat check names the stored ones, and bnstat recalibrate replaces them"
    ),
    "healthy": "healthy: what enters the layers is what the stored statistics say",
    "shifted": (
        "shifted: the data is of another distribution than the statistics were taken of, or the "
        "statistics are not those of these weights; bnstat recalibrate adapts them"
    ),
}
_STYLES: Final[Mapping[State, str]] = {
    "shifted": "yellow",
    "never-updated": "red",
    "invalid": "red",
}
_LEAST_NAME: Final = 8
_UNKNOWN: Final = "-"
"""Stands for what no channel has, because its statistics are invalid."""


def lines(result: Drift, model: str, screen: Screen) -> Iterator[str]:
    """The lines that show how far `model` is from the data."""
    yield f"{screen.style('path    ', 'dim')}  {legible(model)}"
    yield f"{screen.style('data    ', 'dim')}  {result.samples} samples"
    compared = None if result.evidence is None else result.evidence.data
    if compared is not None:
        yield from modes.rows(compared, result.samples, screen)
    elif result.accuracy is not None:
        yield f"{screen.style('accuracy', 'dim')}  {percent(result.accuracy)}"
    yield ""
    yield from table(_columns(result, screen), screen)
    yield ""
    for line in wrapped(LEGEND, screen):
        yield screen.style(line, "dim")
    yield ""
    if result.state == "never-updated":
        yield from wrapped(f"never updated: {modes.verdict(result.evidence)}", screen)
    else:
        yield from wrapped(VERDICTS[result.state], screen)


def _columns(result: Drift, screen: Screen) -> list[Column]:
    layers = sorted(result.layers, key=lambda each: -each.total)
    styles = {row: _STYLES.get(each.state, "") for row, each in enumerate(layers)}
    columns = [
        Column("ch", [str(each.mean.size) for each in layers], right=True),
        Column("shift", [_shift(each) for each in layers], right=True),
        Column("variance", [_ratios(each) for each in layers], right=True),
        Column("J", [compact(each.total, 3) for each in layers], right=True, styles=styles),
        Column("", [each.state.replace("-", " ") for each in layers], styles=styles),
    ]
    names = [legible(each.layer) for each in layers]
    if screen.width is not None:
        room = screen.width - total_width(columns) - 2
        names = shorten_all(names, max(_LEAST_NAME, room), screen.glyphs.ellipsis)
    return [Column("layer", names), *columns]


def _shift(each: LayerDrift) -> str:
    known = each.shift[~np.isnan(each.shift)]
    if not known.size:
        return _UNKNOWN
    worst = known[np.argmax(np.abs(known))]
    return f"{'+' if worst > 0 else ''}{compact(float(worst), 3)}"


def _ratios(each: LayerDrift) -> str:
    known = each.ratio[~np.isnan(each.ratio)]
    if not known.size:
        return _UNKNOWN
    low, high = (f"x{compact(float(edge), 3)}" for edge in (known.min(), known.max()))
    return f"{low} to {high}"
