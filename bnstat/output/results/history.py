"""Histories as JSON and CSV.

In JSON, each list of a track has one number per checkpoint, and null if the checkpoint lacks the
layer, or the layer has no finite channel. CSV has one row per checkpoint, layer and role, and an
empty cell instead of null. Names are escaped as in the CSV of a model; see `bnstat.exchange.csv`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import IO, Any

from bnstat.checks.rule import Finding
from bnstat.exchange.csv import cell
from bnstat.output import results
from bnstat.output.results import findings as findings_json
from bnstat.run_history import MEASURES, History, Track


def dump_history_json(
    history: History, findings: Sequence[Finding], path: str, file: IO[str]
) -> None:
    """Write the history of the run at `path`, and the findings in it, as JSON."""
    document = {
        "schema": 1,
        "path": path,
        "checkpoints": [
            results.members(checkpoint, "name", "step") for checkpoint in history.checkpoints
        ],
        "skipped": [
            {"name": checkpoint.name, "error": str(checkpoint.error)}
            for checkpoint in history.skipped
        ],
        "tracks": [_track(track) for track in history.tracks.values()],
        "findings": [findings_json.plain(finding) for finding in findings],
    }
    results.dump_common(document, file)


def _track(track: Track) -> dict[str, Any]:
    numbers = {
        measure: [None if math.isnan(number) else number for number in values]
        for measure, values in _values(track).items()
    }
    return {"layer": track.layer, "role": track.role, **numbers}


def _values(track: Track) -> dict[str, list[float]]:
    return {measure: getattr(track, measure).tolist() for measure in MEASURES}


def dump_history_csv(history: History, file: IO[str]) -> None:
    """Write a history as CSV."""

    def rows() -> Iterator[list[object]]:
        for track in history.tracks.values():
            columns = _values(track).values()
            for checkpoint, *numbers in zip(history.checkpoints, *columns, strict=True):
                key = [cell(checkpoint.name), checkpoint.step, cell(track.layer), track.role]
                yield key + ["" if math.isnan(number) else repr(number) for number in numbers]

    results.write_csv(file, ("checkpoint", "step", "layer", "role", *MEASURES), rows())
