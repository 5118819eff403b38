"""A history for people: one row a layer and role, with its course drawn in the row."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import numpy as np

from bnstat.checks.rule import Finding
from bnstat.output.numbers import compact
from bnstat.output.scale import Scale
from bnstat.output.terminal import findings
from bnstat.output.terminal.screen import Screen, legible
from bnstat.output.terminal.table import Column, shorten_all, table, total_width
from bnstat.run_history import Checkpoint, Floats, History, Track

_ASCII_BLOCKS: Final = "_.:-=+*#"
_LONGEST_SPARK: Final = 40
_LEGEND: Final = (
    "mean and spread (standard deviation) over the channels from the oldest checkpoint to the "
    "newest, drawn each on its own scale, with the newest number",
    "moves: root mean square over the channels since the checkpoint before, of moving mean in "
    "standard deviations of the activations, of beta in those of the output, else relative",
)


@dataclass(frozen=True, slots=True)
class _Layout:
    """How wide the drawn courses are, whether the spread is shown, whether titles are brief."""

    spark: int
    spread: bool = True
    brief: bool = False


def lines(history: History, found: Sequence[Finding], path: str, screen: Screen) -> Iterator[str]:
    """The lines that show the history of the run at `path`, and what was found in it."""
    yield f"{screen.style('path       ', 'dim')}  {legible(path)}"
    yield f"{screen.style('checkpoints', 'dim')}  {_extent(history.checkpoints)}"
    yield ""
    tracks = list(history.tracks.values())
    yield from table(_fitting(tracks, len(history.checkpoints), screen), screen)
    yield ""
    for line in _LEGEND:
        for part in [line] if screen.width is None else textwrap.wrap(line, screen.width):
            yield screen.style(part, "dim")
    if found:
        yield ""
        yield from findings.lines(found, screen)


def sparkline(values: Floats, width: int, blocks: str) -> str:
    """The course of some numbers, lowest to highest, in at most `width` characters.

    Where there are more numbers than characters, a character stands for the mean of several. A
    space stands for what is no number.
    """
    if values.size > width:
        values = np.array([_mean(part) for part in np.array_split(values, width)])
    finite = np.isfinite(values)
    if not finite.any():
        return " " * values.size
    low, high = float(values[finite].min()), float(values[finite].max())
    height = Scale(low, high).places(values) if high > low else np.zeros_like(values)
    return "".join(
        blocks[min(int(each * len(blocks)), len(blocks) - 1)] if sound else " "
        for each, sound in zip(height.tolist(), finite.tolist(), strict=True)
    )


def _mean(values: Floats) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _extent(checkpoints: Sequence[Checkpoint]) -> str:
    first, last = checkpoints[0], checkpoints[-1]
    if len(checkpoints) == 1:
        return f"1: {legible(first.name)}"
    return f"{len(checkpoints)}: {legible(first.name)} to {legible(last.name)}"


def _fitting(tracks: Sequence[Track], count: int, screen: Screen) -> list[Column]:
    """The columns, with courses as long as there is room for."""
    longest = min(count, _LONGEST_SPARK)
    if screen.width is None:
        return [_names(tracks, None, screen), *_columns(tracks, _Layout(longest), screen)]
    layouts = [_Layout(spark) for spark in range(longest, 3, -1)]
    layouts += [_Layout(min(longest, spark), spread=False, brief=True) for spark in (8, 6, 4, 2)]
    wanted = min(20, max(len(legible(track.layer)) for track in tracks))
    for layout in layouts:
        columns = _columns(tracks, layout, screen)
        room = screen.width - total_width(columns) - 2
        if room >= wanted:
            break
    return [_names(tracks, max(room, 6), screen), *columns]


def _names(tracks: Sequence[Track], width: int | None, screen: Screen) -> Column:
    """Each layer's name on the first of its rows."""
    groups = [(name, len(list(group))) for name, group in groupby(track.layer for track in tracks)]
    names = [legible(name) for name, _ in groups]
    if width is not None:
        names = shorten_all(names, width, screen.glyphs.ellipsis)
    cells = []
    for name, (_, rows) in zip(names, groups, strict=True):
        cells += [name] + [""] * (rows - 1)
    return Column("layer", cells)


def _columns(tracks: Sequence[Track], layout: _Layout, screen: Screen) -> list[Column]:
    columns = [
        Column("role", [_title(track.role, layout.brief) for track in tracks]),
        _course("mean", [(track, track.mean) for track in tracks], layout, screen),
    ]
    if layout.spread:
        columns.append(_course("spread", [(each, each.std) for each in tracks], layout, screen))
    columns.append(Column("moves", [moves(track) for track in tracks], right=True))
    return columns


def _title(role: str, brief: bool) -> str:
    return role.removeprefix("moving_") if brief else role.replace("_", " ")


def _course(
    title: str, courses: Sequence[tuple[Track, Floats]], layout: _Layout, screen: Screen
) -> Column:
    blocks = screen.glyphs.blocks or _ASCII_BLOCKS
    return Column(
        title,
        [
            f"{sparkline(course, layout.spark, blocks)} {newest(track, course)}"
            for track, course in courses
        ],
    )


def newest(track: Track, course: Floats) -> str:
    """Return the newest number of a course; `-` where the newest checkpoint lacks the layer."""
    return "-" if np.isnan(track.bad[-1]) else compact(float(course[-1]), 3)


def moves(track: Track) -> str:
    """The movement since the checkpoint before: as a part of its unit, or a multiple (x)."""
    change = float(track.change[-1])
    if not np.isfinite(change):
        return "-"
    if change == 0:
        return "0"
    return f"{change:.2%}" if change < 10 else f"x{compact(change, 3)}"
