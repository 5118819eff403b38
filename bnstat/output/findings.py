"""Findings and rules as text, and findings as JSON, as GitHub annotations and as SARIF.

- GitHub Actions shows workflow commands as annotations
  (https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands).
- SARIF 2.1.0 is the format of code scanning
  (https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html). A model has no lines, so each
  result has the layer as its logical location. GitHub recognizes a known result by the partial
  fingerprint.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from bnstat import __version__
from bnstat.checks import MODEL_RULES, Findings, trained_with
from bnstat.checks.rule import Finding, Rule, all_of, counts
from bnstat.model import Model, printable
from bnstat.output.documents import as_json, json_document, members, source
from bnstat.output.numbers import counted
from bnstat.output.terminal import table
from bnstat.output.terminal.overview import header
from bnstat.output.terminal.screen import Screen, legible, sentence
from bnstat.output.terminal.table import GAP, Column

STYLES: Final = {"error": "red", "warning": "yellow", "info": "cyan"}

_INDENT: Final = "  "
_CHANNELS_SHOWN: Final = 8
_MODEL: Final = "(whole model)"


Checked = tuple[Sequence[Finding], Model]
"""The findings in a model, and the model."""


def report(checked: Sequence[Checked], screen: Screen) -> Iterator[str]:
    """Yield, for each checked model, the lines of a header and of the findings."""
    for number, (findings, model) in enumerate(checked):
        if number:
            yield ""
        yield from header(model, screen)
        yield ""
        yield from text_lines(findings, screen)


def text_lines(findings: Sequence[Finding], screen: Screen) -> Iterator[str]:
    """Yield the lines that show findings, and a line that counts the findings."""
    for (severity, rule, name), group in groupby(
        findings, key=lambda finding: (finding.severity, finding.rule, finding.name)
    ):
        title = screen.style(f"{severity} {rule}", STYLES[severity])
        yield f"{title} {screen.style(name, 'bold')}"
        yield from _entries(list(group), screen)
        yield ""
    yield summary(findings)
    if findings:
        hint = f"bnstat check --explain {findings[0].rule} explains what it means and what to do"
        yield from table.legend([hint], screen)


def summary(findings: Sequence[Finding]) -> str:
    """Return text such as `2 errors, 1 warning` or `5 layers, 12 rules: no findings`."""
    parts = [
        f"{number} {severity}{'s' if number > 1 and severity != 'info' else ''}"
        for severity, number in counts(findings).items()
        if number
    ]
    scope = ""
    if isinstance(findings, Findings) and findings.rules:
        scope = f"{counted(findings.layers, 'layer')}, {counted(findings.rules, 'rule')}: "
    return ", ".join(parts) or f"{scope}no findings"


def _entries(group: Sequence[Finding], screen: Screen) -> Iterator[str]:
    """Yield lines with the layer of each finding on the left and the message on the right."""
    names = [_MODEL if finding.layer is None else legible(finding.layer) for finding in group]
    messages = [sentence(finding.message) + channels_of(finding) for finding in group]
    if screen.width is None:
        parts = [[message] for message in messages]
    else:
        room = screen.width - len(_INDENT) - len(GAP) - 1
        different = list(dict.fromkeys(names))
        short = table.shorten_all(different, max(8, room * 2 // 5), screen.glyphs.ellipsis)
        by_name = dict(zip(different, short, strict=True))
        names = [by_name[name] for name in names]
        width = max(20, room - Column("", names).width)
        parts = [textwrap.wrap(message, width) for message in messages]
    left = table.spread(names, list(map(len, parts)))
    right = [line for message_lines in parts for line in message_lines]
    for line in table.rows([Column("", left), Column("", right)], screen):
        yield _INDENT + line


def channels_of(finding: Finding) -> str:
    """Return text such as ` (channels 0, 3)`; "" for none, too many, or if the message says all."""
    number = finding.channels.size
    if not 0 < number <= _CHANNELS_SHOWN or all_of(number, "channel") in finding.message:
        return ""
    channels = ", ".join(map(str, finding.channels.tolist()))
    return f" (channel{'s' * (number > 1)} {channels})"


_PROSE_WIDTH: Final = 80  # the largest width of prose, also in a pipe


def overview(rules: Sequence[Rule[Any]], screen: Screen) -> Iterator[str]:
    """Yield the lines of a table of rules: code, name, most serious severity and title."""
    styles = {row: STYLES[rule.severity] for row, rule in enumerate(rules)}
    columns = [
        Column("code", [rule.code for rule in rules]),
        Column("name", [rule.name for rule in rules]),
        Column("severity", [rule.severity for rule in rules], styles=styles),
        Column("what it finds", [rule.title for rule in rules]),
    ]
    yield from table.table(columns, screen)
    yield ""
    yield screen.style("BN0.. are applied by bnstat check, BN1.. by bnstat history", "dim")


def explained(rules: Sequence[Rule[Any]], screen: Screen) -> Iterator[str]:
    """Yield the lines of the documentation of some rules."""
    width = min(screen.width or _PROSE_WIDTH, _PROSE_WIDTH)
    for number, rule in enumerate(rules):
        if number:
            yield ""
        code = screen.style(rule.code, STYLES[rule.severity])
        yield f"{code} {screen.style(rule.name, 'bold')} ({rule.severity})"
        for title, text in rule.sections().items():
            yield ""
            yield screen.style(title, "bold")
            yield from textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="  ")


def json_lines(findings: Sequence[Finding], model: Model) -> Iterator[str]:
    """Yield the lines of the findings in a model as JSON."""
    return json_document(**_document(findings, model))


def json_of_several(checked: Sequence[Checked], unread: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of the findings in several models; `unread` is path -> error message."""
    models = [{"schema": 1, **_document(findings, model)} for findings, model in checked]
    errors = [{"path": path, "error": error} for path, error in unread.items()]
    return json_document(models=models, errors=errors)


def _document(findings: Sequence[Finding], model: Model) -> dict[str, Any]:
    evidence = trained_with(model)
    return {
        "source": source(model.source),
        "layers": len(model),
        "counts": counts(findings),
        "trained_with": evidence.trained_with,
        "evidence": {"file": asdict(evidence)},
        "findings": [plain(finding) for finding in findings],
    }


def plain(finding: Finding) -> dict[str, Any]:
    """Return a finding as a dict; `layer` is None for a finding about the whole model."""
    return {
        **members(finding, "rule", "name", "severity", "layer"),
        "channels": finding.channels.tolist(),
        **members(finding, "message", "numbers"),
    }


def github_lines(checked: Iterable[Checked], unread: Mapping[str, str]) -> Iterator[str]:
    """Yield a GitHub workflow command for each unreadable path and for each finding."""
    for path, error in unread.items():
        yield f"::error file={_property(path)},title=unreadable::{_data(error)}"
    for findings, model in checked:
        path = _property(model.source.path)
        for finding in findings:
            title = _property(f"{finding.rule} {finding.name}")
            command = "notice" if finding.severity == "info" else finding.severity
            yield f"::{command} file={path},title={title}::{_data(_with_layer(finding))}"


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


def sarif_lines(checked: Sequence[Checked]) -> Iterator[str]:
    """Yield the lines of a SARIF log of one run of bnstat, with the findings in some models."""
    rules = [_rule(rule) for rule in MODEL_RULES]
    results = [_result(each, model.source.path) for findings, model in checked for each in findings]
    run = {
        "tool": {"driver": {"name": "bnstat", "version": __version__, "rules": rules}},
        "columnKind": "unicodeCodePoints",
        "results": results,
    }
    return as_json({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]})


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
    import hashlib
    from urllib.parse import quote

    relative = quote(Path(path).as_posix(), errors="surrogateescape")
    uri = Path(path).as_uri() if os.path.isabs(path) else relative
    place = {"artifactLocation": {"uri": uri}, "region": {"startLine": 1}}
    location: dict[str, Any] = {"physicalLocation": place}
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
