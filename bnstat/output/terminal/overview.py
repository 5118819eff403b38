"""Text about a model: a header, and a table with a row for each layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from bnstat.model import ROLES, Array, BatchNorm, Model, Summary
from bnstat.output.numbers import bars, compact, compact_pair, counted, finite
from bnstat.output.terminal.screen import Glyphs, Screen, legible, sentence
from bnstat.output.terminal.table import GAP, Column, facts, layer_table, total_width

Track = Callable[[Sequence[BatchNorm]], Iterable[BatchNorm]]
"""Wraps layers while they are read, for example to show progress."""

_BINS: Final = 8


def _histogram(array: Array, summary: Summary, blocks: str) -> str:
    """Return a histogram of the finite values as a row of bars; empty if no value is finite."""
    extent = summary.max - summary.min
    if not extent or not np.isfinite(extent):
        return "" if extent else blocks[-1]
    # `Scale.counts` takes longer, which a model of thousands of layers shows.
    parts = ((finite(array) - summary.min) / extent * _BINS).astype(np.int64)
    counts = np.bincount(np.minimum(parts, _BINS - 1), minlength=_BINS)
    return bars(counts, _BINS, 1, blocks)[0]


_SETTINGS: Final = ("epsilon", "momentum", "axis", "trainable")
_MARKS: Final = {
    "N": "NaN or infinite values",
    "V": "negative variance",
    "I": "moving statistics still at their initial 0 and 1",
}
_REWRITTEN: Final = "moving statistics 0 and 1: a converter moved them into gamma and beta"
_MOVING: Final = ("moving_mean", "moving_variance")


class _Layout(NamedTuple):
    """The columns of the table, for one of several screen widths.

    `least_name` is the minimum width of the layer names; `spread` shows standard deviations, and
    `settings` shows the settings that differ between layers.
    """

    least_name: int
    digits: int = 2
    roles: tuple[str, ...] = ROLES
    spread: bool = True
    range: bool = False
    histogram: bool = False
    settings: bool = False


_LAYOUTS: Final = (
    _Layout(32, digits=3, range=True, histogram=True, settings=True),
    _Layout(28, range=True, histogram=True, settings=True),
    _Layout(28, range=True, settings=True),
    _Layout(28, range=True),
    _Layout(24, settings=True),
    _Layout(16),
    _Layout(14, spread=False),
    _Layout(8, roles=_MOVING),
    _Layout(1, roles=_MOVING, spread=False),
)
"""The layouts, largest first; the first that fits the screen is used."""


class _Row(NamedTuple):
    """A layer in the table, with a summary and a histogram per role."""

    layer: BatchNorm
    summaries: Mapping[str, Summary]
    histograms: Mapping[str, str]
    defects: Mapping[str, set[str]]  # letter of an obvious defect -> the roles that have it


def _row(layer: BatchNorm, blocks: str) -> _Row:
    arrays = {role: array for role in ROLES if (array := layer.array(role)) is not None}
    summaries = {role: Summary.of(array) for role, array in arrays.items()}
    drawn = arrays.items() if blocks else ()
    histograms = {role: _histogram(array, summaries[role], blocks) for role, array in drawn}
    defects: dict[str, set[str]] = {}
    if bad := {role for role, summary in summaries.items() if summary.bad}:
        defects["N"] = bad
    mean, variance = map(summaries.get, _MOVING)
    if variance and variance.min < 0:
        defects["V"] = {"moving_variance"}
    ends = [(each.min, each.max) for each in (mean, variance) if each and not each.bad]
    if ends == [(0, 0), (1, 1)]:
        defects["I"] = set(_MOVING)
    return _Row(layer, summaries, histograms, defects)


def overview(model: Model, screen: Screen, track: Track = iter) -> Iterator[str]:
    """Yield the lines that show a model: header, table, legend and notes."""
    width = screen.width
    blocks = screen.glyphs.blocks if width is None or width >= 140 else ""
    rows = [_row(layer, blocks) for layer in track(model.layers)]
    yield from header(model, screen)
    yield ""
    longest = Column("layer", [legible(layer.name) for layer in model.layers]).width
    for layout in _LAYOUTS:
        columns = _columns(model, rows, layout, screen.glyphs)
        least = min(longest, layout.least_name)
        if width is None or width - total_width(columns) - len(GAP) >= least:
            break
    names = [layer.name for layer in model.layers]
    texts = _legend(model, rows, layout, screen.glyphs)
    yield from layer_table(names, columns, texts, screen, least=6)


def header(model: Model, screen: Screen) -> Iterator[str]:
    """Yield lines with a model's source, number of layers and settings that all layers share."""
    source = model.source
    pairs = _settings(model).items()
    settings = [f"{name} {texts[0]}" for name, texts in pairs if len(set(texts)) == 1]
    lines = {
        "path": source.path,
        "format": source.format,
        "writer": source.writer,
        "checkpoint": source.checkpoint,
        "step": source.step,
        "layers": f"{len(model):,} with {counted(model.channels, 'channel')}",
        "settings": ", ".join(settings),
    }
    known = {label: legible(str(text)) for label, text in lines.items() if text not in (None, "")}
    yield from facts(known.items(), screen, max(map(len, known)))


def footnotes(model: Model) -> Iterator[str]:
    """Yield a line per note with the names of the layers, and a line per undecided layer."""
    names_of: dict[str, list[str]] = defaultdict(list)
    for layer in model.layers:
        for note in layer.notes:
            names_of[note].append(layer.name)
        if layer.undecided:
            names_of["the file does not record the role of some variables"].append(layer.name)
        if layer.extra:
            names_of[f"also stored: {', '.join(sorted(layer.extra))}"].append(layer.name)
    for fact, names in names_of.items():
        if len(names) == len(model):
            yield f"all layers: {sentence(fact)}"
        else:
            more = f" and {counted(len(names) - 2, 'other')}" if len(names) > 3 else ""
            visible = names[:2] if more else names
            yield f"{', '.join(map(legible, visible))}{more}: {sentence(fact)}"
    yield from undecided(model)


def undecided(model: Model) -> Iterator[str]:
    """Yield a line per undecided layer: name, number and shape of the variables, and path."""
    for layer in model.undecided:
        what = counted(len(layer.undecided), "variable")
        place = layer.undecided[0].key.rpartition("/")[0]
        shape = ",".join(map(str, layer.shape))
        unsure = " may be batch norm" if layer.evidence == "name" else ""
        yield legible(f"undecided: {layer.name}{unsure}: {what} of [{shape}] in {place}")


def _settings(model: Model) -> dict[str, list[str]]:
    """Map each setting that any layer has to a text per layer; `-` if the layer lacks it."""

    def text(value: object) -> str:
        if value is None or isinstance(value, bool):
            return {None: "-", True: "yes", False: "no"}[value]
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    texts = {name: [text(getattr(layer, name)) for layer in model.layers] for name in _SETTINGS}
    return {name: column for name, column in texts.items() if set(column) - {"-"}}


def _columns(model: Model, rows: Sequence[_Row], layout: _Layout, glyphs: Glyphs) -> list[Column]:
    columns = []
    if any(row.defects for row in rows):
        marks = ["".join(row.defects) for row in rows]
        red = {number: "red" for number, mark in enumerate(marks) if mark}
        columns.append(Column("", marks, styles=red))
    if layout.roles is ROLES:
        counts = [str(row.layer.channels) for row in rows]
        columns.append(Column("channels" if layout.range else "ch", counts, right=True))
    if layout.settings:
        pairs = _settings(model).items()
        columns += [Column(name, texts, right=True) for name, texts in pairs if len(set(texts)) > 1]
    for role in layout.roles:
        columns += _role_columns(role, rows, layout, glyphs)
    return columns


def _role_columns(
    role: str, rows: Sequence[_Row], layout: _Layout, glyphs: Glyphs
) -> Iterator[Column]:
    title = role.replace("_", " ").replace("variance", "var")
    red = (number for number, row in enumerate(rows) if role in set().union(*row.defects.values()))
    styles = dict.fromkeys(red, "red")
    means, ranges = [], []
    for row in rows:
        summary = row.summaries.get(role)
        mean, extent = ("?" if row.layer.undecided else "-", ""), ("", "")
        if summary is not None and layout.spread:
            mean = compact_pair(summary.mean, summary.std, layout.digits)
            extent = compact(summary.min, layout.digits), compact(summary.max, layout.digits)
        elif summary is not None:
            mean = compact(summary.mean, layout.digits), ""
        means.append(mean)
        ranges.append(extent)
    if not layout.spread:
        short = title.removeprefix("moving ")
        yield Column(short, [mean for mean, _ in means], right=True, styles=styles)
        return
    yield _pairs(title, means, glyphs.plus_minus, styles)
    if layout.range:
        yield _pairs("range", ranges, "..", styles)
    if layout.histogram and glyphs.blocks:
        drawn = [row.histograms.get(role, "").ljust(_BINS) for row in rows]
        yield Column("", drawn, styles=styles)


def _pairs(
    title: str, pairs: Sequence[tuple[str, str]], between: str, styles: Mapping[int, str]
) -> Column:
    """Return a column of pairs. Each pair is joined by `between`, which is aligned in all rows."""
    left = max((len(first) for first, _ in pairs), default=0)
    right = max((len(second) for _, second in pairs), default=0)
    width = max(len(title), left + len(between) + right)
    cells = [
        f"{first:>{left}}{between if second else ' ' * len(between)}{second:{right}}".center(width)
        for first, second in pairs
    ]
    return Column(title.center(width).rstrip(), cells, styles=styles)


def _legend(model: Model, rows: Sequence[_Row], layout: _Layout, glyphs: Glyphs) -> Iterator[str]:
    content = f"mean{glyphs.plus_minus}standard deviation" if layout.spread else "mean"
    if layout.range:
        content += ", smallest..largest"
    if layout.histogram and glyphs.blocks:
        content += ", histogram"
    yield f"{content} over the channels"
    for letter, meaning in _MARKS.items():
        if count := sum(letter in row.defects for row in rows):
            if letter == "I" and count == len(rows) and model.source.is_converted:
                from bnstat.checks.updates import rewritten

                meaning = _REWRITTEN if rewritten(model) == "surely" else meaning
            yield f"{letter}  {meaning} ({counted(count, 'layer')})"
    yield from footnotes(model)
