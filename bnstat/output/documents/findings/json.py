"""Findings as JSON, with every channel and every number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Any

from bnstat.checks.rule import SEVERITIES, Finding
from bnstat.model import Model
from bnstat.output.documents import common as documents


def dump(findings: Sequence[Finding], model: Model, file: IO[str]) -> None:
    """Write the findings in `model` as one object: `schema`, `source`, `counts`, `findings`."""
    counts = {
        severity: sum(finding.severity == severity for finding in findings)
        for severity in SEVERITIES
    }
    document = {
        "schema": 1,
        "source": documents.source(model.source),
        "layers": len(model),
        "counts": counts,
        "findings": [plain(finding) for finding in findings],
    }
    documents.dump(document, file)


def plain(finding: Finding) -> dict[str, Any]:
    """A finding as a dict. `layer` is null where the finding is about the whole model."""
    return {
        "rule": finding.rule,
        "name": finding.name,
        "severity": finding.severity,
        "layer": finding.layer,
        "channels": finding.channels.tolist(),
        "message": finding.message,
        "numbers": finding.numbers,
    }
