"""A history as JSON: every checkpoint, every track, every finding.

The lists of a track have one number a checkpoint, and null for what is no number: a layer that
the checkpoint lacks, or a layer without a finite channel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import IO, Any

from bnstat.checks.rule import Finding
from bnstat.compare.history import History, Track
from bnstat.compare.reduction import MEASURES, Floats
from bnstat.output.documents import common as documents
from bnstat.output.documents.findings import json as findings_json


def dump(history: History, findings: Sequence[Finding], path: str, file: IO[str]) -> None:
    """Write the history of the run at `path`, and what was found in it, as one object."""
    document = {
        "schema": 1,
        "path": path,
        "checkpoints": [{"name": each.name, "step": each.step} for each in history.checkpoints],
        "skipped": [{"name": each.name, "error": str(each.error)} for each in history.skipped],
        "tracks": [_track(track) for track in history.tracks.values()],
        "findings": [findings_json.plain(finding) for finding in findings],
    }
    documents.dump(document, file)


def _track(track: Track) -> dict[str, Any]:
    numbers = {measure: _numbers(getattr(track, measure)) for measure in MEASURES}
    return {"layer": track.layer, "role": track.role, **numbers}


def _numbers(values: Floats) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]
