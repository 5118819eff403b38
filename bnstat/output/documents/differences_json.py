"""A difference as JSON: every layer, every role, every number."""

from __future__ import annotations

from typing import IO, Any

from bnstat.compare.diff import Difference, LayerChange, RoleChange
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
        "removed": difference.removed,
        "added": difference.added,
        "folded": [
            {
                "verdict": "folded",
                "layer": each.layer,
                "side": each.side,
                "weights": each.weights,
                "into": each.into,
                "bias": each.bias,
                "rounding": each.rounding,
                "tie": each.tie,
            }
            for each in difference.folded
        ],
        "ties": difference.ties,
        "layers": [_layer(layer) for layer in difference.layers],
    }
    documents.dump(document, file)


def _layer(layer: LayerChange) -> dict[str, Any]:
    return {
        "old": layer.old,
        "new": layer.new,
        "match": layer.match,
        "equal": layer.equal,
        "remark": layer.remark,
        "verdict": layer.verdict,
        "causes": [{"kind": cause.kind, "text": cause.text} for cause in layer.causes],
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
