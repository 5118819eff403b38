"""Results for other programs: findings, differences, drifts, histories and scans.

In JSON, NaN and the infinities are strings as in the JSON of a model, and characters outside ASCII
are escaped. CSV files are opened as text with `newline=""`.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import IO, TYPE_CHECKING, Any

from bnstat.model import Source

if TYPE_CHECKING:
    from bnstat.estimate.modes import ModeEvidence
    from bnstat.mending.pairing import Applied


def dump_common(document: Mapping[str, Any], file: IO[str]) -> None:
    """Write nested dicts and lists of strings, numbers, bools and None as JSON.

    Each member of the outermost dict, and each dict in a list of dicts, has its own line.
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


def encode(value: Any) -> str:
    """Return a value as JSON."""
    return json.dumps(plain(value), allow_nan=False)


def plain(value: Any) -> Any:
    """Return a value in which NaN and the infinities are replaced by strings."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def write_csv(file: IO[str], header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write rows as CSV, one at a time."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)


def members(of: object, *names: str) -> dict[str, Any]:
    """Return attribute name -> value of an object, as JSON data."""
    return {name: getattr(of, name) for name in names}


def source(of: Source) -> dict[str, Any]:
    """Return the source of a model, as in the JSON of a model."""
    return members(of, "path", "format", "checkpoint", "step", "writer")


def trained_with(evidence: ModeEvidence | None) -> dict[str, Any]:
    """Return the JSON members for how a model was trained: the verdict and the evidence."""
    if evidence is None:
        return {"trained_with": "unknown", "evidence": None}
    data = None if evidence.data is None else asdict(evidence.data)
    return {
        "trained_with": evidence.trained_with,
        "evidence": {"file": asdict(evidence.file), "data": data},
    }


def dump_applied_json(applied: Applied, file: IO[str]) -> None:
    """Write the result of `apply` as JSON."""
    layers: dict[str, dict[str, Any]] = {}
    for change in applied.changes:
        layer = {"name": change.layer, **members(change, "given_as", "match"), "roles": {}}
        roles = layers.setdefault(change.layer, layer)["roles"]
        numbers = members(change, "channels", "moved", "largest")
        roles[change.role] = {"variable": change.key, **numbers}
    document = {
        "schema": 1,
        "source": source(applied.source),
        **members(applied, "values", "output", "moved"),
        "untouched": list(applied.untouched),
        "layers": list(layers.values()),
    }
    dump_common(document, file)
