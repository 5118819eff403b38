"""Findings for people: grouped by rule, the gravest first, one entry a layer."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Final

from bnstat.checks import Findings
from bnstat.checks.rule import SEVERITIES, Finding, Rule
from bnstat.model import Model
from bnstat.output.terminal.overview import header
from bnstat.output.terminal.screen import Screen, legible
from bnstat.output.terminal.table import GAP, Column, rows, shorten_all, table, text_width

STYLES: Final = {"error": "red", "warning": "yellow", "info": "cyan"}

_INDENT: Final = "  "
_CHANNELS_SHOWN: Final = 8
_WHOLE: Final = "(whole model)"


def report(findings: Sequence[Finding], model: Model, screen: Screen) -> Iterator[str]:
    """What was checked, and what was found in it."""
    yield from header(model, screen)
    yield ""
    yield from lines(findings, screen)


def lines(findings: Sequence[Finding], screen: Screen) -> Iterator[str]:
    """The findings, then a line that counts them."""
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
        for line in [hint] if screen.width is None else textwrap.wrap(hint, screen.width):
            yield screen.style(line, "dim")


def summary(findings: Sequence[Finding]) -> str:
    """`2 errors, 1 warning, 17 info`; where there is none, what was checked."""
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
    """Names to the left, messages to the right, wrapped where the screen is narrow."""
    names = [_WHOLE if each.layer is None else legible(each.layer) for each in group]
    messages = [legible(each.message) + channels_of(each) for each in group]
    if screen.width is None:
        wrapped = [[message] for message in messages]
    else:
        room = screen.width - len(_INDENT) - len(GAP) - 1
        names = _shortened(names, max(8, room * 2 // 5), screen)
        width = max(20, room - max(map(text_width, names)))
        wrapped = [textwrap.wrap(message, width) for message in messages]
    left = [
        name if number == 0 else ""
        for name, parts in zip(names, wrapped, strict=True)
        for number, _ in enumerate(parts)
    ]
    right = [part for parts in wrapped for part in parts]
    for line in rows([Column("", left), Column("", right)], screen):
        yield _INDENT + line


def _shortened(names: list[str], width: int, screen: Screen) -> list[str]:
    """The names, shortened so that different layers stay different."""
    different = list(dict.fromkeys(names))
    short = shorten_all(different, width, screen.glyphs.ellipsis)
    by_name = dict(zip(different, short, strict=True))
    return [by_name[name] for name in names]


def channels_of(finding: Finding) -> str:
    """The channels in question, where they are few."""
    if not 0 < finding.channels.size <= _CHANNELS_SHOWN:
        return ""
    noun = "channel" if finding.channels.size == 1 else "channels"
    return f" ({noun} {', '.join(map(str, finding.channels.tolist()))})"


_WIDTH: Final = 80
"""Prose is wrapped also where a pipe has no width, and no wider than this."""


def overview(rules: Sequence[Rule[Any]], screen: Screen) -> Iterator[str]:
    """One line a rule: its code, its name, the severity of its gravest finding, its title."""
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
    """All that there is to say of some rules."""
    for number, rule in enumerate(rules):
        if number:
            yield ""
        yield from _explain(rule, screen)


def _explain(rule: Rule[Any], screen: Screen) -> Iterator[str]:
    yield (
        f"{screen.style(rule.code, STYLES[rule.severity])} {screen.style(rule.name, 'bold')} "
        f"({rule.severity})"
    )
    width = min(screen.width or _WIDTH, _WIDTH)
    for title, text in rule.sections().items():
        yield ""
        yield screen.style(title, "bold")
        yield from textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="  ")
