"""A model for people: a header, and a table of one row a layer.

The table shows of each of the four statistics the mean and the deviation over the channels, with
more room their range, and with more still a histogram from the smallest to the largest. A letter
beside a name marks what is plainly wrong, and a legend under the table explains each letter that
occurs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from bnstat.model import ROLES, Array, BatchNorm, Model, Summary, as_float64
from bnstat.output.numbers import compact, compact_pair
from bnstat.output.terminal.screen import Glyphs, Screen, legible
from bnstat.output.terminal.table import Column, shorten_all, table, total_width, wrapped

BINS: Final = 8


def heights(array: Array, summary: Summary) -> list[int]:
    """The heights of a histogram's bars, from 0 to 8; a bar that counts anything is not 0."""
    extent = summary.max - summary.min
    if not np.isfinite(extent):
        return []
    if extent == 0:
        return [8]
    values = as_float64(array).ravel()
    if summary.bad:
        values = values[np.isfinite(values)]
    bins = ((values - summary.min) / extent * BINS).astype(np.int64)
    counts = np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)
    scaled: list[int] = np.ceil(counts * (8 / counts.max())).astype(int).tolist()
    return scaled


def draw(bars: Sequence[int], blocks: str) -> str:
    """The bars in a font's blocks, the lowest first; a space where there is none."""
    return "".join(blocks[height - 1] if height else " " for height in bars).ljust(BINS)


_TITLES: Final = {
    "gamma": "gamma",
    "beta": "beta",
    "moving_mean": "moving mean",
    "moving_variance": "moving var",
}
_SETTINGS: Final = ("epsilon", "momentum", "axis", "trainable")
_MARKS: Final = {
    "N": "NaN or infinite values",
    "V": "negative variance",
    "I": "moving statistics still at their initial 0 and 1",
}
_REWRITTEN: Final = "moving statistics 0 and 1: a converter moved them into gamma and beta"
_MOVING: Final = ("moving_mean", "moving_variance")


class _Layout(NamedTuple):
    """How much of each layer a table shows.

    Attributes:
        least_name: the layout is for screens that leave so many columns for the names.
        digits: significant digits.
        roles: whose statistics are shown.
        spread, range, histogram: what is shown of a statistic besides its mean.
        channels: a column for the number of channels.
        settings: columns for the settings that differ between layers, such as epsilon.
    """

    least_name: int
    digits: int = 2
    roles: tuple[str, ...] = ROLES
    spread: bool = True
    range: bool = False
    histogram: bool = False
    channels: bool = True
    settings: bool = False


_LAYOUTS: Final = (
    _Layout(32, digits=3, range=True, histogram=True, settings=True),
    _Layout(28, range=True, histogram=True, settings=True),
    _Layout(28, range=True, settings=True),
    _Layout(28, range=True),
    _Layout(24, settings=True),
    _Layout(16),
    _Layout(14, spread=False),
    _Layout(8, roles=_MOVING, channels=False),
    _Layout(1, roles=_MOVING, channels=False, spread=False),
)
"""From the richest to the poorest: the first that fits the screen is taken."""


class _Digest(NamedTuple):
    """What the table shows of a layer's statistics.

    Attributes:
        summaries: role -> the numbers read first.
        bars: role -> the heights of a histogram's bars, from 0 to 8; empty if none is drawn.
    """

    summaries: Mapping[str, Summary]
    bars: Mapping[str, Sequence[int]]

    @classmethod
    def of(cls, layer: BatchNorm, histograms: bool) -> _Digest:
        summaries = {}
        bars = {}
        for role in ROLES:
            array = layer.array(role)
            if array is not None:
                summaries[role] = Summary.of(array)
                if histograms:
                    bars[role] = heights(array, summaries[role])
        return cls(summaries, bars)

    def wrong(self) -> dict[str, set[str]]:
        """The letters of what is plainly wrong, with the roles that are at fault."""
        found: dict[str, set[str]] = {}
        if bad := {role for role, summary in self.summaries.items() if summary.bad}:
            found["N"] = bad
        mean, variance = map(self.summaries.get, ("moving_mean", "moving_variance"))
        if variance and variance.min < 0:
            found["V"] = {"moving_variance"}
        if mean and variance and _constant(mean, 0) and _constant(variance, 1):
            found["I"] = {"moving_mean", "moving_variance"}
        return found


def overview(
    model: Model,
    screen: Screen,
    track: Callable[[Sequence[BatchNorm]], Iterable[BatchNorm]] = iter,
) -> Iterator[str]:
    """The lines that show a model: its header, its table, and what is to be known of it.

    Args:
        model: what to show.
        screen: what the lines are for.
        track: passes the layers on, such as to show progress.

    Raises:
        BnstatError: a variable cannot be read.
    """
    histograms = bool(screen.glyphs.blocks) and (screen.width is None or screen.width >= 140)
    digests = [_Digest.of(layer, histograms) for layer in track(model.layers)]
    wrong = [digest.wrong() for digest in digests]
    yield from header(model, screen)
    yield ""
    layout, columns = _fitting(model, digests, wrong, screen)
    yield from table(columns, screen)
    yield ""
    for line in _legend(model, layout, wrong, screen.glyphs):
        for part in wrapped(line, screen):
            yield screen.style(part, "dim")


def header(model: Model, screen: Screen) -> Iterator[str]:
    """The lines that say what was read: path, format, checkpoint, layers, common settings."""
    source = model.source
    lines = {"path": legible(source.path), "format": source.format}
    if source.writer:
        lines["writer"] = legible(source.writer)
    if source.checkpoint is not None:
        lines["checkpoint"] = legible(source.checkpoint)
    if source.step is not None:
        lines["step"] = str(source.step)
    lines["layers"] = f"{len(model):,} with {_count(model.channels, 'channel')}"
    common = {name: texts[0] for name, texts in _settings(model).items() if len(set(texts)) == 1}
    if settings := ", ".join(f"{name} {text}" for name, text in common.items()):
        lines["settings"] = settings
    width = max(map(len, lines))
    for label, text in lines.items():
        yield f"{screen.style(f'{label:{width}}', 'dim')}  {text}"


def footnotes(model: Model) -> Iterator[str]:
    """What a reader of the layers has to know: one line a fact, with the layers it is about."""
    facts: dict[str, list[str]] = defaultdict(list)
    for layer in model.layers:
        for note in layer.notes:
            facts[note].append(layer.name)
        if layer.undecided:
            facts["the file does not tell the role of some variables"].append(layer.name)
        if layer.extra:
            facts[f"also stored: {', '.join(sorted(layer.extra))}"].append(layer.name)
    for fact, names in facts.items():
        if len(names) == len(model):
            yield f"all layers: {legible(fact)}"
        else:
            more = f" and {_count(len(names) - 2, 'other')}" if len(names) > 3 else ""
            shown = names[:2] if more else names
            yield f"{', '.join(map(legible, shown))}{more}: {legible(fact)}"
    yield from undecided(model)


def undecided(model: Model) -> Iterator[str]:
    """The layers that may be batch norm: one line each, with what the file holds of it."""
    for layer in model.undecided:
        what = _count(len(layer.undecided), "variable")
        place = layer.undecided[0].key.rpartition("/")[0]
        shape = ",".join(map(str, layer.shape))
        unsure = " may be batch norm" if layer.evidence == "name" else ""
        yield legible(f"undecided: {layer.name}{unsure}: {what} of [{shape}] in {place}")


def _settings(model: Model) -> dict[str, list[str]]:
    """Each setting that the file tells of any layer, as one text a layer."""
    texts = {name: [_setting(getattr(layer, name)) for layer in model.layers] for name in _SETTINGS}
    return {name: column for name, column in texts.items() if set(column) - {"-"}}


def _setting(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _fitting(
    model: Model,
    digests: Sequence[_Digest],
    wrong: Sequence[Mapping[str, set[str]]],
    screen: Screen,
) -> tuple[_Layout, list[Column]]:
    """The richest layout that fits the screen, and its columns."""
    names = [legible(layer.name) for layer in model.layers]
    longest = Column("layer", names).width
    for layout in _LAYOUTS:
        columns = _columns(model, digests, wrong, layout, screen.glyphs)
        if screen.width is None:
            return layout, [Column("layer", names), *columns]
        room = screen.width - total_width(columns) - 2
        if room >= min(longest, layout.least_name):
            break
    names = shorten_all(names, max(room, 6), screen.glyphs.ellipsis)
    return layout, [Column("layer", names), *columns]


def _columns(
    model: Model,
    digests: Sequence[_Digest],
    wrong: Sequence[Mapping[str, set[str]]],
    layout: _Layout,
    glyphs: Glyphs,
) -> list[Column]:
    """All columns but the names'."""
    columns = []
    if any(wrong):
        marks = ["".join(letters) for letters in wrong]
        columns.append(
            Column("", marks, styles={row: "red" for row, mark in enumerate(marks) if mark})
        )
    if layout.channels:
        counts = [str(layer.channels) for layer in model.layers]
        title = "channels" if layout.range else "ch"
        columns.append(Column(title, counts, right=True))
    if layout.settings:
        columns += [
            Column(name, texts, right=True)
            for name, texts in _settings(model).items()
            if len(set(texts)) > 1
        ]
    for role in layout.roles:
        red = {row: "red" for row, by in enumerate(wrong) if any(role in at for at in by.values())}
        missing = ["?" if layer.undecided else "-" for layer in model.layers]
        columns += _statistic(role, digests, missing, red, layout, glyphs)
    return columns


def _statistic(
    role: str,
    digests: Sequence[_Digest],
    missing: Sequence[str],
    styles: Mapping[int, str],
    layout: _Layout,
    glyphs: Glyphs,
) -> Iterator[Column]:
    """The columns for one role."""
    summaries = [digest.summaries.get(role) for digest in digests]

    def text(number: float) -> str:
        return compact(number, layout.digits)

    if not layout.spread:
        means = [
            text(summary.mean) if summary else none
            for summary, none in zip(summaries, missing, strict=True)
        ]
        title = _TITLES[role].removeprefix("moving ")
        yield Column(title, means, right=True, styles=styles)
        return
    means_and_spreads = [
        compact_pair(summary.mean, summary.std, layout.digits) if summary else (none, "")
        for summary, none in zip(summaries, missing, strict=True)
    ]
    yield _pairs(_TITLES[role], means_and_spreads, glyphs.plus_minus, styles)
    if layout.range:
        ranges = [
            (text(summary.min), text(summary.max)) if summary else ("", "") for summary in summaries
        ]
        yield _pairs("range", ranges, "..", styles)
    if layout.histogram and glyphs.blocks:
        drawn = [draw(digest.bars.get(role, ()), glyphs.blocks) for digest in digests]
        yield Column("", drawn, styles=styles)


def _pairs(
    title: str, pairs: Sequence[tuple[str, str]], between: str, styles: Mapping[int, str]
) -> Column:
    """A column of pairs, with what is between them lined up below the middle of the title."""
    left = max((len(first) for first, _ in pairs), default=0)
    right = max((len(second) for _, second in pairs), default=0)
    width = max(len(title), left + len(between) + right)
    cells = [
        f"{first:>{left}}{between if second else ' ' * len(between)}{second:{right}}".center(width)
        for first, second in pairs
    ]
    return Column(title.center(width).rstrip(), cells, styles=styles)


def _legend(
    model: Model,
    layout: _Layout,
    wrong: Sequence[Mapping[str, set[str]]],
    glyphs: Glyphs,
) -> Iterator[str]:
    shown = f"mean{glyphs.plus_minus}standard deviation" if layout.spread else "mean"
    if layout.range:
        shown += ", smallest..largest"
    if layout.histogram and glyphs.blocks:
        shown += ", histogram"
    yield f"{shown} over the channels"
    for letter, meaning in _MARKS.items():
        if count := sum(letter in letters for letters in wrong):
            if letter == "I" and count == len(wrong) and _are_rewritten(model):
                meaning = _REWRITTEN
            yield f"{letter}  {meaning} ({_count(count, 'layer')})"
    yield from footnotes(model)


def _are_rewritten(model: Model) -> bool:
    from bnstat.checks.conversion import rewritten

    return rewritten(model) == "surely"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def _constant(summary: Summary, value: float) -> bool:
    return not summary.bad and summary.min == summary.max == value
