"""The rules' own documentation: a table of all, and all there is to say of one."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, Final

from bnstat.checks.rule import Rule
from bnstat.output.terminal.findings import STYLES
from bnstat.output.terminal.screen import Screen
from bnstat.output.terminal.table import Column, table

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
    for title, text in sections(rule):
        yield ""
        yield screen.style(title, "bold")
        yield from textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="  ")


def sections(rule: Rule[Any]) -> Iterator[tuple[str, str]]:
    """The titles and texts of a rule's documentation."""
    yield "What it finds", rule.what
    yield "Why it matters", rule.why
    yield "Example", rule.example
    for library, text in rule.mend.items():
        yield f"What to do: {library}", text
    yield "How sure it is", rule.confidence
    yield "Threshold", rule.threshold
