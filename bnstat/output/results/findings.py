"""Findings, for other programs' reports.

Findings as workflow commands, which GitHub Actions shows as annotations.

https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands

Findings as SARIF 2.1.0, for code scanning.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html. A model has no lines: each
result points at the model's path, and names the layer as its logical location. GitHub takes a
result for the one it showed before by its partial fingerprint: the rule and the layer.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import quote

from bnstat.checks import MODEL_RULES, trained_with
from bnstat.checks.rule import SEVERITIES, Finding, Rule
from bnstat.model import Model, printable
from bnstat.output import results as documents


def dump_json(findings: Sequence[Finding], model: Model, file: IO[str]) -> None:
    """Write the findings in `model` as one object.

    Its members are `schema`, `source`, `layers`, `counts`, `trained_with` (`batch-statistics`,
    `stored-statistics` or `unknown`), `evidence` (under `file` the attributes of
    `bnstat.checks.Evidence`) and `findings`.
    """
    documents.dump_common(_document(findings, model), file)


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
    documents.dump_common(document, file)


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


_COMMANDS: Final = {"error": "error", "warning": "warning", "info": "notice"}


def lines(
    checked: Iterable[tuple[Iterable[Finding], Model]], unread: Mapping[str, str]
) -> Iterator[str]:
    """One command a finding of each model; one for each path that could not be read, and why."""
    for path, error in unread.items():
        yield f"::error file={_property(path)},title=unreadable::{_data(error)}"
    for findings, model in checked:
        path = _property(model.source.path)
        for finding in findings:
            command = _COMMANDS[finding.severity]
            title = _property(f"{finding.rule} {finding.name}")
            where = "" if finding.layer is None else f"{finding.layer}: "
            yield f"::{command} file={path},title={title}::{_data(where + finding.message)}"


def _data(text: str) -> str:
    return printable(text).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


_LEVELS: Final = {"error": "error", "warning": "warning", "info": "note"}
_SCHEMA: Final = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)


def dump_sarif(
    checked: Sequence[tuple[Sequence[Finding], Model]], version: str, file: IO[str]
) -> None:
    """Write the findings in some models as a log of one run of this `version` of bnstat."""
    driver = {
        "name": "bnstat",
        "version": version,
        "rules": [_rule(rule) for rule in MODEL_RULES],
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [
            _result(finding, model.source.path)
            for findings, model in checked
            for finding in findings
        ],
    }
    documents.dump_common({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, file)


def _rule(rule: Rule[Model]) -> dict[str, Any]:
    text = "\n\n".join(f"{title}: {body}" for title, body in rule.sections().items())
    markdown = "\n\n".join(f"**{title}**: {body}" for title, body in rule.sections().items())
    return {
        "id": rule.code,
        "name": rule.name,
        "shortDescription": {"text": f"{rule.title[0].upper()}{rule.title[1:]}."},
        "fullDescription": {"text": rule.what},
        "help": {"text": text, "markdown": markdown},
        "defaultConfiguration": {"level": _LEVELS[rule.severity]},
    }


def _result(finding: Finding, path: str) -> dict[str, Any]:
    location: dict[str, Any] = {
        "physicalLocation": {"artifactLocation": {"uri": _uri(path)}, "region": {"startLine": 1}}
    }
    where = ""
    if finding.layer is not None:
        location["logicalLocations"] = [{"name": finding.layer, "kind": "member"}]
        where = f"{finding.layer}: "
    identity = f"{finding.rule}\0{finding.layer}".encode("utf-8", "surrogatepass")
    return {
        "ruleId": finding.rule,
        "ruleIndex": [rule.code for rule in MODEL_RULES].index(finding.rule),
        "level": _LEVELS[finding.severity],
        "message": {"text": printable(where + finding.message)},
        "locations": [location],
        "partialFingerprints": {"ruleAndLayer/v1": hashlib.sha256(identity).hexdigest()},
        "properties": {"channels": finding.channels.tolist(), "numbers": finding.numbers},
    }


def _uri(path: str) -> str:
    """A relative reference as it was typed, or a file URI."""
    if os.path.isabs(path):
        return Path(path).as_uri()
    return quote(Path(path).as_posix(), errors="surrogateescape")
