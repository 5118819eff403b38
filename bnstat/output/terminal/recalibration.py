"""A recalibration for people: one row a layer, how far it moved and how certain that is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bnstat.mending.estimating.modes import percent
from bnstat.mending.estimating.recalibration import FAR, Mended, Recalibration
from bnstat.output.numbers import compact
from bnstat.output.terminal import modes
from bnstat.output.terminal.screen import Screen, legible
from bnstat.output.terminal.table import Column, shorten_all, table, total_width, wrapped

LEGEND: Final = (
    "moved: distance of the new mean or deviation from the old; uncertainty: half of the distance "
    "between two halves of the data; residual: distance from what enters in inference; each at "
    "the worst channel, in standard deviations",
    "variance: the new as a multiple of the old, where it changed most",
)
_LEAST_NAME: Final = 8


def lines(result: Recalibration, model: str, copy: str | None, screen: Screen) -> Iterator[str]:
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
    yield from table(_columns(result, screen), screen)
    yield ""
    for text in LEGEND:
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


def _columns(result: Recalibration, screen: Screen) -> list[Column]:
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
        names = shorten_all(names, max(_LEAST_NAME, room), screen.glyphs.ellipsis)
    return [Column("layer", names), *columns]


def _uncertainty(each: Mended, screen: Screen) -> str:
    return "" if each.error is None else f"{screen.glyphs.plus_minus}{each.error:.4f}"
