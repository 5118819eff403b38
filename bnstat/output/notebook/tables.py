"""Tables that a notebook shows of a model, a layer, findings, a difference and a history."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from bnstat.checks import Finding, Findings
from bnstat.compare.diff import Difference, LayerChange, RoleChange, SettingChange
from bnstat.errors import BnstatError
from bnstat.model import ROLES, BatchNorm, Model, Summary
from bnstat.output.notebook import charts
from bnstat.output.notebook.charts import BREAK, Markup, element, paragraphs, table, together
from bnstat.output.numbers import compact, compact_pair
from bnstat.output.terminal import differences, findings, overview
from bnstat.output.terminal.history import moves, newest
from bnstat.output.terminal.screen import Screen, legible
from bnstat.run_history import History

MOST_ROWS: Final = 200
"""Rows that are shown; a line below gives the number of further rows."""

_COLOURS: Final = {"error": "#ee6677", "warning": "#ccbb44", "info": "#66ccee"}
_LARGE: Final = (220, 56)


def html_of(shown: object) -> str:
    """Return the table of a model, a layer, findings, a difference or a history."""
    tables: tuple[tuple[type, Callable[[Any], str]], ...] = (
        (Model, of_model),
        (BatchNorm, of_layer),
        (Findings, of_findings),
        (Difference, of_difference),
        (History, of_history),
    )
    return next(table(shown) for kind, table in tables if isinstance(shown, kind))


def of_model(model: Model) -> str:
    """Return a table with one row per layer: mean, deviation and distribution of each role."""
    shown = model.layers[:MOST_ROWS]
    with contextlib.suppress(BnstatError):
        model.read(shown)
    rows = [
        [legible(layer.name), str(layer.channels), *(_statistic(layer, role) for role in ROLES)]
        for layer in shown
    ]
    return together(
        element("pre", *(together(line, BREAK) for line in overview.header(model, Screen()))),
        table(["layer", "channels", *map(_title, ROLES)], rows),
        paragraphs([*_rest(len(model)), *overview.footnotes(model), *model.notes]),
    )


def _statistic(layer: BatchNorm, role: str) -> str:
    if role not in layer.variables:
        return "?" if layer.undecided else "-"
    try:
        array = layer.array(role)
    except BnstatError as error:
        return legible(str(error))
    assert array is not None
    return together(_numbers(Summary.of(array)), BREAK, charts.distribution(array))


def of_layer(layer: BatchNorm) -> str:
    """Return a table with one row per role: its numbers, their distribution and their order."""
    settings = [
        f"{name} {value}"
        for name in ("epsilon", "momentum", "axis", "trainable")
        if (value := getattr(layer, name)) is not None
    ]
    about = ", ".join([f"{layer.channels:,} channels", *settings])
    return together(
        element("p", element("b", legible(layer.name)), f": {about}"),
        table(
            ["statistic", "dtype", "mean ± deviation", "range", "distribution", "in order"],
            [_row(layer, role) for role in ROLES if role in layer.variables],
        ),
        paragraphs(layer.notes),
    )


def _row(layer: BatchNorm, role: str) -> Sequence[str]:
    cells = [_title(role), layer.variables[role].dtype]
    try:
        array = layer.array(role)
    except BnstatError as error:
        return [*cells, legible(str(error)), "", "", ""]
    assert array is not None
    summary = Summary.of(array)
    return [
        *cells,
        _numbers(summary),
        f"{compact(summary.min, 3)} to {compact(summary.max, 3)}",
        charts.distribution(array, *_LARGE),
        charts.sorted_channels(array, *_LARGE),
    ]


def of_findings(shown: Sequence[Finding]) -> str:
    """Return a table with one row per finding, the most serious first."""
    rows = [
        [
            together(
                charts.mark(_COLOURS[finding.severity], finding.severity), f" {finding.severity}"
            ),
            f"{finding.rule} {finding.name}",
            "(whole model)" if finding.layer is None else legible(finding.layer),
            legible(finding.message) + findings.channels_of(finding),
        ]
        for finding in shown[:MOST_ROWS]
    ]
    return together(
        table(["severity", "rule", "layer", "finding"], rows),
        paragraphs([*_rest(len(shown)), findings.summary(shown)]),
    )


def of_difference(difference: Difference) -> str:
    """Return a table with one row per role or setting that differs, and the reasons."""
    changes: list[tuple[LayerChange, RoleChange | SettingChange]] = []
    for layer in difference.different:
        changes += [(layer, role) for role in layer.roles if not role.equal]
        changes += [(layer, setting) for setting in layer.settings]
    rows = [_changed(layer, change) for layer, change in changes[:MOST_ROWS]]
    sources = {"old": difference.old, "new": difference.new}
    return together(
        paragraphs(f"{name}: {differences.source_line(of)}" for name, of in sources.items()),
        table(["layer", "role", "moved", "largest", "relative"], rows),
        paragraphs([*_rest(len(changes)), *differences.remarks(difference, everything=False)]),
        paragraphs([difference.summary]),
    )


def _changed(layer: LayerChange, change: RoleChange | SettingChange) -> Sequence[str]:
    name = legible(layer.new)
    if isinstance(change, SettingChange):
        return [name, change.setting, f"{change.old:g} -> {change.new:g}", "", ""]
    moved, largest, relative = differences.role_cells(change)
    bar = charts.share(change.moved, change.channels) if change.comparable else Markup("")
    return [name, _title(change.role), together(bar, f" {moved}"), largest, relative]


def of_history(history: History) -> str:
    """Return a table with one row per layer and role: its mean and deviation over time."""
    rows = [
        [
            legible(track.layer),
            _title(track.role),
            *(
                together(charts.course(values), f" {newest(track, values)}")
                for values in (track.mean, track.std)
            ),
            moves(track),
        ]
        for track in list(history.tracks.values())[:MOST_ROWS]
    ]
    names = [legible(checkpoint.name) for checkpoint in history.checkpoints]
    extent = f"{len(names)} checkpoints" + (f": {names[0]} to {names[-1]}" if names else "")
    skipped = (f"skipped: {legible(str(checkpoint.error))}" for checkpoint in history.skipped)
    return together(
        paragraphs([extent]),
        table(["layer", "role", "mean", "spread", "moves"], rows),
        paragraphs([*_rest(len(history.tracks)), *skipped]),
    )


def _numbers(summary: Summary) -> str:
    mean, deviation = compact_pair(summary.mean, summary.std, 3)
    bad = f" ({summary.bad:,} NaN or infinite)" if summary.bad else ""
    return f"{mean} ± {deviation}{bad}"


def _title(role: str) -> str:
    return role.replace("_", " ")


def _rest(count: int) -> Iterator[str]:
    if count > MOST_ROWS:
        yield f"and {count - MOST_ROWS:,} more"
