"""A difference as JSON: every layer, every role, every number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO, Any

from bnstat.compare.causes import Cause
from bnstat.compare.diff import Difference, LayerChange, RoleChange
from bnstat.compare.folding import Folded
from bnstat.output import results as documents
from bnstat.output.terminal.differences import LEGEND, remarks, rows_of, source_line
from bnstat.output.terminal.screen import legible


def dump(difference: Difference, file: IO[str]) -> None:
    """Write a difference as one object."""
    document = {
        "schema": 1,
        "old": documents.source(difference.old),
        "new": documents.source(difference.new),
        "rtol": difference.rtol,
        "atol": difference.atol,
        "tolerance": difference.tolerance,
        "equal": difference.equal,
        "equivalent": difference.equivalent,
        "verdict": difference.verdict,
        "summary": difference.summary,
        "counts": difference.counts,
        "removed": difference.removed,
        "added": difference.added,
        "folded": [_folded(each) for each in difference.folded],
        "misfolded": [_folded(each) for each in difference.misfolded],
        "ties": difference.ties,
        "layers": [_layer(layer) for layer in difference.layers],
    }
    documents.dump_common(document, file)


def _folded(layer: Folded) -> dict[str, Any]:
    return {
        "verdict": "different" if layer.causes else "folded",
        "layer": layer.layer,
        "side": layer.side,
        "weights": layer.weights,
        "into": layer.into,
        "bias": layer.bias,
        "rounding": layer.rounding,
        "tie": layer.tie,
        "causes": _causes(layer.causes),
    }


def _causes(causes: Sequence[Cause]) -> list[dict[str, str]]:
    return [{"kind": cause.kind, "text": cause.text} for cause in causes]


def _layer(layer: LayerChange) -> dict[str, Any]:
    return {
        "old": layer.old,
        "new": layer.new,
        "match": layer.match,
        "equal": layer.equal,
        "remark": layer.remark,
        "verdict": layer.verdict,
        "causes": _causes(layer.causes),
        "epsilon_told": layer.told,
        "roles": {role.role: _role(role) for role in layer.roles},
        "settings": {
            setting.setting: {"old": setting.old, "new": setting.new} for setting in layer.settings
        },
    }


def _role(role: RoleChange) -> dict[str, Any]:
    return {
        "presence": role.presence,
        "shapes": role.shapes,
        "dtypes": role.dtypes,
        "equal": role.equal,
        "channels": role.channels,
        "moved": role.moved,
        "largest": role.largest,
        "relative": role.relative,
    }


def lines(difference: Difference, everything: bool = False) -> Iterator[str]:
    """The lines of a document; the arguments are those of `terminal.differences.lines`."""
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
    """`text` with everything escaped that Markdown or HTML would take for markup."""
    marked = "".join(f"\\{char}" if char in "\\`*_[]|~" else char for char in text)
    return marked.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
