"""Figures of a layer, drawn with Matplotlib."""

from __future__ import annotations

import io
from typing import Final

import numpy as np

from bnstat.errors import UnsupportedError
from bnstat.model import ROLES, BatchNorm
from bnstat.output.numbers import Floats, Scale, compact, finite
from bnstat.output.terminal.screen import legible

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise UnsupportedError("Matplotlib", "is not installed", "pip install matplotlib") from error

_COLOUR: Final = "#4477aa"
_LONGEST_TITLE: Final = 80
_MOST_BINS: Final = 40


class _PngFigure(Figure):
    """A figure that notebooks show with any Matplotlib backend."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


def draw(layer: BatchNorm) -> Figure:
    """See `BatchNorm.plot`."""
    figure = _PngFigure(figsize=(8, 8), dpi=100, layout="constrained")
    figure.suptitle(legible(layer.name)[:_LONGEST_TITLE], parse_math=False)
    rows = figure.subplots(len(ROLES), 2)
    for role, (left, right) in zip(ROLES, rows, strict=True):
        title = role.replace("_", " ")
        left.set_ylabel(title)
        array = layer.array(role)
        values = np.empty(0) if array is None else finite(array)
        if array is not None and values.size:
            _distribution(left, values)
            _in_order(right, np.sort(values), array.size - values.size)
            continue
        for axes in (left, right):
            axes.set_axis_off()
        reason = "not in the file" if array is None else "no finite number"
        left.text(0.5, 0.5, f"{title}: {reason}", ha="center")
    return figure


def _distribution(axes: Axes, values: Floats) -> None:
    scale = Scale.of(values)
    counts = scale.histogram(values, _MOST_BINS)
    bins = counts.size
    axes.bar((np.arange(bins) + 0.5) / bins, counts, width=1 / bins, color=_COLOUR)
    ticks = {0.5: scale.low} if scale.is_point else {0.0: scale.low, 1.0: scale.high}
    axes.set_xlim(0, 1)
    axes.set_xticks(list(ticks), [compact(end, 3) for end in ticks.values()])
    axes.set_xlabel("logarithmic" if scale.logarithmic else "")


def _in_order(axes: Axes, values: Floats, bad: int) -> None:
    axes.plot(np.arange(values.size), values, color=_COLOUR, marker="." if values.size == 1 else "")
    if Scale.of(values).logarithmic:
        axes.set_yscale("log")
    axes.set_xlabel("channels in order" + (f" ({bad:,} NaN or infinite left out)" if bad else ""))
