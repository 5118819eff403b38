"""A difference of two models, and the values that `apply` wrote: as text, Markdown and JSON."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter
from pathlib import PureWindowsPath
from typing import TYPE_CHECKING, Any, Final

from bnstat.compare.alignment import Match
from bnstat.compare.diff import MEANINGS, REMARKS, Difference, RoleChange
from bnstat.compare.folding import Folded, Rounding
from bnstat.model import Source
from bnstat.output.documents import escaped, json_document, members, source
from bnstat.output.numbers import compact, counted, factor
from bnstat.output.terminal.screen import Screen, legible
from bnstat.output.terminal.table import GAP, Column, layer_table, total_width, wrapped

if TYPE_CHECKING:
    from bnstat.mending.pairing import Applied

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
"""Rounding that limits the precision of a folding proof -> text."""

TITLES: Final = ("role", "moved", "largest", "relative")
LEGEND: Final = (
    "moved: channels that differ; largest: the largest change; relative: the largest change as "
    "a part of the old value, or as a multiple of it (x)"
)

_NAMES_SHOWN: Final = 10
_LEAST_NAME: Final = 8
"""The minimum width of a layer's name. If less is left, the table loses its last columns."""


def text_lines(difference: Difference, screen: Screen, everything: bool = False) -> Iterator[str]:
    """Yield the lines that show a difference; `everything` adds equal layers and complete lists."""
    yield from wrapped(f"old  {source_line(difference.old)}", screen)
    yield from wrapped(f"new  {source_line(difference.new)}", screen)
    yield ""
    if rows := _rows(difference, everything):
        columns = _columns(rows)
        if screen.width is not None:
            room = screen.width - len(GAP) - _LEAST_NAME
            while len(columns) > 2 and total_width(columns) > room:
                columns.pop()
        yield from layer_table([row[0] for row in rows], columns, [LEGEND], screen, _LEAST_NAME)
        yield ""
    for line in remarks(difference, everything):
        yield from wrapped(line, screen)
        yield ""
    yield from wrapped(difference.summary, screen)


def source_line(source: Source) -> str:
    """Return the path, the format and the checkpoint of a model."""
    step = None if source.step is None else f"step {source.step}"
    parts = (source.format, source.checkpoint, step)
    return f"{legible(source.path)} ({', '.join(legible(part) for part in parts if part)})"


def remarks(difference: Difference, everything: bool) -> Iterator[str]:
    """Yield lines on renamed, removed, added and folded layers, and on each cause of a difference.

    Long lists of names are cut unless `everything` is True.
    """
    listed = partial(_listed, everything=everything)
    if renamed := difference.renamed:
        yield f"layers matched: {_matches(layer.match for layer in difference.layers)}"
    pairs = [f"{legible(layer.old)} -> {legible(layer.new)}" for layer in renamed]
    yield from listed("renamed", pairs)
    yield from listed("removed", map(legible, difference.removed))
    yield from listed("added", map(legible, difference.added))
    ties = "tie (several layers have equal values, and are paired by position)"
    yield from listed(ties, map(legible, difference.ties))
    same = [legible(layer.new) for layer in difference.layers if layer.verdict == "same-effect"]
    yield from listed(MEANINGS["same-effect"], same)
    yield from listed(MEANINGS["folded"], map(folded_text, difference.folded))
    ties = "tie (proven by several weights, or by the weights of another layer)"
    yield from listed(ties, [legible(each.layer) for each in difference.folded if each.tie])
    misfolded = map(folded_text, difference.misfolded)
    yield from listed("folded by another scale or shift", misfolded)
    causes: dict[str, list[str]] = defaultdict(list)
    with_causes = [(layer.new, layer.causes) for layer in difference.different]
    with_causes += [(folded.layer, folded.causes) for folded in difference.misfolded]
    for name, layer_causes in with_causes:
        for cause in layer_causes:
            causes[cause.text].append(legible(name))
    for text, names in causes.items():
        yield from listed(f"cause: {text}", names)
    yield from _untested(difference, everything)
    for remark, meaning in REMARKS.items():
        names = [legible(layer.new) for layer in difference.layers if layer.remark == remark]
        yield from listed(f"{remark.replace('-', ' ')} ({meaning})", names)


def _listed(title: str, names: Iterable[str], everything: bool) -> Iterator[str]:
    """Yield a line with a title and names: all names if `everything` is True, else at most 10."""
    names = list(names)
    visible = names if everything else names[:_NAMES_SHOWN]
    more = len(names) - len(visible)
    if names:
        yield f"{title}: {', '.join(visible)}" + (f" and {more} more (--all)" if more else "")


def _matches(matches: Iterable[Match]) -> str:
    counts = Counter(matches)
    return ", ".join(f"{counts[match]} {MATCHES[match]}" for match in MATCHES if counts[match])


def _untested(difference: Difference, everything: bool) -> Iterator[str]:
    """Yield lines about epsilons that only one file stores, and layers not found folded."""
    sources = difference.old, difference.new
    # PureWindowsPath splits at both separators, / and \.
    names = [legible(PureWindowsPath(source.path).name) for source in sources]
    if names[0] == names[1] or not all(names):
        names = ["the old file", "the new file"]
    for own, other in ((0, 1), (1, 0)):
        pairs = [(layer.epsilons[own], layer.epsilons[other]) for layer in difference.layers]
        alone = [epsilon for epsilon, lacking in pairs if lacking is None]
        if stored := {f"{epsilon:g}" for epsilon in alone if epsilon is not None}:
            libraries = _default_epsilons(sources[other])
            defaults = ", ".join(f"{name}'s default is {value}" for name, value in libraries)
            yield (
                f"epsilon: {names[own]} has {' and '.join(sorted(stored))}; {names[other]} stores "
                f"none, and {defaults}: pass the epsilon of your code by --epsilon"
            )
    for own, side in enumerate(("old", "new")):
        unfolded = [each for each in difference.unfolded if each.side == side]
        unmatched = [legible(each.layer) for each in unfolded if each.reason == "no-match"]
        title = f"not found folded (no weights of {names[1 - own]} match)"
        yield from _listed(title, unmatched, everything)
        if len(unmatched) < len(unfolded):
            libraries = _default_epsilons(sources[own])
            defaults = " or ".join(f"{value} ({name}'s default)" for name, value in libraries)
            problem = f"{names[own]} stores no epsilon, so folding cannot be tested"
            yield f"{problem}: pass --epsilon {defaults}"


def _default_epsilons(source: Source) -> Sequence[tuple[str, str]]:
    """Return (library, default epsilon) for each library that may have written the file."""
    defaults = ("PyTorch", "1e-5"), ("Keras", "0.001")
    if source.format == "pytorch":
        return defaults[:1]
    return defaults[1:] if source.format.startswith(("keras", "tf", "saved-model")) else defaults


def folded_text(layer: Folded) -> str:
    """Return `LAYER -> WEIGHTS`, the names of a layer and of the weights it is folded into."""
    bias = "" if layer.bias is None else f" + {_first_name(layer.bias)}"
    rounding = "" if layer.rounding is None else f" (as far as {ROUNDINGS[layer.rounding]} show)"
    return f"{legible(layer.layer)} -> {_first_name(layer.into)}{bias}{rounding}"


def _first_name(key: str) -> str:
    """Shorten a key of TensorFlow Lite, which joins names: `a;b` becomes `a;...`."""
    first, joined, _ = key.partition(";")
    return legible(first) + (";..." if joined else "")


def role_cells(role: RoleChange) -> tuple[str, str, str]:
    """Return three texts: changed channels (or shapes), largest change, largest relative change."""
    if role.presence != "both":
        return f"only in {role.presence}", "", ""
    if role.largest is None:
        old, new = (list(shape or ()) for shape in role.shapes)
        return f"shape {old} -> {new}", "", ""
    if not role.moved:
        return "0", "", ""
    relative = "" if role.relative is None else factor(role.relative)
    return f"{role.moved} of {role.channels}", compact(role.largest, 3), relative


def _rows(difference: Difference, everything: bool) -> list[Sequence[str]]:
    """Return rows: the layer's name, then a cell per title. `everything` adds equal roles."""
    rows: list[Sequence[str]] = []
    for layer in difference.layers if everything else difference.different:
        if len({role.shapes for role in layer.roles}) == 1 and not any(
            role.comparable for role in layer.roles
        ):
            # All roles have another shape, or only one model has the layer.
            rows.append((layer.new, "all", *role_cells(layer.roles[0])))
        else:
            roles = [role for role in layer.roles if everything or not role.equal]
            rows += [(layer.new, role.role.replace("_", " "), *role_cells(role)) for role in roles]
        for setting in layer.settings:
            change = f"{setting.old:g} -> {setting.new:g}"
            rows.append((layer.new, setting.setting, change, "", ""))
    return rows


def _columns(rows: Sequence[Sequence[str]], titles: Sequence[str] = TITLES) -> list[Column]:
    """Return a column per title. The layer's name, which starts each row, gets no column."""
    return [
        Column(title, [row[number] for row in rows], right=number > 1)
        for number, title in enumerate(titles, 1)
    ]


_OF_ROLES: Final = (
    *("presence", "shapes", "dtypes", "equal", "channels", "moved", "largest", "relative"),
)


def json_lines(difference: Difference) -> Iterator[str]:
    """Yield the lines of a difference as JSON."""
    folded = {"folded": difference.folded, "misfolded": difference.misfolded}
    return json_document(
        old=source(difference.old),
        new=source(difference.new),
        **members(difference, "rtol", "atol", "tolerance", "equal", "equivalent", "verdict"),
        **members(difference, "summary", "counts", "removed", "added"),
        **{
            name: [
                {
                    "verdict": "different" if layer.causes else "folded",
                    **members(layer, "layer", "side", "weights", "into", "bias", "rounding", "tie"),
                    "causes": [members(cause, "kind", "text") for cause in layer.causes],
                }
                for layer in layers
            ]
            for name, layers in folded.items()
        },
        ties=difference.ties,
        layers=[
            {
                **members(layer, "old", "new", "match", "equal", "remark", "verdict"),
                "causes": [members(cause, "kind", "text") for cause in layer.causes],
                "epsilon_told": layer.epsilon_presence,
                "roles": {role.role: members(role, *_OF_ROLES) for role in layer.roles},
                "settings": {each.setting: members(each, "old", "new") for each in layer.settings},
            }
            for layer in difference.layers
        ],
    )


def markdown_lines(difference: Difference, everything: bool = False) -> Iterator[str]:
    """Yield a difference as Markdown; `everything` adds equal layers and complete lists."""
    yield f"**{escaped(difference.summary)}**"
    yield ""
    yield f"- old: {escaped(source_line(difference.old))}"
    yield f"- new: {escaped(source_line(difference.new))}"
    for line in remarks(difference, everything):
        yield f"- {escaped(line)}"
    if rows := _rows(difference, everything):
        yield ""
        yield f"| layer | {' | '.join(TITLES)} |"
        yield "| --- | --- | ---: | ---: | ---: |"
        for name, *cells in rows:
            yield f"| {' | '.join(map(escaped, (legible(name), *cells)))} |"
        yield ""
        yield escaped(LEGEND)


def applied_text(applied: Applied, screen: Screen) -> Iterator[str]:
    """Yield the lines that show the values that `apply` wrote."""
    yield from wrapped(f"model   {source_line(applied.source)}", screen)
    if applied.values is not None:
        yield from wrapped(f"values  {legible(applied.values)}", screen)
    yield from wrapped(f"copy    {legible(applied.output)}", screen)
    yield ""
    rows = []
    for change in filter(attrgetter("moved"), applied.changes):
        role, moved = change.role.replace("_", " "), f"{change.moved} of {change.channels}"
        rows.append((change.layer, role, moved, compact(change.largest, 3)))
    if rows:
        columns = _columns(rows, TITLES[:3])
        texts = ["moved: values that changed; largest: the largest change"]
        yield from layer_table([row[0] for row in rows], columns, texts, screen)
        yield ""
    by_layer = {change.layer: change for change in applied.changes}
    renamed = [change for change in by_layer.values() if change.given_as != change.layer]
    if any(change.match != "name" for change in renamed):
        pairs = [f"{legible(change.given_as)} -> {legible(change.layer)}" for change in renamed]
        if len(pairs) > _NAMES_SHOWN:
            pairs[_NAMES_SHOWN:] = ["..."]
        matches = _matches(change.match for change in by_layer.values())
        yield from wrapped(f"layers matched {matches}: {', '.join(pairs)}", screen)
    values = sum(change.channels for change in applied.changes)
    line = f"{counted(len(by_layer), 'layer')} written, {applied.moved:,} of {values:,} values new"
    if applied.untouched:
        line += f"; {counted(len(applied.untouched), 'layer')} unchanged"
    yield from wrapped(line, screen)


def applied_json(applied: Applied) -> Iterator[str]:
    """Yield the lines of the result of `apply` as JSON."""
    layers: dict[str, dict[str, Any]] = {}
    for change in applied.changes:
        layer = {"name": change.layer, **members(change, "given_as", "match"), "roles": {}}
        roles = layers.setdefault(change.layer, layer)["roles"]
        numbers = members(change, "channels", "moved", "largest")
        roles[change.role] = {"variable": change.key, **numbers}
    return json_document(
        source=source(applied.source),
        **members(applied, "values", "output", "moved"),
        untouched=list(applied.untouched),
        layers=list(layers.values()),
    )
