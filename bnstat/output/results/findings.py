"""Findings as JSON, as GitHub annotations and as SARIF.

- GitHub Actions shows workflow commands as annotations
  (https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands).
- SARIF 2.1.0 is the format of code scanning
  (https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html). A model has no lines: each
  result refers to the model's path, and has the layer as its logical location. GitHub recognizes a
  known result by the partial fingerprint, which consists of the rule and the layer.
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
from bnstat.checks.rule import Finding, Rule, counts
from bnstat.model import Model, printable
from bnstat.output import results

Checked = tuple[Sequence[Finding], Model]
"""A model, and the findings in it."""


def dump_json(findings: Sequence[Finding], model: Model, file: IO[str]) -> None:
    """Write the findings in a model as JSON.

    The members are `schema`, `source`, `layers`, `counts`, `trained_with` (`batch-statistics`,
    `stored-statistics` or `unknown`), `evidence` (its member `file` has the attributes of
    `bnstat.checks.Evidence`) and `findings`.
    """
    results.dump_common(_document(findings, model), file)


def dump_all(checked: Sequence[Checked], unread: Mapping[str, str], file: IO[str]) -> None:
    """Write the findings in several models as JSON: `schema`, `models` and `errors`.

    Args:
        checked: the models; each becomes an object as in `dump_json`.
        unread: path -> error, for paths that could not be read.
        file: the file.
    """
    document = {
        "schema": 1,
        "models": [_document(findings, model) for findings, model in checked],
        "errors": [{"path": path, "error": error} for path, error in unread.items()],
    }
    results.dump_common(document, file)


def _document(findings: Sequence[Finding], model: Model) -> dict[str, Any]:
    evidence = trained_with(model)
    return {
        "schema": 1,
        "source": results.source(model.source),
        "layers": len(model),
        "counts": counts(findings),
        "trained_with": evidence.trained_with,
        "evidence": {"file": asdict(evidence)},
        "findings": [plain(finding) for finding in findings],
    }


def plain(finding: Finding) -> dict[str, Any]:
    """Return a finding as a dict; `layer` is None for a finding about the whole model."""
    return {
        **results.members(finding, "rule", "name", "severity", "layer"),
        "channels": finding.channels.tolist(),
        **results.members(finding, "message", "numbers"),
    }


_COMMANDS: Final = {"error": "error", "warning": "warning", "info": "notice"}


def lines(checked: Iterable[Checked], unread: Mapping[str, str]) -> Iterator[str]:
    """Yield a GitHub workflow command for each unreadable path and for each finding."""
    for path, error in unread.items():
        yield f"::error file={_property(path)},title=unreadable::{_data(error)}"
    for findings, model in checked:
        path = _property(model.source.path)
        for finding in findings:
            title = _property(f"{finding.rule} {finding.name}")
            command = f"{_COMMANDS[finding.severity]} file={path},title={title}"
            yield f"::{command}::{_data(_with_layer(finding))}"


def _with_layer(finding: Finding) -> str:
    return finding.message if finding.layer is None else f"{finding.layer}: {finding.message}"


def _data(text: str) -> str:
    return printable(text).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


_LEVELS: Final = {"error": "error", "warning": "warning", "info": "note"}
_SCHEMA: Final = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)


def dump_sarif(checked: Sequence[Checked], version: str, file: IO[str]) -> None:
    """Write the findings in some models as a SARIF log of one run of this version of bnstat."""
    rules = [_rule(rule) for rule in MODEL_RULES]
    run = {
        "tool": {"driver": {"name": "bnstat", "version": version, "rules": rules}},
        "columnKind": "unicodeCodePoints",
        "results": [
            _result(finding, model.source.path)
            for findings, model in checked
            for finding in findings
        ],
    }
    results.dump_common({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, file)


def _rule(rule: Rule[Model]) -> dict[str, Any]:
    sections = rule.sections()
    return {
        "id": rule.code,
        "name": rule.name,
        "shortDescription": {"text": f"{rule.title[0].upper()}{rule.title[1:]}."},
        "fullDescription": {"text": sections["What it finds"]},
        "help": {
            "text": "\n\n".join(f"{title}: {text}" for title, text in sections.items()),
            "markdown": "\n\n".join(f"**{title}**: {text}" for title, text in sections.items()),
        },
        "defaultConfiguration": {"level": _LEVELS[rule.severity]},
    }


def _result(finding: Finding, path: str) -> dict[str, Any]:
    location: dict[str, Any] = {
        "physicalLocation": {"artifactLocation": {"uri": _uri(path)}, "region": {"startLine": 1}}
    }
    if finding.layer is not None:
        location["logicalLocations"] = [{"name": finding.layer, "kind": "member"}]
    identity = f"{finding.rule}\0{finding.layer}".encode("utf-8", "surrogatepass")
    return {
        "ruleId": finding.rule,
        "ruleIndex": [rule.code for rule in MODEL_RULES].index(finding.rule),
        "level": _LEVELS[finding.severity],
        "message": {"text": printable(_with_layer(finding))},
        "locations": [location],
        "partialFingerprints": {"ruleAndLayer/v1": hashlib.sha256(identity).hexdigest()},
        "properties": {"channels": finding.channels.tolist(), "numbers": finding.numbers},
    }


def _uri(path: str) -> str:
    """Convert a relative path to a relative reference, and an absolute path to a file URI."""
    if os.path.isabs(path):
        return Path(path).as_uri()
    return quote(Path(path).as_posix(), errors="surrogateescape")
