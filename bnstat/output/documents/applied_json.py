"""What was written into a copy, as JSON."""

from __future__ import annotations

from typing import IO, Any

from bnstat.mending.applied import Applied, Change
from bnstat.output.documents import common as documents


def dump(applied: Applied, file: IO[str]) -> None:
    """Write what `apply` has written as one object."""
    layers: dict[str, dict[str, Any]] = {}
    for change in applied.changes:
        layer = {"name": change.layer, "given_as": change.given_as, "match": change.match}
        roles = layers.setdefault(change.layer, {**layer, "roles": {}})["roles"]
        roles[change.role] = _role(change)
    document = {
        "schema": 1,
        "source": documents.source(applied.source),
        "values": applied.values,
        "output": applied.output,
        "moved": applied.moved,
        "untouched": list(applied.untouched),
        "layers": list(layers.values()),
    }
    documents.dump(document, file)


def _role(change: Change) -> dict[str, Any]:
    return {
        "variable": change.key,
        "channels": change.channels,
        "moved": change.moved,
        "largest": change.largest,
    }
