"""Findings as JSON, with every channel and every number, and how the model was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import IO, Any

from bnstat.checks import trained_with
from bnstat.checks.rule import SEVERITIES, Finding
from bnstat.model import Model
from bnstat.output.documents import common as documents


def dump(findings: Sequence[Finding], model: Model, file: IO[str]) -> None:
    """Write the findings in `model` as one object.

    Its members are `schema`, `source`, `layers`, `counts`, `trained_with` (`batch-statistics`,
    `stored-statistics` or `unknown`), `evidence` (under `file` the attributes of
    `bnstat.checks.Evidence`) and `findings`.
    """
    documents.dump(_document(findings, model), file)


def dump_all(
    checked: Sequence[tuple[Sequence[Finding], Model]], unread: Mapping[str, str], file: IO[str]
) -> None:
    """Write the findings in several models as one object: `schema`, `models`, `errors`.

    Args:
        checked: the findings and the model, for the objects of `dump` in `models`.
        unread: path -> why no model could be read there, for the `path` and `error` of `errors`.
        file: where to.
    """
    document = {
        "schema": 1,
        "models": [_document(*each) for each in checked],
        "errors": [{"path": path, "error": error} for path, error in unread.items()],
    }
    documents.dump(document, file)


def _document(findings: Sequence[Finding], model: Model) -> dict[str, Any]:
    counts = {
        severity: sum(finding.severity == severity for finding in findings)
        for severity in SEVERITIES
    }
    evidence = trained_with(model)
    return {
        "schema": 1,
        "source": documents.source(model.source),
        "layers": len(model),
        "counts": counts,
        "trained_with": evidence.trained_with,
        "evidence": {"file": asdict(evidence)},
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
