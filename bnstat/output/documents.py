"""Nested dicts and lists as JSON, for what is said of models: findings, differences, histories.

NaN and the infinities are strings, as in the JSON of a model; characters that are not ASCII are
written as escapes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import IO, Any

from bnstat.model import Source


def dump(document: Mapping[str, Any], file: IO[str]) -> None:
    """Write `document`, made of dicts, lists, tuples, strings, numbers, bools and None."""
    json.dump(_plain(document), file, indent=1, allow_nan=False)
    file.write("\n")


def source(of: Source) -> dict[str, Any]:
    """Where a model was read from, in the form of a model's JSON."""
    return {
        "path": of.path,
        "format": of.format,
        "checkpoint": of.checkpoint,
        "step": of.step,
        "writer": of.writer,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
