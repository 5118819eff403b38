"""The history of a run, as text with sparklines, JSON and CSV.

A measure is null in JSON, and empty in CSV, if the checkpoint lacks the layer or finite channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from bnstat.checks.rule import Finding
from bnstat.output import findings
from bnstat.output.documents import csv_document, json_document, members
from bnstat.output.numbers import Scale, compact, factor, finite
from bnstat.output.terminal.screen import Screen, legible
from bnstat.output.terminal.table import GAP, Column, facts, layer_table, total_width
from bnstat.run_history import MEASURES, Floats, History, Track

_ASCII_BLOCKS: Final = "_.:-=+*#"
_LONGEST_COURSE: Final = 40
_LEGEND: Final = (
    "mean and spread (standard deviation) over the channels from the oldest checkpoint to the "
    "newest, drawn each on its own scale, with the newest number",
    "moves: change since the previous checkpoint (root mean square over the channels), of moving "
    "mean in standard deviations of the activations, of beta in standard deviations of the output, "
    "else relative",
)


def text_lines(
    history: History, run_findings: Sequence[Finding], path: str, screen: Screen
) -> Iterator[str]:
    """Yield the lines that show the history of the run at `path`, and its findings."""
    checkpoints = history.checkpoints
    extent = f"{len(checkpoints)}: {legible(checkpoints[0].name)}"
    if len(checkpoints) > 1:
        extent += f" to {legible(checkpoints[-1].name)}"
    pairs = [("path", legible(path)), ("checkpoints", extent)]
    yield from facts(pairs, screen, len("checkpoints"))
    yield ""
    tracks = list(history.tracks.values())
    columns = _fitting(tracks, len(checkpoints), screen)
    yield from layer_table([track.layer for track in tracks], columns, _LEGEND, screen, 6)
    if run_findings:
        yield ""
        yield from findings.text_lines(run_findings, screen)


def sparkline(values: Floats, width: int, blocks: str) -> str:
    """Return a line of at most `width` characters whose heights show numbers over time.

    More than `width` numbers are averaged in groups. A space stands for NaN and infinity.
    """
    if values.size > width:
        parts = map(finite, np.array_split(values, width))
        values = np.array([part.mean() if part.size else np.nan for part in parts])
    numbers = finite(values)
    if not numbers.size:
        return " " * values.size
    scale = Scale.of(numbers, adaptive=False)
    height = np.zeros_like(values) if scale.is_point else scale.places(values)
    return "".join(
        blocks[min(int(share * len(blocks)), len(blocks) - 1)] if is_finite else " "
        for share, is_finite in zip(height.tolist(), np.isfinite(values).tolist(), strict=True)
    )


def _fitting(tracks: Sequence[Track], count: int, screen: Screen) -> list[Column]:
    """Return the table's columns with the longest sparklines that fit the screen."""
    longest = min(count, _LONGEST_COURSE)
    layouts = [(length, False) for length in range(longest, 3, -1)] or [(longest, False)]
    layouts += [(min(longest, length), True) for length in (8, 6, 4, 2)]
    wanted = min(20, max((len(legible(track.layer)) for track in tracks), default=0))
    for length, is_short in layouts:
        columns = _columns(tracks, length, is_short, screen)
        if screen.width is None or screen.width - total_width(columns) - len(GAP) >= wanted:
            break
    return columns


def _columns(tracks: Sequence[Track], length: int, is_short: bool, screen: Screen) -> list[Column]:
    """Return columns with sparklines of `length` characters; `is_short` omits the deviation."""
    roles = [track.role.removeprefix("moving_" if is_short else "") for track in tracks]
    courses = {"mean": [track.mean for track in tracks]}
    if not is_short:
        courses["spread"] = [track.std for track in tracks]
    blocks = screen.glyphs.blocks or _ASCII_BLOCKS
    columns = [Column("role", [role.replace("_", " ") for role in roles])]
    for title, values in courses.items():
        cells = [
            f"{sparkline(course, length, blocks)} {newest(track, course)}"
            for track, course in zip(tracks, values, strict=True)
        ]
        columns.append(Column(title, cells))
    return [*columns, Column("moves", [moves(track) for track in tracks], right=True)]


def newest(track: Track, course: Floats) -> str:
    """Return the last number of `course`, or `-` if the newest checkpoint lacks the layer."""
    return "-" if np.isnan(track.bad[-1]) else compact(float(course[-1]), 3)


def moves(track: Track) -> str:
    """Return a track's last change as `factor` formats it; `0` if exactly 0, `-` if unknown."""
    change = float(track.change[-1])
    if not np.isfinite(change):
        return "-"
    return factor(change) if change else "0"


def json_lines(history: History, run_findings: Sequence[Finding], path: str) -> Iterator[str]:
    """Yield the lines of the history of the run at `path`, and the findings in it, as JSON."""
    return json_document(
        path=path,
        checkpoints=[members(checkpoint, "name", "step") for checkpoint in history.checkpoints],
        skipped=[{"name": each.name, "error": str(each.error)} for each in history.skipped],
        tracks=[
            {
                **members(track, "layer", "role"),
                **{
                    measure: [None if math.isnan(number) else number for number in numbers.tolist()]
                    for measure, numbers in members(track, *MEASURES).items()
                },
            }
            for track in history.tracks.values()
        ],
        findings=[findings.plain(finding) for finding in run_findings],
    )


def csv_lines(history: History) -> Iterator[str]:
    """Yield the lines of a history as CSV."""
    from bnstat.exchange.csv import cell

    rows = (
        [cell(checkpoint.name), checkpoint.step, cell(track.layer), track.role]
        + ["" if np.isnan(number) else repr(float(number)) for number in numbers]
        for track in history.tracks.values()
        for checkpoint, *numbers in zip(
            history.checkpoints, *members(track, *MEASURES).values(), strict=True
        )
    )
    return csv_document(("checkpoint", "step", "layer", "role", *MEASURES), rows)
