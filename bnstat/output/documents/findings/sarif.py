"""Findings as SARIF 2.1.0, for code scanning.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html. A model has no lines: each
result points at the model's path, and names the layer as its logical location. GitHub takes a
result for the one it showed before by its partial fingerprint: the rule and the layer.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import quote

from bnstat.checks import MODEL_RULES
from bnstat.checks.rule import Finding, Rule
from bnstat.model import Model, printable
from bnstat.output.documents import common as documents
from bnstat.output.terminal.rules import sections

_LEVELS: Final = {"error": "error", "warning": "warning", "info": "note"}
_SCHEMA: Final = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)


def dump(checked: Sequence[tuple[Sequence[Finding], Model]], version: str, file: IO[str]) -> None:
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
    documents.dump({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, file)


def _rule(rule: Rule[Model]) -> dict[str, Any]:
    text = "\n\n".join(f"{title}: {body}" for title, body in sections(rule))
    markdown = "\n\n".join(f"**{title}**: {body}" for title, body in sections(rule))
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
