"""A scan as JSON Lines: an object for each model, described by `schema.json` beside this."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from bnstat.output.documents.scans.plain import plain
from bnstat.scanning.record import Record


def lines(records: Iterable[Record]) -> Iterator[str]:
    """The lines, in ASCII."""
    for record in records:
        yield json.dumps({"schema": 1, **plain(record)})
