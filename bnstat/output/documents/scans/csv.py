"""A scan as CSV: one row a model; texts are written as in the CSV of a model."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from typing import IO, Final

from bnstat.output.documents.csv import cell
from bnstat.output.documents.scans.plain import plain
from bnstat.scanning.record import Record

COLUMNS: Final = (
    *("path", "checkpoint", "step", "format", "writer", "layers", "channels", "worst", "rule"),
    *("findings", "error", "message"),
)


def dump(records: Iterable[Record], file: IO[str]) -> None:
    """Write the records as they come; `file` is open for writing text, with `newline=""`.

    `findings` holds each rule's code and its number of findings: `BN001:3 BN009:1`.
    """
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in records:
        told = plain(record)
        told["findings"] = " ".join(f"{code}:{count}" for code, count in record.findings.items())
        told |= {"error": record.trouble, "message": record.reason}
        writer.writerow([_text(told[column]) for column in COLUMNS])


def _text(value: str | int | None) -> str | int | None:
    return cell(value) if isinstance(value, str) else value
