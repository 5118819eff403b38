"""Small charts as SVG within HTML: no script, no style sheet, readable on light and dark."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from bnstat.model import Array, as_float64, printable
from bnstat.output.numbers import compact
from bnstat.output.scale import Floats, Scale, bins_for


class Markup(str):
    """HTML; any other string is text."""

    __slots__ = ()


BREAK: Final = Markup("<br>")
"""The end of a line."""


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """An element: `fill_opacity` is the attribute `fill-opacity`, `class_` is `class`."""
    head = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_text(str(value))}"'
        for name, value in attributes.items()
    )
    return Markup(f"<{tag}{head}>{together(*children)}</{tag}>")


def together(*children: str) -> Markup:
    """Elements and texts, one after the other."""
    return Markup("".join(each if isinstance(each, Markup) else _text(each) for each in children))


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """A table of a head and rows."""
    head = element("tr", *(element("th", title, style="text-align:left") for title in titles))
    body = (element("tr", *(_cell(cell) for cell in row)) for row in rows)
    return element("table", element("thead", head), element("tbody", *body))


def paragraphs(lines: Iterable[str]) -> Markup:
    """Each line a paragraph."""
    return together(*(element("p", line, style="margin:.3em 0") for line in lines))


def _cell(content: str) -> Markup:
    return element("td", content, style="text-align:left;vertical-align:middle")


def _text(text: str) -> str:
    return html.escape(printable(text))


_COLOUR: Final = "#4477aa"
"""Blue of Paul Tol's "bright" scheme, which the colour-blind can tell from the others."""

_MOST_POINTS: Final = 200


def distribution(array: Array, width: int = 96, height: int = 22) -> Markup:
    """How the channels of a layer are distributed, in `width` by `height` pixels."""
    values = _finite(array)
    if not values.size:
        return Markup("")
    scale = Scale.of(values)
    bins = 5 if scale.is_point else bins_for(values.size, width // 3)
    counts = scale.counts(values, bins)
    each = width / bins
    path = "".join(
        f"M{number * each:.2f} {height}v{-max(1.0, height * count / counts.max()):.2f}"
        f"h{max(1.0, each - 1):.2f}V{height}z"
        for number, count in enumerate(counts.tolist())
        if count
    )
    label = f"distribution of {_count(values.size)} from {_range(scale)}"
    return _svg(element("path", d=path, fill=_COLOUR), label, width, height)


def sorted_channels(array: Array, width: int = 96, height: int = 22) -> Markup:
    """The channels of a layer from the lowest to the highest, a line at 0 where it is crossed."""
    values = np.sort(_finite(array))
    if not values.size:
        return Markup("")
    scale = Scale.of(values)
    label = f"{_count(values.size)} in order, from {_range(scale)}"
    return _svg(_line(values, scale, width, height), label, width, height)


def course(values: Floats, width: int = 96, height: int = 22) -> Markup:
    """How a number moved; there is a gap where it was none."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Markup("")
    scale = Scale.of(finite, adaptive=False)
    label = f"course from {_range(scale)}"
    return _svg(_line(values, scale, width, height), label, width, height)


def share(part: int, whole: int, width: int = 60, height: int = 8) -> Markup:
    """A bar: what part of a whole it is."""
    filled = width * part / whole if whole else 0
    frame = element(
        "rect", width=width, height=height, fill="none", stroke=_COLOUR, stroke_opacity="0.6"
    )
    bar = element("rect", width=f"{filled:.2f}", height=height, fill=_COLOUR)
    return _svg(frame + bar, f"{part} of {whole}", width, height)


def mark(colour: str, label: str) -> Markup:
    """A dot in a colour."""
    return _svg(element("circle", cx=5, cy=5, r=4.5, fill=colour), label, 10, 10)


def _line(values: Floats, scale: Scale, width: int, height: int) -> Markup:
    """A line through numbers, with 0 drawn where the axis has it."""
    if values.size > _MOST_POINTS:
        chosen = np.linspace(0, values.size - 1, _MOST_POINTS).round().astype(np.intp)
        values = values[chosen]
    finite = np.isfinite(values)
    across = np.linspace(1, width - 1, max(2, values.size))[: values.size]
    down = _down(scale, np.where(finite, values, scale.low), height)
    path = "".join(
        f"{'L' if place and finite[place - 1] else 'M'}{x:.2f} {y:.2f}"
        + ("h.01" if values.size == 1 else "")
        for place, (x, y) in enumerate(zip(across.tolist(), down.tolist(), strict=True))
        if finite[place]
    )
    line = element(
        "path", d=path, fill="none", stroke=_COLOUR, stroke_width=1.5, stroke_linecap="round"
    )
    if not scale.low < 0 < scale.high:
        return line
    zero = float(_down(scale, np.zeros(1), height)[0])
    axis = element("path", d=f"M0 {zero:.2f}h{width}", stroke="currentColor", stroke_opacity="0.35")
    return Markup(axis + line)


def _down(scale: Scale, values: Floats, height: int) -> Floats:
    return height - 1 - scale.places(values) * (height - 2)


def _svg(content: str, label: str, width: int, height: int) -> Markup:
    return element(
        "svg",
        element("title", label),
        Markup(content),
        role="img",
        aria_label=label,
        width=width,
        height=height,
        viewBox=f"0 0 {width} {height}",
        style="vertical-align:middle",
    )


def _finite(array: Array) -> Floats:
    values = as_float64(array).ravel()
    return values[np.isfinite(values)]


def _count(number: int) -> str:
    return "1 channel" if number == 1 else f"{number:,} channels"


def _range(scale: Scale) -> str:
    ends = f"{compact(scale.low, 3)} to {compact(scale.high, 3)}"
    return f"{ends}, logarithmic" if scale.logarithmic else ends
