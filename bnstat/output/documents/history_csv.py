"""A history as CSV: one row a checkpoint, layer and role. A cell is empty for what is no number.

Names are written as in the CSV of a model: see `bnstat.output.documents.csv`.
"""

from __future__ import annotations

import csv
import math
from typing import IO

from bnstat.compare.history import History
from bnstat.compare.reduction import MEASURES
from bnstat.output.documents.csv import cell


def dump(history: History, file: IO[str]) -> None:
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
