"""A difference as JSON: every layer, every role, every number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Any

from bnstat.compare.causes import Cause
from bnstat.compare.diff import Difference, LayerChange, RoleChange
from bnstat.compare.folding import Folded
from bnstat.output.documents import common as documents


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
    documents.dump(document, file)


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
