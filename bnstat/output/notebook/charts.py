"""HTML for notebooks, and small charts as SVG in it: no script, no style sheet, any background."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from bnstat.model import Array, printable
from bnstat.output.numbers import compact
from bnstat.output.scale import Floats, Scale, finite

_COLOUR: Final = "#4477aa"
"""Blue of Paul Tol's "bright" scheme, which people with colour blindness can distinguish."""

_MOST_POINTS: Final = 200


class Markup(str):
    """HTML; any other string is text."""

    __slots__ = ()


BREAK: Final = Markup("<br>")


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """Return an element; `fill_opacity` is the attribute `fill-opacity`, `class_` is `class`."""
    head = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_text(str(value))}"'
        for name, value in attributes.items()
    )
    return Markup(f"<{tag}{head}>{together(*children)}</{tag}>")


def together(*children: str) -> Markup:
    """Return elements and texts, one after the other."""
    return Markup(
        "".join(child if isinstance(child, Markup) else _text(child) for child in children)
    )


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """Return a table with a head; nothing if it has no rows."""
    style = "text-align:left;vertical-align:middle"
    body = [
        element("tr", *(element("td", content, style=style) for content in row)) for row in rows
    ]
    if not body:
        return Markup("")
    head = element("tr", *(element("th", title, style="text-align:left") for title in titles))
    return element("table", element("thead", head), element("tbody", *body))


def paragraphs(lines: Iterable[str]) -> Markup:
    """Return each line as a paragraph."""
    return together(*(element("p", line, style="margin:.3em 0") for line in lines))


def _text(text: str) -> str:
    return html.escape(printable(text))


def distribution(array: Array, width: int = 96, height: int = 22) -> Markup:
    """Return a histogram of the channels of a layer, with its size in pixels."""
    values = finite(array)
    if not values.size:
        return Markup("")
    scale = Scale.of(values)
    counts = scale.histogram(values, width // 3)
    step = width / counts.size
    path = "".join(
        f"M{place * step:.2f} {height}v{-max(1.0, height * number / counts.max()):.2f}"
        f"h{max(1.0, step - 1):.2f}V{height}z"
        for place, number in enumerate(counts.tolist())
        if number
    )
    label = f"distribution of {_channels(values)} from {_range(scale)}"
    return _svg(element("path", d=path, fill=_COLOUR), label, width, height)


def sorted_channels(array: Array, width: int = 96, height: int = 22) -> Markup:
    """Return a line through the sorted channels of a layer, with an axis at 0."""
    values = np.sort(finite(array))
    if not values.size:
        return Markup("")
    scale = Scale.of(values)
    label = f"{_channels(values)} in order, from {_range(scale)}"
    return _svg(_line(values, scale, width, height), label, width, height)


def course(values: Floats, width: int = 96, height: int = 22) -> Markup:
    """Return a line through numbers over time, with a gap at numbers that are not finite."""
    numbers = finite(values)
    if not numbers.size:
        return Markup("")
    scale = Scale.of(numbers, adaptive=False)
    return _svg(_line(values, scale, width, height), f"course from {_range(scale)}", width, height)


def share(part: int, whole: int, width: int = 60, height: int = 8) -> Markup:
    """Return a bar that is filled by a part of a whole."""
    filled = width * part / whole if whole else 0
    frame = element(
        "rect", width=width, height=height, fill="none", stroke=_COLOUR, stroke_opacity="0.6"
    )
    bar = element("rect", width=f"{filled:.2f}", height=height, fill=_COLOUR)
    return _svg(frame + bar, f"{part} of {whole}", width, height)


def mark(colour: str, label: str) -> Markup:
    """Return a coloured dot."""
    return _svg(element("circle", cx=5, cy=5, r=4.5, fill=colour), label, 10, 10)


def _line(values: Floats, scale: Scale, width: int, height: int) -> Markup:
    if values.size > _MOST_POINTS:
        chosen = np.linspace(0, values.size - 1, _MOST_POINTS).round().astype(np.intp)
        values = values[chosen]
    is_finite = np.isfinite(values)
    across = np.linspace(1, width - 1, max(2, values.size))[: values.size]
    down = _down(scale, np.where(is_finite, values, scale.low), height)
    path = "".join(
        f"{'L' if place and is_finite[place - 1] else 'M'}{x:.2f} {y:.2f}"
        + ("h.01" if values.size == 1 else "")
        for place, (x, y) in enumerate(zip(across.tolist(), down.tolist(), strict=True))
        if is_finite[place]
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


def _channels(values: Floats) -> str:
    return "1 channel" if values.size == 1 else f"{values.size:,} channels"


def _range(scale: Scale) -> str:
    ends = f"{compact(scale.low, 3)} to {compact(scale.high, 3)}"
    return f"{ends}, logarithmic" if scale.logarithmic else ends
