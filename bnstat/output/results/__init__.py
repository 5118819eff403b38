"""What other programs read.

Nested dicts and lists as JSON, for what is said of models: findings, differences, histories.

NaN and the infinities are strings, as in the JSON of a model; characters that are not ASCII are
written as escapes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import IO, TYPE_CHECKING, Any

from bnstat.mending.pairing import Applied, Change
from bnstat.model import Source

if TYPE_CHECKING:
    from bnstat.estimate.modes import ModeEvidence


def dump_common(document: Mapping[str, Any], file: IO[str]) -> None:
    """Write a dict of lists, strings, numbers, bools and None, and of such dicts.

    Each member of the outermost dict has its line, and each dict in a list of dicts.
    """
    separator = "{"
    for key, value in document.items():
        file.write(f"{separator}{json.dumps(key)}: ")
        if isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
            for place, item in enumerate(value):
                file.write(f"{',' if place else '['}\n  {encode(item)}")
            file.write("]")
        else:
            file.write(encode(value))
        separator = ",\n "
    file.write("}\n")


def source(of: Source) -> dict[str, Any]:
    """Where a model was read from, in the form of a model's JSON."""
    return {
        "path": of.path,
        "format": of.format,
        "checkpoint": of.checkpoint,
        "step": of.step,
        "writer": of.writer,
    }


def trained_with(evidence: ModeEvidence | None) -> dict[str, Any]:
    """The members that say with which statistics a model was trained, and what shows it."""
    if evidence is None:
        return {"trained_with": "unknown", "evidence": None}
    data = None if evidence.data is None else asdict(evidence.data)
    return {
        "trained_with": evidence.trained_with,
        "evidence": {"file": asdict(evidence.file), "data": data},
    }


def encode(value: Any) -> str:
    """A value as JSON."""
    return json.dumps(plain(value), allow_nan=False)


def plain(value: Any) -> Any:
    """The value in what JSON has: NaN and the infinities are strings."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def dump_applied_json(applied: Applied, file: IO[str]) -> None:
    """Write what `apply` has written as one object."""
    layers: dict[str, dict[str, Any]] = {}
    for change in applied.changes:
        layer = {"name": change.layer, "given_as": change.given_as, "match": change.match}
        roles = layers.setdefault(change.layer, {**layer, "roles": {}})["roles"]
        roles[change.role] = _role(change)
    document = {
        "schema": 1,
        "source": source(applied.source),
        "values": applied.values,
        "output": applied.output,
        "moved": applied.moved,
        "untouched": list(applied.untouched),
        "layers": list(layers.values()),
    }
    dump_common(document, file)


def _role(change: Change) -> dict[str, Any]:
    return {
        "variable": change.key,
        "channels": change.channels,
        "moved": change.moved,
        "largest": change.largest,
    }
