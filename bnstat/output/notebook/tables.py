"""What a notebook shows of a model, a layer, findings, a difference and a history."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

from bnstat.checks import Finding, Findings
from bnstat.compare.diff import Difference, LayerChange, RoleChange, SettingChange
from bnstat.errors import BnstatError
from bnstat.model import ROLES, Array, BatchNorm, Model, Summary
from bnstat.output.notebook import charts
from bnstat.output.notebook.charts import BREAK, Markup, element, paragraphs, table, together
from bnstat.output.numbers import compact, compact_pair
from bnstat.output.terminal import differences, findings, overview
from bnstat.output.terminal.history import moves, newest
from bnstat.output.terminal.screen import Screen, legible
from bnstat.run_history import History

Shown = TypeVar("Shown")

MOST_ROWS: Final = 200
"""How many rows are shown; a line says how many there are besides."""

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
    """A table of one row a layer: of each statistic the mean, the deviation, the distribution."""
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


def of_layer(layer: BatchNorm) -> str:
    """A table of one row a statistic: its numbers, its distribution, its channels in order."""
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


def of_findings(found: Sequence[Finding]) -> str:
    """A table of one row a finding, the gravest first."""
    rows = [
        [
            together(charts.mark(_COLOURS[each.severity], each.severity), f" {each.severity}"),
            f"{each.rule} {each.name}",
            "(whole model)" if each.layer is None else legible(each.layer),
            legible(each.message) + findings.channels_of(each),
        ]
        for each in found[:MOST_ROWS]
    ]
    parts = [table(["severity", "rule", "layer", "finding"], rows)] if rows else []
    return together(*parts, paragraphs([*_rest(len(found)), findings.summary(found)]))


def of_difference(difference: Difference) -> str:
    """A table of one row a role or setting of the layers that differ, and why they do."""
    changes: list[tuple[LayerChange, RoleChange | SettingChange]] = []
    for layer in difference.different:
        changes += [(layer, role) for role in layer.roles if not role.equal]
        changes += [(layer, setting) for setting in layer.settings]
    rows = [_changed(layer, changed) for layer, changed in changes[:MOST_ROWS]]
    parts = [table(["layer", "role", "moved", "largest", "relative"], rows)] if rows else []
    return together(
        paragraphs(
            [
                f"old: {differences.source_line(difference.old)}",
                f"new: {differences.source_line(difference.new)}",
            ]
        ),
        *parts,
        paragraphs([*_rest(len(changes)), *differences.remarks(difference, everything=False)]),
        paragraphs([difference.summary]),
    )


def of_history(history: History) -> str:
    """A table of one row a layer and role: the courses of its mean and of its deviation."""
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
    parts = [table(["layer", "role", "mean", "spread", "moves"], rows)] if rows else []
    return together(
        paragraphs([extent]),
        *parts,
        paragraphs(
            [
                *_rest(len(history.tracks)),
                *(f"skipped: {legible(str(skipped.error))}" for skipped in history.skipped),
            ]
        ),
    )


def _changed(layer: LayerChange, changed: RoleChange | SettingChange) -> Sequence[str]:
    name = legible(layer.new)
    if isinstance(changed, SettingChange):
        return [name, changed.setting, f"{changed.old:g} -> {changed.new:g}", "", ""]
    moved, largest, relative = differences.role_cells(changed)
    bar = charts.share(changed.moved, changed.channels) if changed.comparable else Markup("")
    return [name, _title(changed.role), together(bar, f" {moved}"), largest, relative]


def _row(layer: BatchNorm, role: str) -> Sequence[str]:
    title, dtype = _title(role), layer.variables[role].dtype

    def cells(array: Array) -> Sequence[str]:
        summary = Summary.of(array)
        return [
            title,
            dtype,
            _numbers(summary),
            f"{compact(summary.min, 3)} to {compact(summary.max, 3)}",
            charts.distribution(array, *_LARGE),
            charts.sorted_channels(array, *_LARGE),
        ]

    return _read(layer, role, cells, lambda error: [title, dtype, error, "", "", ""])


def _statistic(layer: BatchNorm, role: str) -> str:
    if role not in layer.variables:
        return "?" if layer.undecided else "-"

    def cell(array: Array) -> str:
        numbers = _numbers(Summary.of(array))
        return together(numbers, BREAK, charts.distribution(array))

    return _read(layer, role, cell, lambda error: error)


def _read(
    layer: BatchNorm, role: str, show: Callable[[Array], Shown], fail: Callable[[str], Shown]
) -> Shown:
    """What is shown of an array, or of the error that keeps it from being read."""
    try:
        array = layer.array(role)
    except BnstatError as error:
        return fail(legible(str(error)))
    assert array is not None
    return show(array)


def _numbers(summary: Summary) -> str:
    mean, deviation = compact_pair(summary.mean, summary.std, 3)
    bad = f" ({summary.bad:,} NaN or infinite)" if summary.bad else ""
    return f"{mean} ± {deviation}{bad}"


def _title(role: str) -> str:
    return role.replace("_", " ")


def _rest(count: int) -> Iterator[str]:
    if count > MOST_ROWS:
        yield f"and {count - MOST_ROWS:,} more"
