"""Differences as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO, Any

from bnstat.compare.causes import Cause
from bnstat.compare.diff import Difference, LayerChange
from bnstat.compare.folding import Folded
from bnstat.output import results
from bnstat.output.results import members
from bnstat.output.terminal.differences import LEGEND, remarks, rows_of, source_line
from bnstat.output.terminal.screen import legible


def dump(difference: Difference, file: IO[str]) -> None:
    """Write a difference as JSON."""
    document = {
        "schema": 1,
        "old": results.source(difference.old),
        "new": results.source(difference.new),
        **members(difference, "rtol", "atol", "tolerance", "equal", "equivalent", "verdict"),
        **members(difference, "summary", "counts", "removed", "added"),
        "folded": [_folded(layer) for layer in difference.folded],
        "misfolded": [_folded(layer) for layer in difference.misfolded],
        "ties": difference.ties,
        "layers": [_layer(layer) for layer in difference.layers],
    }
    results.dump_common(document, file)


def _folded(layer: Folded) -> dict[str, Any]:
    return {
        "verdict": "different" if layer.causes else "folded",
        **members(layer, "layer", "side", "weights", "into", "bias", "rounding", "tie"),
        "causes": _causes(layer.causes),
    }


def _causes(causes: Sequence[Cause]) -> list[dict[str, str]]:
    return [{"kind": cause.kind, "text": cause.text} for cause in causes]


def _layer(layer: LayerChange) -> dict[str, Any]:
    numbers = ("equal", "channels", "moved", "largest", "relative")
    return {
        **members(layer, "old", "new", "match", "equal", "remark", "verdict"),
        "causes": _causes(layer.causes),
        "epsilon_told": layer.epsilon_presence,
        "roles": {
            role.role: members(role, "presence", "shapes", "dtypes", *numbers)
            for role in layer.roles
        },
        "settings": {setting.setting: members(setting, "old", "new") for setting in layer.settings},
    }


def lines(difference: Difference, everything: bool = False) -> Iterator[str]:
    """Yield the lines of a Markdown document; see `terminal.differences.lines`."""
    yield f"**{escaped(difference.summary)}**"
    yield ""
    yield f"- old: {escaped(source_line(difference.old))}"
    yield f"- new: {escaped(source_line(difference.new))}"
    for line in remarks(difference, everything):
        yield f"- {escaped(line)}"
    shown = difference.layers if everything else difference.different
    if shown:
        yield ""
        yield "| layer | role | moved | largest | relative |"
        yield "| --- | --- | ---: | ---: | ---: |"
        for layer in shown:
            for row in rows_of(layer, everything):
                yield f"| {' | '.join(escaped(cell) for cell in (legible(layer.new), *row))} |"
        yield ""
        yield escaped(LEGEND)


def escaped(text: str) -> str:
    """Return text with all markup of Markdown and HTML escaped."""
    marked = "".join(f"\\{char}" if char in "\\`*_[]|~" else char for char in text)
    return marked.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
