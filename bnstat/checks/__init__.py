"""Checks of the batch norm in a model: the rules, and the function that applies them.

A rule is a function with the decorator `as_rule` in a module of this package, and a section of the
page docs/rules.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from os import PathLike
from typing import Any, Final

from bnstat.checks import over_time, updates, variables
from bnstat.checks.rule import SEVERITIES, Finding, Rule, Severity, Thresholds
from bnstat.checks.training_mode import trained_with
from bnstat.display import Displayed
from bnstat.errors import BnstatError
from bnstat.model import Model
from bnstat.run_history import History

__all__ = ["RULES", "SEVERITIES", "Finding", "Severity", "Thresholds", "check", "trained_with"]

RULES: Final[tuple[Rule[Any], ...]] = tuple(
    sorted(
        (
            value
            for module in (over_time, updates, variables)
            for value in vars(module).values()
            if isinstance(value, Rule)
        ),
        key=attrgetter("code"),
    )
)

MODEL_RULES: Final = tuple(rule for rule in RULES if rule.code.startswith("BN0"))

HISTORY_RULES: Final = tuple(rule for rule in RULES if rule.code.startswith("BN1"))


class Findings(Displayed, list[Finding]):
    """The findings, most serious first, with the number of checked layers and applied rules."""

    def __init__(self, findings: Iterable[Finding] = (), layers: int = 0, rules: int = 0) -> None:
        super().__init__(findings)
        self.layers = layers
        self.rules = rules

    def where(self, keep: Callable[[Finding], bool]) -> Findings:
        """Return a copy with only the findings for which `keep` returns True."""
        return Findings(filter(keep, self), self.layers, self.rules)


_DEFAULTS: Final = Thresholds()


def check(
    subject: Model | History | str | PathLike[str] | object,
    *,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    thresholds: Thresholds = _DEFAULTS,
) -> Findings:
    """Apply the rules to a model, or to the history of a run.

    Args:
        subject: a model, a history, or a path or another object that `load` accepts.
        select: names of rules or prefixes of codes (`BN001`, `BN1`). If not empty, only these rules
            are applied.
        ignore: names or prefixes of codes of rules that are not applied.
        thresholds: the thresholds of the rules.

    Returns:
        The findings, sorted by severity (most serious first), rule and layer.

    Raises:
        BnstatError: an entry of `select` or `ignore` matches no rule, or the model or an array
            cannot be read.
    """
    selected = find_rules(select) if select else RULES
    ignored = find_rules(ignore)
    if not isinstance(subject, (Model, History)):
        from bnstat.loading import load

        subject = load(subject)
    register = HISTORY_RULES if isinstance(subject, History) else MODEL_RULES
    rules = [rule for rule in register if rule in selected and rule not in ignored]
    findings = [finding for rule in rules for finding in rule.find(rule, subject, thresholds)]
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Findings(findings, len(subject.layers), len(rules))


def find_rules(prefixes: Sequence[str]) -> list[Rule[Any]]:
    """Return the rules whose name equals a prefix, or whose code starts with a prefix."""
    codes: set[str] = set()
    for prefix in prefixes:
        matched = {
            rule.code
            for rule in RULES
            if rule.name == prefix.lower() or (prefix and rule.code.startswith(prefix.upper()))
        }
        if not matched:
            raise BnstatError(repr(prefix), "is not a name or code of a rule", "see check --rules")
        codes |= matched
    return [rule for rule in RULES if rule.code in codes]
