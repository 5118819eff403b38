"""Text about the history of a run: a row for each layer and role, with sparklines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from bnstat.checks.rule import Finding
from bnstat.output.numbers import Scale, compact
from bnstat.output.terminal import findings
from bnstat.output.terminal.screen import Screen, legible
from bnstat.output.terminal.table import GAP, Column, layer_column, table, total_width, wrapped
from bnstat.run_history import Floats, History, Track

_ASCII_BLOCKS: Final = "_.:-=+*#"
_LONGEST_COURSE: Final = 40
_LEGEND: Final = (
    "mean and spread (standard deviation) over the channels from the oldest checkpoint to the "
    "newest, drawn each on its own scale, with the newest number",
    "moves: change since the previous checkpoint (root mean square over the channels), of moving "
    "mean in standard deviations of the activations, of beta in standard deviations of the output, "
    "else relative",
)


@dataclass(frozen=True, slots=True)
class _Layout:
    """The length of the sparklines. A short layout omits the spread."""

    length: int
    is_short: bool = False


def lines(
    history: History, run_findings: Sequence[Finding], path: str, screen: Screen
) -> Iterator[str]:
    """Yield the lines that show the history of the run at `path`, and its findings."""
    yield f"{screen.style('path       ', 'dim')}  {legible(path)}"
    checkpoints = history.checkpoints
    names = [legible(checkpoint.name) for checkpoint in (checkpoints[0], checkpoints[-1])]
    extent = " to ".join(dict.fromkeys(names) if len(checkpoints) == 1 else names)
    yield f"{screen.style('checkpoints', 'dim')}  {len(checkpoints)}: {extent}"
    yield ""
    yield from table(_table(list(history.tracks.values()), len(checkpoints), screen), screen)
    yield ""
    for line in _LEGEND:
        for part in wrapped(line, screen):
            yield screen.style(part, "dim")
    if run_findings:
        yield ""
        yield from findings.lines(run_findings, screen)


def sparkline(values: Floats, width: int, blocks: str) -> str:
    """Draw numbers, scaled from the lowest to the highest, in at most `width` characters.

    If there are more numbers than characters, a character shows the mean of several. A space stands
    for a number that is not finite.
    """
    if values.size > width:
        values = np.array([_mean(part) for part in np.array_split(values, width)])
    finite = np.isfinite(values)
    if not finite.any():
        return " " * values.size
    low, high = float(values[finite].min()), float(values[finite].max())
    height = Scale(low, high).places(values) if high > low else np.zeros_like(values)
    return "".join(
        blocks[min(int(share * len(blocks)), len(blocks) - 1)] if is_finite else " "
        for share, is_finite in zip(height.tolist(), finite.tolist(), strict=True)
    )


def _mean(values: Floats) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _table(tracks: Sequence[Track], count: int, screen: Screen) -> list[Column]:
    """Return the columns, with sparklines as long as the screen permits."""
    longest = min(count, _LONGEST_COURSE)
    layouts = [_Layout(longest)]
    if screen.width is not None:
        layouts = [_Layout(length) for length in range(longest, 3, -1)]
        layouts += [_Layout(min(longest, length), is_short=True) for length in (8, 6, 4, 2)]
        wanted = min(20, max(len(legible(track.layer)) for track in tracks))
    for layout in layouts:
        columns = _columns(tracks, layout, screen)
        if screen.width is None or screen.width - total_width(columns) - len(GAP) >= wanted:
            break
    rows = Counter(track.layer for track in tracks)
    names = list(map(legible, rows))
    return [layer_column(names, columns, screen, 6, list(rows.values())), *columns]


def _columns(tracks: Sequence[Track], layout: _Layout, screen: Screen) -> list[Column]:
    if layout.is_short:
        roles = [track.role.removeprefix("moving_") for track in tracks]
    else:
        roles = [track.role.replace("_", " ") for track in tracks]
    courses = {"mean": [track.mean for track in tracks], "spread": [track.std for track in tracks]}
    if layout.is_short:
        del courses["spread"]
    blocks = screen.glyphs.blocks or _ASCII_BLOCKS
    columns = [Column("role", roles)]
    for title, values in courses.items():
        cells = [
            f"{sparkline(course, layout.length, blocks)} {newest(track, course)}"
            for track, course in zip(tracks, values, strict=True)
        ]
        columns.append(Column(title, cells))
    return [*columns, Column("moves", [moves(track) for track in tracks], right=True)]


def newest(track: Track, course: Floats) -> str:
    """Return the last number of a track, or `-` if the newest checkpoint lacks the layer."""
    return "-" if np.isnan(track.bad[-1]) else compact(float(course[-1]), 3)


def moves(track: Track) -> str:
    """Return the change since the previous checkpoint, in percent or as a multiple (x)."""
    change = float(track.change[-1])
    if not np.isfinite(change):
        return "-"
    if change == 0:
        return "0"
    return f"{change:.2%}" if change < 10 else f"x{compact(change, 3)}"
