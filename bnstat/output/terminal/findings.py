"""Text about findings, grouped by rule, and about the rules."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Final

from bnstat.checks import Findings
from bnstat.checks.rule import SEVERITIES, Finding, Rule, all_of
from bnstat.model import Model
from bnstat.output.terminal.overview import header
from bnstat.output.terminal.screen import Screen, legible, sentence
from bnstat.output.terminal.table import (
    GAP,
    Column,
    rows,
    shorten_all,
    spread,
    table,
    text_width,
    wrapped,
)

STYLES: Final = {"error": "red", "warning": "yellow", "info": "cyan"}

_INDENT: Final = "  "
_CHANNELS_SHOWN: Final = 8
_MODEL: Final = "(whole model)"


def report(findings: Sequence[Finding], model: Model, screen: Screen) -> Iterator[str]:
    """Yield the lines about a model and its findings."""
    yield from header(model, screen)
    yield ""
    yield from lines(findings, screen)


def lines(findings: Sequence[Finding], screen: Screen) -> Iterator[str]:
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
        for line in wrapped(hint, screen):
            yield screen.style(line, "dim")


def summary(findings: Sequence[Finding]) -> str:
    """Return `2 errors, 1 warning, 17 info`, or the scope of the check if nothing was found."""
    counts = Counter(finding.severity for finding in findings)
    parts = [
        f"{number} {severity}{'s' if number > 1 and severity != 'info' else ''}"
        for severity in SEVERITIES
        if (number := counts[severity])
    ]
    if parts:
        return ", ".join(parts)
    if not isinstance(findings, Findings) or not findings.rules:
        return "no findings"
    layers = "1 layer" if findings.layers == 1 else f"{findings.layers:,} layers"
    rules = "1 rule" if findings.rules == 1 else f"{findings.rules} rules"
    return f"{layers}, {rules}: no findings"


def _entries(group: Sequence[Finding], screen: Screen) -> Iterator[str]:
    """Yield lines with layer names on the left and messages on the right."""
    names = [_MODEL if finding.layer is None else legible(finding.layer) for finding in group]
    messages = [sentence(finding.message) + channels_of(finding) for finding in group]
    if screen.width is None:
        parts = [[message] for message in messages]
    else:
        room = screen.width - len(_INDENT) - len(GAP) - 1
        different = list(dict.fromkeys(names))
        short = shorten_all(different, max(8, room * 2 // 5), screen.glyphs.ellipsis)
        by_name = dict(zip(different, short, strict=True))
        names = [by_name[name] for name in names]
        width = max(20, room - max(map(text_width, names)))
        parts = [textwrap.wrap(message, width) for message in messages]
    left = spread(names, list(map(len, parts)))
    right = [line for message_lines in parts for line in message_lines]
    for line in rows([Column("", left), Column("", right)], screen):
        yield _INDENT + line


def channels_of(finding: Finding) -> str:
    """Return the channels of a finding; empty if there are many, or the message says `all`."""
    number = finding.channels.size
    if not 0 < number <= _CHANNELS_SHOWN or all_of(number, "channel") in finding.message:
        return ""
    noun = "channel" if number == 1 else "channels"
    return f" ({noun} {', '.join(map(str, finding.channels.tolist()))})"


_PROSE_WIDTH: Final = 80
"""The largest width of prose, also in a pipe."""


def overview(rules: Sequence[Rule[Any]], screen: Screen) -> Iterator[str]:
    """Yield a table of the rules with their most serious severities."""
    severities = [rule.severity for rule in rules]
    columns = [
        Column("code", [rule.code for rule in rules]),
        Column("name", [rule.name for rule in rules]),
        Column(
            "severity",
            severities,
            styles={row: STYLES[severity] for row, severity in enumerate(severities)},
        ),
        Column("what it finds", [rule.title for rule in rules]),
    ]
    yield from table(columns, screen)
    yield ""
    yield screen.style("BN0.. are applied by bnstat check, BN1.. by bnstat history", "dim")


def explain(rules: Sequence[Rule[Any]], screen: Screen) -> Iterator[str]:
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
