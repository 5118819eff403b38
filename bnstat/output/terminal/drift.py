"""A drift for people: one row a layer, the farthest first, and what it means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from bnstat.estimate.drift import SHIFTED, Drift, LayerDrift, State
from bnstat.estimate.modes import percent
from bnstat.estimate.recalibration import FAR, Mended, Recalibration
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


RECALIBRATION_LEGEND: Final = (
    "moved: distance of the new mean or deviation from the old; uncertainty: half of the distance "
    "between two halves of the data; residual: distance from what enters in inference; each at "
    "the worst channel, in standard deviations",
    "variance: the new as a multiple of the old, where it changed most",
)
_RECALIBRATION_LEAST_NAME: Final = 8


def lines_recalibration(
    result: Recalibration, model: str, copy: str | None, screen: Screen
) -> Iterator[str]:
    """The lines that show what was done to `model`, and where the copy is."""
    yield f"{screen.style('path    ', 'dim')}  {legible(model)}"
    if copy is not None:
        yield f"{screen.style('copy    ', 'dim')}  {legible(copy)}"
    waves = f", in {result.waves} waves" if result.exact else ""
    yield (
        f"{screen.style('data    ', 'dim')}  {result.samples} samples in {result.batches} "
        f"batches{waves}"
    )
    if result.accuracy is not None:
        before, after = map(percent, result.accuracy)
        yield f"{screen.style('accuracy', 'dim')}  {before} before, {after} after"
    elif result.evidence.data is not None:
        yield from modes.rows(result.evidence.data, result.samples, screen)
    yield ""
    yield from table(_recalibration_columns(result, screen), screen)
    yield ""
    for text in RECALIBRATION_LEGEND:
        for line in wrapped(text, screen):
            yield screen.style(line, "dim")
    yield ""
    total = len(result.layers) + len(result.left)
    yield f"{len(result.layers)} of {total} layers recalibrated"


def notes(result: Recalibration) -> Iterator[str]:
    """What is to be said beside: layers that were left, and what remains."""
    for name, why in result.left.items():
        yield f"note: {name} was left as it was: {why}"
    if result.objection is not None:
        yield f"warning: the model {result.objection}"
    elif (
        result.is_initial
        and result.evidence.trained_with == "unknown"
        and not (result.evidence.data and result.evidence.data.better == "own")
    ):
        yield (
            "warning: nothing shows whether the network was trained with the statistics of each "
            "batch. If it was trained in inference mode, the old model is right and the new one "
            f"is broken: compare both, or pass --labels ({'; '.join(result.evidence.reasons)})"
        )
    far = [each for each in result.layers if each.remains > FAR]
    if far:
        worst = max(far, key=lambda each: each.remains)
        yield (
            f"warning: {len(far)} of {len(result.layers)} layers are still off by more than {FAR} "
            f"standard deviations, {worst.layer} by {compact(worst.remains, 2)}: "
            "use --exact, or larger batches"
        )


def _recalibration_columns(result: Recalibration, screen: Screen) -> list[Column]:
    layers = result.layers
    columns = [
        Column("ch", [str(each.mean.size) for each in layers], right=True),
        Column("moved", [compact(each.moved, 3) for each in layers], right=True),
        Column("variance", [f"x{compact(each.ratio, 3)}" for each in layers], right=True),
        Column("uncertainty", [_uncertainty(each, screen) for each in layers], right=True),
        Column(
            "residual",
            [f"{each.remains:.4f}" for each in layers],
            right=True,
            styles={row: "yellow" for row, each in enumerate(layers) if each.remains > FAR},
        ),
    ]
    names = [legible(each.layer) for each in layers]
    if screen.width is not None:
        room = screen.width - total_width(columns) - 2
        names = shorten_all(names, max(_RECALIBRATION_LEAST_NAME, room), screen.glyphs.ellipsis)
    return [Column("layer", names), *columns]


def _uncertainty(each: Mended, screen: Screen) -> str:
    return "" if each.error is None else f"{screen.glyphs.plus_minus}{each.error:.4f}"
