"""A difference for people: one row a layer and role that changed, and what that pattern says."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from bnstat.compare.alignment import Match
from bnstat.compare.diff import MEANINGS, REMARKS, Difference, LayerChange, RoleChange
from bnstat.compare.folding import Folded
from bnstat.compare.weights import Rounding
from bnstat.mending.pairing import Applied, Change
from bnstat.model import Source
from bnstat.output.numbers import compact
from bnstat.output.terminal.screen import Screen, legible
from bnstat.output.terminal.table import Column, shorten_all, table, total_width

MATCHES: Final[Mapping[Match, str]] = {
    "name": "by name",
    "suffix": "by the end of the name",
    "position": "by position and shape",
    "values": "by values",
    "effect": "by scale and shift",
}
"""How a layer was found in the other model."""

ROUNDINGS: Final[Mapping[Rounding, str]] = {
    "quantized": "quantized numbers",
    "float16": "numbers of float16",
    "bfloat16": "numbers of bfloat16",
}
"""What a proof is limited by."""

LEGEND: Final = (
    "moved: channels that differ; largest: the largest change; relative: the largest change as "
    "a part of the old value, or as a multiple of it (x)"
)

_NAMES_SHOWN: Final = 10
_LEAST_NAME: Final = 8
"""Columns for a layer's name; a table that leaves fewer on the screen loses its last columns."""


def lines(difference: Difference, screen: Screen, everything: bool = False) -> Iterator[str]:
    """The lines that show a difference.

    Args:
        difference: what `diff` found.
        screen: what the lines are for.
        everything: also the layers and roles that are equal, and every name.
    """
    yield from _wrap(f"old  {source_line(difference.old)}", screen)
    yield from _wrap(f"new  {source_line(difference.new)}", screen)
    yield ""
    shown = difference.layers if everything else difference.different
    if shown:
        yield from _table(shown, screen, everything)
        yield ""
        for line in _wrap(LEGEND, screen):
            yield screen.style(line, "dim")
        yield ""
    for line in remarks(difference, everything):
        yield from _wrap(line, screen)
        yield ""
    yield from _wrap(difference.summary, screen)


def source_line(source: Source) -> str:
    """The path, the format and the checkpoint of a model, in one line."""
    parts = [source.format]
    if source.checkpoint is not None:
        parts.append(legible(source.checkpoint))
    if source.step is not None:
        parts.append(f"step {source.step}")
    return f"{legible(source.path)} ({', '.join(parts)})"


def remarks(difference: Difference, everything: bool) -> Iterator[str]:
    """How layers were matched, added, removed and renamed, and what their movement says."""
    renamed = difference.renamed
    if renamed:
        counts = Counter(layer.match for layer in difference.layers)
        matched = ", ".join(
            f"{counts[match]} {MATCHES[match]}" for match in MATCHES if counts[match]
        )
        yield f"layers matched: {matched}"
        pairs = [f"{legible(layer.old)} -> {legible(layer.new)}" for layer in renamed]
        yield f"renamed: {_listed(pairs, everything)}"
    if difference.removed:
        yield f"removed: {_listed(map(legible, difference.removed), everything)}"
    if difference.added:
        yield f"added: {_listed(map(legible, difference.added), everything)}"
    if difference.ties:
        yield (
            "tie (equal values several times, told apart by position alone): "
            f"{_listed(map(legible, difference.ties), everything)}"
        )
    yield from _verdicts(difference, everything)
    for remark, meaning in REMARKS.items():
        names = [legible(layer.new) for layer in difference.layers if layer.remark == remark]
        if names:
            yield f"{remark.replace('-', ' ')} ({meaning}): {_listed(names, everything)}"


def _verdicts(difference: Difference, everything: bool) -> Iterator[str]:
    """What is the same in effect, what is folded, why what differs does so."""
    names = [legible(layer.new) for layer in difference.layers if layer.verdict == "same-effect"]
    if names:
        yield f"{MEANINGS['same-effect']}: {_listed(names, everything)}"
    if difference.folded:
        yield f"{MEANINGS['folded']}: {_listed(map(folded_text, difference.folded), everything)}"
    ties = [legible(each.layer) for each in difference.folded if each.tie]
    if ties:
        meaning = "tie (proven by several weights, or by those of another layer)"
        yield f"{meaning}: {_listed(ties, everything)}"
    if difference.misfolded:
        misfolded = _listed(map(folded_text, difference.misfolded), everything)
        yield f"folded by another scale or shift: {misfolded}"
    causes: dict[str, list[str]] = {}
    named = [(layer.new, layer.causes) for layer in difference.different]
    named += [(each.layer, each.causes) for each in difference.misfolded]
    for name, found in named:
        for cause in found:
            causes.setdefault(cause.text, []).append(legible(name))
    for text, layers in causes.items():
        yield f"cause: {text}: {_listed(layers, everything)}"
    for side in ("old", "new"):
        count = sum(layer.told == side for layer in difference.layers)
        if count:
            layers_of = "1 layer" if count == 1 else f"{count} layers"
            yield (
                f"epsilon: only the {side} file tells that of {layers_of}; "
                "give --epsilon to compare it"
            )


def folded_text(layer: Folded) -> str:
    """Return a layer's name, and the weights of the other model that it went into."""
    bias = "" if layer.bias is None else f" + {_first_name(layer.bias)}"
    rounding = "" if layer.rounding is None else f" (as far as {ROUNDINGS[layer.rounding]} tell)"
    return f"{legible(layer.layer)} -> {_first_name(layer.into)}{bias}{rounding}"


def _first_name(key: str) -> str:
    """What a tensor is called; in TensorFlow Lite by all the operations that it comes from."""
    first, joined, _ = key.partition(";")
    return legible(first) + (";..." if joined else "")


def role_cells(role: RoleChange) -> tuple[str, str, str]:
    """How many channels moved, the largest change and the largest relative change."""
    if role.presence != "both":
        return f"only in {role.presence}", "", ""
    if role.largest is None:
        old, new = (list(shape or ()) for shape in role.shapes)
        return f"shape {old} -> {new}", "", ""
    if not role.moved:
        return "0", "", ""
    relative = "" if role.relative is None else f"{role.relative:.2%}"
    if role.relative is not None and role.relative >= 10:
        relative = f"x{compact(role.relative, 3)}"
    return f"{role.moved} of {role.channels}", compact(role.largest, 3), relative


def rows_of(layer: LayerChange, everything: bool) -> Iterator[tuple[str, str, str, str]]:
    """For each role and setting that changed: its title and its three cells."""
    shapes = {role.shapes for role in layer.roles}
    if len(shapes) == 1 and not any(role.comparable for role in layer.roles):
        # All of them are of another shape, or in one model alone.
        yield ("all", *role_cells(layer.roles[0]))
    else:
        yield from _rows_by_role(layer, everything)
    for setting in layer.settings:
        yield setting.setting, f"{setting.old:g} -> {setting.new:g}", "", ""


def _rows_by_role(layer: LayerChange, everything: bool) -> Iterator[tuple[str, str, str, str]]:
    for role in layer.roles:
        if everything or not role.equal:
            yield (role.role.replace("_", " "), *role_cells(role))


def _table(layers: Sequence[LayerChange], screen: Screen, everything: bool) -> Iterator[str]:
    names = [legible(layer.new) for layer in layers]
    entries = [list(rows_of(layer, everything)) for layer in layers]
    columns = [
        Column(title, [row[place] for rows in entries for row in rows], right=place > 0)
        for place, title in enumerate(("role", "moved", "largest", "relative"))
    ]
    if screen.width is not None:
        while len(columns) > 2 and total_width(columns) + 2 + _LEAST_NAME > screen.width:
            columns.pop()
        room = screen.width - total_width(columns) - 2
        names = shorten_all(names, max(_LEAST_NAME, room), screen.glyphs.ellipsis)
    left = [
        name if number == 0 else ""
        for name, rows in zip(names, entries, strict=True)
        for number, _ in enumerate(rows)
    ]
    yield from table([Column("layer", left), *columns], screen)


def _listed(names: Iterable[str], everything: bool) -> str:
    listed = list(names)
    shown = listed if everything else listed[:_NAMES_SHOWN]
    more = len(listed) - len(shown)
    return ", ".join(shown) + (f" and {more} more (--all)" if more else "")


def _wrap(line: str, screen: Screen) -> list[str]:
    if screen.width is None:
        return [line]
    return textwrap.wrap(line, screen.width, subsequent_indent="  ", break_on_hyphens=False)


_APPLIED_LEAST_NAME: Final = 8
_APPLIED_NAMES_SHOWN: Final = 10


def lines_applied(applied: Applied, screen: Screen) -> Iterator[str]:
    """The lines that show what `apply` has written."""
    yield from _applied_wrap(f"model   {source_line(applied.source)}", screen)
    if applied.values is not None:
        yield from _applied_wrap(f"values  {legible(applied.values)}", screen)
    yield from _applied_wrap(f"copy    {legible(applied.output)}", screen)
    yield ""
    moved = [change for change in applied.changes if change.moved]
    if moved:
        yield from _applied_table(moved, screen)
        yield ""
        legend = "moved: values that are others than before; largest: the largest change"
        for line in _applied_wrap(legend, screen):
            yield screen.style(line, "dim")
        yield ""
    yield from _applied_wrap(_paired(applied.changes), screen)
    yield from _applied_wrap(verdict(applied), screen)


def verdict(applied: Applied) -> str:
    """One line: how much was written, and what was not."""
    layers = len({change.layer for change in applied.changes})
    values = sum(change.channels for change in applied.changes)
    line = (
        f"{layers} layer{'s' * (layers != 1)} written, {applied.moved:,} of {values:,} values new"
    )
    left = len(applied.untouched)
    return line + (f"; {left} layer{'s' * (left != 1)} left as before" if left else "")


def _paired(changes: Sequence[Change]) -> str:
    """How the layers were found, where it was not by their names; else nothing."""
    found = {change.layer: change for change in changes}
    renamed = [change for change in found.values() if change.given_as != change.layer]
    if not renamed or all(change.match == "name" for change in renamed):
        return ""
    counts = Counter(change.match for change in found.values())
    matched = ", ".join(f"{counts[match]} {MATCHES[match]}" for match in MATCHES if counts[match])
    pairs = [
        f"{legible(one.given_as)} -> {legible(one.layer)}" for one in renamed[:_APPLIED_NAMES_SHOWN]
    ]
    more = ", ..." if len(renamed) > _APPLIED_NAMES_SHOWN else ""
    return f"layers matched {matched}: {', '.join(pairs)}{more}"


def _applied_table(changes: Sequence[Change], screen: Screen) -> Iterator[str]:
    columns = [
        Column("role", [change.role.replace("_", " ") for change in changes]),
        Column("moved", [f"{one.moved} of {one.channels}" for one in changes], right=True),
        Column("largest", [compact(change.largest, 3) for change in changes], right=True),
    ]
    names = {change.layer: legible(change.layer) for change in changes}
    if screen.width is not None:
        room = max(_APPLIED_LEAST_NAME, screen.width - total_width(columns) - 2)
        shortened = shorten_all(list(names.values()), room, screen.glyphs.ellipsis)
        names = dict(zip(names, shortened, strict=True))
    left = [names.pop(change.layer, "") for change in changes]
    yield from table([Column("layer", left), *columns], screen)


def _applied_wrap(line: str, screen: Screen) -> list[str]:
    if screen.width is None:
        return [line] if line else []
    return textwrap.wrap(line, screen.width, subsequent_indent="  ", break_on_hyphens=False)
