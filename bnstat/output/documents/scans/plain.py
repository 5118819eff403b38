"""A record as a dict: what all forms of a scan's output are made of."""

from __future__ import annotations

from typing import Any

from bnstat.scanning.record import Record


def plain(record: Record) -> dict[str, Any]:
    """The dict: of strings, numbers and None, but for `findings`, and `error`, a dict or None."""
    error = None
    if record.trouble is not None:
        error = {"kind": record.trouble, "message": record.reason}
    return {
        "path": record.path,
        "checkpoint": record.checkpoint,
        "step": record.step,
        "format": record.format,
        "writer": record.writer,
        "layers": record.layers,
        "channels": record.channels,
        "worst": record.worst,
        "rule": record.rule,
        "findings": dict(record.findings),
        "error": error,
    }
