"""A history as JSON: every checkpoint, every track, every finding.

The lists of a track have one number a checkpoint, and null for what is no number: a layer that
the checkpoint lacks, or a layer without a finite channel.

A history as CSV: one row a checkpoint, layer and role. A cell is empty for what is no number.

Names are written as in the CSV of a model: see `bnstat.exchange.csv`.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from typing import IO, Any

from bnstat.checks.rule import Finding
from bnstat.exchange.csv import cell
from bnstat.output import results as documents
from bnstat.output.results import findings as findings_json
from bnstat.run_history import MEASURES, Floats, History, Track


def dump_history_json(
    history: History, findings: Sequence[Finding], path: str, file: IO[str]
) -> None:
    """Write the history of the run at `path`, and what was found in it, as one object."""
    document = {
        "schema": 1,
        "path": path,
        "checkpoints": [{"name": each.name, "step": each.step} for each in history.checkpoints],
        "skipped": [{"name": each.name, "error": str(each.error)} for each in history.skipped],
        "tracks": [_track(track) for track in history.tracks.values()],
        "findings": [findings_json.plain(finding) for finding in findings],
    }
    documents.dump_common(document, file)


def _track(track: Track) -> dict[str, Any]:
    numbers = {measure: _numbers(getattr(track, measure)) for measure in MEASURES}
    return {"layer": track.layer, "role": track.role, **numbers}


def _numbers(values: Floats) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


def dump_history_csv(history: History, file: IO[str]) -> None:
    """Write a history; `file` is open for writing text, with `newline=""`."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("checkpoint", "step", "layer", "role", *MEASURES))
    for track in history.tracks.values():
        columns = [getattr(track, measure).tolist() for measure in MEASURES]
        layer = cell(track.layer)
        for checkpoint, *numbers in zip(history.checkpoints, *columns, strict=True):
            step = "" if checkpoint.step is None else checkpoint.step
            row = ["" if math.isnan(number) else repr(number) for number in numbers]
            writer.writerow((cell(checkpoint.name), step, layer, track.role, *row))
