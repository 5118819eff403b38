"""Text about a difference of two models, and about the values that `apply` wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PureWindowsPath
from typing import TYPE_CHECKING, Final

from bnstat.compare.alignment import Match
from bnstat.compare.diff import MEANINGS, REMARKS, Difference, LayerChange, RoleChange
from bnstat.compare.folding import Folded, Rounding
from bnstat.model import Source
from bnstat.output.numbers import compact
from bnstat.output.terminal.screen import Screen, legible
from bnstat.output.terminal.table import GAP, Column, layer_column, table, total_width, wrapped

if TYPE_CHECKING:
    from bnstat.mending.pairing import Applied, Change

MATCHES: Final[Mapping[Match, str]] = {
    "name": "by name",
    "suffix": "by the end of the name",
    "position": "by position and shape",
    "values": "by values",
    "effect": "by scale and shift",
}
"""Pairing criterion -> text."""

ROUNDINGS: Final[Mapping[Rounding, str]] = {
    "quantized": "quantized numbers",
    "float16": "numbers of float16",
    "bfloat16": "numbers of bfloat16",
}
"""Rounding that limits a proof -> text."""

_KERAS_EPSILON: Final = ("Keras", "0.001")
_PYTORCH_EPSILON: Final = ("PyTorch", "1e-5")

LEGEND: Final = (
    "moved: channels that differ; largest: the largest change; relative: the largest change as "
    "a part of the old value, or as a multiple of it (x)"
)

_NAMES_SHOWN: Final = 10
_LEAST_NAME: Final = 8
"""The minimum width of a layer's name. If less is left, the table loses its last columns."""


def lines(difference: Difference, screen: Screen, everything: bool = False) -> Iterator[str]:
    """Yield the lines that show a difference.

    Args:
        difference: the difference.
        screen: the screen.
        everything: True to include layers and roles that are equal, and all names.
    """
    yield from wrapped(f"old  {source_line(difference.old)}", screen)
    yield from wrapped(f"new  {source_line(difference.new)}", screen)
    yield ""
    layers = difference.layers if everything else difference.different
    if layers:
        yield from _table(layers, screen, everything)
        yield ""
        for line in wrapped(LEGEND, screen):
            yield screen.style(line, "dim")
        yield ""
    for line in remarks(difference, everything):
        yield from wrapped(line, screen)
        yield ""
    yield from wrapped(difference.summary, screen)


def source_line(source: Source) -> str:
    """Return the path, the format and the checkpoint of a model."""
    parts = [source.format]
    if source.checkpoint is not None:
        parts.append(legible(source.checkpoint))
    if source.step is not None:
        parts.append(f"step {source.step}")
    return f"{legible(source.path)} ({', '.join(parts)})"


def remarks(difference: Difference, everything: bool) -> Iterator[str]:
    """Yield lines on paired, added, removed and renamed layers, and the meaning of changes."""
    renamed = difference.renamed
    if renamed:
        yield f"layers matched: {_matches(layer.match for layer in difference.layers)}"
        pairs = [f"{legible(layer.old)} -> {legible(layer.new)}" for layer in renamed]
        yield f"renamed: {_listed(pairs, everything)}"
    if difference.removed:
        yield f"removed: {_listed(map(legible, difference.removed), everything)}"
    if difference.added:
        yield f"added: {_listed(map(legible, difference.added), everything)}"
    if difference.ties:
        yield (
            "tie (several layers have equal values, and are paired by position): "
            f"{_listed(map(legible, difference.ties), everything)}"
        )
    yield from _verdicts(difference, everything)
    for remark, meaning in REMARKS.items():
        names = [legible(layer.new) for layer in difference.layers if layer.remark == remark]
        if names:
            yield f"{remark.replace('-', ' ')} ({meaning}): {_listed(names, everything)}"


def _matches(matches: Iterable[Match]) -> str:
    counts = Counter(matches)
    return ", ".join(f"{counts[match]} {MATCHES[match]}" for match in MATCHES if counts[match])


def _verdicts(difference: Difference, everything: bool) -> Iterator[str]:
    """Yield lines on layers with equal effect, folded layers, and causes of differences."""
    names = [legible(layer.new) for layer in difference.layers if layer.verdict == "same-effect"]
    if names:
        yield f"{MEANINGS['same-effect']}: {_listed(names, everything)}"
    if difference.folded:
        yield f"{MEANINGS['folded']}: {_listed(map(folded_text, difference.folded), everything)}"
    ties = [legible(folded.layer) for folded in difference.folded if folded.tie]
    if ties:
        meaning = "tie (proven by several weights, or by the weights of another layer)"
        yield f"{meaning}: {_listed(ties, everything)}"
    if difference.misfolded:
        misfolded = _listed(map(folded_text, difference.misfolded), everything)
        yield f"folded by another scale or shift: {misfolded}"
    causes: dict[str, list[str]] = {}
    named = [(layer.new, layer.causes) for layer in difference.different]
    named += [(folded.layer, folded.causes) for folded in difference.misfolded]
    for name, layer_causes in named:
        for cause in layer_causes:
            causes.setdefault(cause.text, []).append(legible(name))
    for text, layers in causes.items():
        yield f"cause: {text}: {_listed(layers, everything)}"
    yield from _missing_epsilons(difference)
    yield from _unproven(difference, everything)


def _missing_epsilons(difference: Difference) -> Iterator[str]:
    """Yield a line for each file without the epsilon that the other file stores."""
    names = _file_names(difference)
    sources = difference.old, difference.new
    for having, lacking in ((0, 1), (1, 0)):
        pairs = [layer.epsilons for layer in difference.layers]
        stored = {
            f"{pair[having]:g}"
            for pair in pairs
            if pair[having] is not None and pair[lacking] is None
        }
        if stored:
            defaults = ", ".join(
                f"{library}'s default is {value}"
                for library, value in _default_epsilons(sources[lacking])
            )
            yield (
                f"epsilon: {names[having]} has {' and '.join(sorted(stored))}; {names[lacking]} "
                f"stores none, and {defaults}: pass the epsilon of your code by --epsilon"
            )


def _unproven(difference: Difference, everything: bool) -> Iterator[str]:
    """Yield lines about layers that may be folded into the other model, without a proof."""
    names = _file_names(difference)
    sources = difference.old, difference.new
    for own, side in enumerate(("old", "new")):
        unfolded = [each for each in difference.unfolded if each.side == side]
        unmatched = [legible(each.layer) for each in unfolded if each.reason == "no-match"]
        if unmatched:
            meaning = f"no weights of {names[1 - own]} match"
            yield f"not found folded ({meaning}): {_listed(unmatched, everything)}"
        if len(unmatched) < len(unfolded):
            defaults = " or ".join(
                f"{value} ({library}'s default)"
                for library, value in _default_epsilons(sources[own])
            )
            yield (
                f"{names[own]} stores no epsilon, so folding cannot be tested: "
                f"pass --epsilon {defaults}"
            )


def _file_names(difference: Difference) -> tuple[str, str]:
    """Return the last parts of the two paths, or other names if they are equal."""
    # The class knows the separators of every system.
    old, new = (
        legible(PureWindowsPath(source.path).name) for source in (difference.old, difference.new)
    )
    return (old, new) if old and new and old != new else ("the old file", "the new file")


def _default_epsilons(source: Source) -> Sequence[tuple[str, str]]:
    """Return each library that may have written a file, and its default epsilon."""
    if source.format == "pytorch":
        return [_PYTORCH_EPSILON]
    if source.format.startswith(("keras", "tf", "saved-model")):
        return [_KERAS_EPSILON]
    return [_PYTORCH_EPSILON, _KERAS_EPSILON]


def folded_text(layer: Folded) -> str:
    """Return a layer's name, and the other model's weights that contain the folded layer."""
    bias = "" if layer.bias is None else f" + {_first_name(layer.bias)}"
    rounding = "" if layer.rounding is None else f" (as far as {ROUNDINGS[layer.rounding]} show)"
    return f"{legible(layer.layer)} -> {_first_name(layer.into)}{bias}{rounding}"


def _first_name(key: str) -> str:
    """Return the first of the joined names that a TensorFlow Lite tensor may have."""
    first, joined, _ = key.partition(";")
    return legible(first) + (";..." if joined else "")


def role_cells(role: RoleChange) -> tuple[str, str, str]:
    """Return the number of changed channels, and the largest absolute and relative change."""
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
    """Yield the title and the three cells of each role and setting that changed."""
    shapes = {role.shapes for role in layer.roles}
    if len(shapes) == 1 and not any(role.comparable for role in layer.roles):
        # All roles have another shape, or only one model has the layer.
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
    rows = [list(rows_of(layer, everything)) for layer in layers]
    cells = [row for layer_rows in rows for row in layer_rows]
    columns = [
        Column(title, [row[number] for row in cells], right=number > 0)
        for number, title in enumerate(("role", "moved", "largest", "relative"))
    ]
    if screen.width is not None:
        while len(columns) > 2 and total_width(columns) + len(GAP) + _LEAST_NAME > screen.width:
            columns.pop()
    names = [legible(layer.new) for layer in layers]
    first = layer_column(names, columns, screen, _LEAST_NAME, rows=list(map(len, rows)))
    yield from table([first, *columns], screen)


def _listed(names: Iterable[str], everything: bool) -> str:
    listed = list(names)
    visible = listed if everything else listed[:_NAMES_SHOWN]
    more = len(listed) - len(visible)
    return ", ".join(visible) + (f" and {more} more (--all)" if more else "")


def lines_applied(applied: Applied, screen: Screen) -> Iterator[str]:
    """Yield the lines that show the values that `apply` wrote."""
    yield from wrapped(f"model   {source_line(applied.source)}", screen)
    if applied.values is not None:
        yield from wrapped(f"values  {legible(applied.values)}", screen)
    yield from wrapped(f"copy    {legible(applied.output)}", screen)
    yield ""
    moved = [change for change in applied.changes if change.moved]
    if moved:
        yield from _applied_table(moved, screen)
        yield ""
        legend = "moved: values that changed; largest: the largest change"
        for line in wrapped(legend, screen):
            yield screen.style(line, "dim")
        yield ""
    if pairs := _paired(applied.changes):
        yield from wrapped(pairs, screen)
    layers = len({change.layer for change in applied.changes})
    values = sum(change.channels for change in applied.changes)
    line = (
        f"{layers} layer{'s' * (layers != 1)} written, {applied.moved:,} of {values:,} values new"
    )
    if untouched := len(applied.untouched):
        line += f"; {untouched} layer{'s' * (untouched != 1)} unchanged"
    yield from wrapped(line, screen)


def _paired(changes: Sequence[Change]) -> str:
    """Return a text on the pairing of layers; empty if all were paired by name."""
    by_layer = {change.layer: change for change in changes}
    renamed = [change for change in by_layer.values() if change.given_as != change.layer]
    if all(change.match == "name" for change in renamed):
        return ""
    pairs = [
        f"{legible(change.given_as)} -> {legible(change.layer)}"
        for change in renamed[:_NAMES_SHOWN]
    ]
    more = ", ..." if len(renamed) > _NAMES_SHOWN else ""
    matches = _matches(change.match for change in by_layer.values())
    return f"layers matched {matches}: {', '.join(pairs)}{more}"


def _applied_table(changes: Sequence[Change], screen: Screen) -> Iterator[str]:
    columns = [
        Column("role", [change.role.replace("_", " ") for change in changes]),
        Column("moved", [f"{change.moved} of {change.channels}" for change in changes], right=True),
        Column("largest", [compact(change.largest, 3) for change in changes], right=True),
    ]
    rows = Counter(change.layer for change in changes)
    names = list(map(legible, rows))
    first = layer_column(names, columns, screen, rows=list(rows.values()))
    yield from table([first, *columns], screen)
