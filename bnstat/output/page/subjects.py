"""The pages of one model and of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from bnstat.checks import Finding
from bnstat.compare import REMARKS, Difference, Folded, LayerChange, RoleChange
from bnstat.compare.verdicts import MEANINGS
from bnstat.model import ROLES, Model, printable
from bnstat.output.documents.drift_json import Measured
from bnstat.output.page.numbers import Packed
from bnstat.output.page.page import Page, facts_of, grouped, judged
from bnstat.output.page.rows import marks, row
from bnstat.output.terminal.differences import folded_text
from bnstat.output.terminal.overview import footnotes


def of_model(
    model: Model, findings: Sequence[Finding], measured: Mapping[str, Measured] | None = None
) -> Page:
    """The page of one model.

    Args:
        model: the model.
        findings: what was found in it.
        measured: layer -> the statistics of data, as `bnstat drift --json` tells them.
    """
    packed = Packed()
    rows = [row([layer], packed) for layer in model.layers]
    places = {layer.name: place for place, layer in enumerate(model.layers)}
    notes = [*model.notes, *footnotes(model)]
    for name, data in (measured or {}).items():
        if name in places and data.mean.size == model[name].channels:
            rows[places[name]]["measured"] = {
                "state": data.state,
                "divergence": packed.add(data.divergence),
                "mean": packed.add(data.mean),
                "variance": packed.add(data.variance),
            }
        else:
            notes.append(f"{name}: measured on data, but no such layer is in the model")
    verdict, tone = judged(model, findings)
    return Page(
        kind="model",
        title=model.source.path,
        facts=facts_of(model),
        verdict=verdict,
        tone=tone,
        groups=grouped(findings, places),
        notes=notes,
        data={
            "kind": "model",
            "title": printable(model.source.path),
            "frames": [{"name": "stored"}],
            "rows": rows,
            "marks": marks(findings, places),
            "measured": measured is not None,
        },
        numbers=packed,
    )


def of_difference(
    difference: Difference, old: Model, new: Model, findings: Sequence[Finding]
) -> Page:
    """The page of two models.

    Args:
        difference: how they differ.
        old: the one.
        new: the other.
        findings: what was found in the new one.
    """
    packed = Packed()
    rows: list[dict[str, Any]] = []
    places: dict[str, int] = {}
    for change in difference.layers:
        places[change.new] = len(rows)
        compared = row([old[change.old], new[change.new]], packed)
        rows.append({**compared, "change": _change(change)})
    folded = {(each.side, each.layer): each for each in difference.folded}
    wrong = {(each.side, each.layer): each for each in difference.misfolded}
    alone: list[tuple[Literal["old", "new"], str]] = [
        *folded,
        *(("old", name) for name in difference.removed),
        *(("new", name) for name in difference.added),
    ]
    for side, name in alone:
        if side == "new":
            places[name] = len(rows)
        frames = [old[name], None] if side == "old" else [None, new[name]]
        rows.append(
            {
                **row(frames, packed),
                "only": side,
                "folded": _folded(folded.get((side, name))),
                "misfolded": _folded(wrong.get((side, name))),
            }
        )
    before, after = facts_of(old), facts_of(new)
    told = {label: (before.get(label, "-"), after.get(label, "-")) for label in before | after}
    facts = {label: a if a == b else f"{a} → {b}" for label, (a, b) in told.items()}
    return Page(
        kind="difference",
        title=f"{old.source.path} → {new.source.path}",
        facts=facts,
        verdict=difference.summary,
        tone="good" if difference.equivalent else "info",
        groups=grouped(findings, places),
        notes=[*new.notes, *footnotes(new)],
        data={
            "kind": "difference",
            "title": printable(f"{old.source.path} to {new.source.path}"),
            "frames": [{"name": "old"}, {"name": "new"}],
            "rows": rows,
            "marks": marks(findings, places),
            "measured": False,
        },
        numbers=packed,
    )


def _change(change: LayerChange) -> dict[str, Any]:
    by_role = {each.role: each for each in change.roles}
    return {
        "was": None if change.old == change.new else printable(change.old),
        "match": change.match,
        "verdict": change.verdict,
        "meaning": MEANINGS[change.verdict],
        "causes": [printable(cause.text) for cause in change.causes],
        "remark": None if change.remark is None else REMARKS[change.remark],
        "settings": [[each.setting, each.old, each.new] for each in change.settings],
        "roles": [_role(by_role.get(role)) for role in ROLES],
    }


def _folded(layer: Folded | None) -> str | None:
    """What a layer was folded into, with the causes where it was folded wrongly."""
    if layer is None:
        return None
    return "; ".join([folded_text(layer), *(printable(cause.text) for cause in layer.causes)])


def _role(change: RoleChange | None) -> list[float | None] | None:
    """Channels that moved, the largest change, the largest relative change."""
    return None if change is None else [change.moved, change.largest, change.relative]
