"""What is on a page, before it is HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bnstat.checks import RULES, SEVERITIES, Finding, Rule
from bnstat.model import Model
from bnstat.output.page.numbers import Packed
from bnstat.output.terminal.findings import summary

Kind = Literal["model", "history", "difference"]
Tone = Literal["good", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Group:
    """What one rule found.

    Attributes:
        rule: the rule, with its documentation.
        findings: the first of them, each with its row of the table, or None.
        more: how many further findings there are.
        severity: of the gravest.
    """

    rule: Rule[Any]
    findings: Sequence[tuple[Finding, int | None]]
    more: int
    severity: str


@dataclass(frozen=True, slots=True)
class Page:
    """What is on a page.

    Attributes:
        kind: whether it shows a model, a run, or what differs between two models.
        title: the path, or the paths.
        facts: label -> text, of the model or of both.
        verdict: what is to be said in one line.
        tone: how grave that is.
        groups: what was found, by rule.
        notes: what a reader of the numbers has to know.
        data: what the page's scripts work on, for JSON.
        numbers: the arrays that `data` gives the places of.
    """

    kind: Kind
    title: str
    facts: Mapping[str, str]
    verdict: str
    tone: Tone
    groups: Sequence[Group]
    notes: Sequence[str]
    data: Mapping[str, Any]
    numbers: Packed


MOST_LISTED = 100
"""So many findings of a rule are listed; the table and the layers show the others."""


def grouped(findings: Sequence[Finding], rows: Mapping[str, int]) -> list[Group]:
    """The findings by rule, the gravest rule first."""
    rules = {rule.code: rule for rule in RULES}
    by_rule: dict[str, list[Finding]] = {}
    for finding in findings:
        by_rule.setdefault(finding.rule, []).append(finding)
    return [
        Group(
            rules[code],
            [(each, rows.get(each.layer or "")) for each in found[:MOST_LISTED]],
            max(0, len(found) - MOST_LISTED),
            min((each.severity for each in found), key=SEVERITIES.index),
        )
        for code, found in by_rule.items()
    ]


def judged(model: Model, findings: Sequence[Finding]) -> tuple[str, Tone]:
    """What is to be said of a model in a line, such as `2 errors, 1 warning`, and how grave it is.

    Args:
        model: the model.
        findings: what was found in it, or in the run whose newest it is.
    """
    counts = {
        severity: sum(finding.severity == severity for finding in findings)
        for severity in SEVERITIES
    }
    words = {"error": "error", "warning": "warning", "info": "note"}
    said = [
        f"{number:,} {words[severity]}{'' if number == 1 else 's'}"
        for severity, number in counts.items()
        if number
    ]
    if not said:
        return (summary(findings), "good") if len(model) else ("no batch norm found", "info")
    return ", ".join(said), next(severity for severity in SEVERITIES if counts[severity])


def facts_of(model: Model) -> dict[str, str]:
    """Label -> text: where a model was read from, how large it is, what all its layers share."""
    source = model.source
    layers = f"{len(model):,} with {model.channels:,} channels"
    told = {
        "format": source.format,
        "writer": source.writer,
        "checkpoint": source.checkpoint,
        "step": None if source.step is None else f"{source.step:,}",
        "layers": layers,
    }
    for setting in ("epsilon", "momentum", "axis"):
        values = {getattr(layer, setting) for layer in model.layers}
        if len(values) == 1:
            (value,) = values
            told[setting] = None if value is None else str(value)
    return {label: text for label, text in told.items() if text}
