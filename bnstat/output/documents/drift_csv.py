"""A drift as CSV: one row a channel. Names are written as in the CSV of a model."""

from __future__ import annotations

import csv
from typing import IO

from bnstat.mending.estimating.drift import Drift
from bnstat.output.documents.csv import cell
from bnstat.output.documents.drift_json import CHANNELS


def dump(result: Drift, file: IO[str]) -> None:
    """Write a drift; `file` is open for writing text, with `newline=""`."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("layer", "channel", *CHANNELS))
    for layer in result.layers:
        columns = [getattr(layer, name).tolist() for name in CHANNELS]
        name = cell(layer.layer)
        for channel, numbers in enumerate(zip(*columns, strict=True)):
            writer.writerow((name, channel, *map(repr, numbers)))
