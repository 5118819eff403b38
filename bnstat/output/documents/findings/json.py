"""Findings as JSON, with every channel and every number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Any

from bnstat.checks.rule import SEVERITIES, Finding
from bnstat.model import Model
from bnstat.output.documents import common as documents


def dump(findings: Sequence[Finding], model: Model, file: IO[str]) -> None:
    """Write the findings in `model` as one object: `schema`, `source`, `counts`, `findings`."""
    documents.dump(_document(findings, model), file)


def dump_all(checked: Sequence[tuple[Sequence[Finding], Model]], file: IO[str]) -> None:
    """Write the findings in several models as one object, with the objects of each in `models`."""
    documents.dump({"schema": 1, "models": [_document(*each) for each in checked]}, file)


def _document(findings: Sequence[Finding], model: Model) -> dict[str, Any]:
    counts = {
        severity: sum(finding.severity == severity for finding in findings)
        for severity in SEVERITIES
    }
    return {
        "schema": 1,
        "source": documents.source(model.source),
        "layers": len(model),
        "counts": counts,
        "findings": [plain(finding) for finding in findings],
    }


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
