"""A layer drawn by Matplotlib."""

from __future__ import annotations

import io
from typing import Final

import numpy as np

from bnstat.errors import UnsupportedError
from bnstat.model import ROLES, BatchNorm, as_float64
from bnstat.output.numbers import compact
from bnstat.output.scale import Floats, Scale, bins_for
from bnstat.output.terminal.screen import legible

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise UnsupportedError("Matplotlib", "is not installed", "pip install matplotlib") from error

_COLOUR: Final = "#4477aa"
_LONGEST_TITLE: Final = 80
_MOST_BINS: Final = 40


class _Shown(Figure):
    """A figure that a notebook shows, whatever is set up for Matplotlib there."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


def draw(layer: BatchNorm) -> Figure:
    """See `BatchNorm.plot`."""
    figure = _Shown(figsize=(8, 8), dpi=100, layout="constrained")
    title = legible(layer.name)[:_LONGEST_TITLE]
    figure.suptitle(title, parse_math=False)
    rows = figure.subplots(len(ROLES), 2)
    for role, (left, right) in zip(ROLES, rows, strict=True):
        array = layer.array(role)
        left.set_ylabel(role.replace("_", " "))
        values = np.empty(0) if array is None else as_float64(array).ravel()
        finite = values[np.isfinite(values)]
        if not finite.size:
            for axes in (left, right):
                axes.set_axis_off()
            why = "not in the file" if array is None else "no finite number"
            left.text(0.5, 0.5, f"{role.replace('_', ' ')}: {why}", ha="center")
            continue
        _distribution(left, finite)
        _in_order(right, np.sort(finite), values.size - finite.size)
    return figure


def _distribution(axes: Axes, values: Floats) -> None:
    scale = Scale.of(values)
    bins = 5 if scale.is_point else bins_for(values.size, _MOST_BINS)
    counts = scale.counts(values, bins)
    axes.bar((np.arange(bins) + 0.5) / bins, counts, width=1 / bins, color=_COLOUR)
    middle = [(0.5, scale.low)] if scale.is_point else [(0.0, scale.low), (1.0, scale.high)]
    axes.set_xlim(0, 1)
    axes.set_xticks([place for place, _ in middle], [compact(end, 3) for _, end in middle])
    axes.set_xlabel("logarithmic" if scale.logarithmic else "")


def _in_order(axes: Axes, values: Floats, bad: int) -> None:
    axes.plot(np.arange(values.size), values, color=_COLOUR, marker="." if values.size == 1 else "")
    if Scale.of(values).logarithmic:
        axes.set_yscale("log")
    axes.set_xlabel("channels in order" + (f" ({bad:,} NaN or infinite left out)" if bad else ""))
