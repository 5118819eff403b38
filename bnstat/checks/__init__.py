"""What is wrong with a model's batch norm: rules, and the one function that applies them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from bnstat.checks import conversion, over_time, structure, updates, values
from bnstat.checks import values as gammas
from bnstat.checks.rule import SEVERITIES, Finding, Rule, Severity, Subject, Thresholds
from bnstat.checks.training_mode import Evidence, TrainedWith, trained_with
from bnstat.display import Displayed
from bnstat.errors import BnstatError
from bnstat.model import Model
from bnstat.run_history import History


class Findings(Displayed, list[Finding]):
    """Findings: the gravest first, then by rule, then in the order of the layers.

    Args:
        found: the findings.
        layers: the number of layers that were checked.
        rules: the number of rules that were applied.
    """

    def __init__(self, found: Iterable[Finding] = (), layers: int = 0, rules: int = 0) -> None:
        super().__init__(found)
        self.layers = layers
        self.rules = rules

    def where(self, keep: Callable[[Finding], bool]) -> Findings:
        """Return those findings for which `keep` is true, of the same check."""
        return Findings(filter(keep, self), self.layers, self.rules)


MODEL_RULES: Final[tuple[Rule[Model], ...]] = (
    updates.NEVER_UPDATED,
    updates.HALF_UPDATED,
    updates.HARDLY_WARMED_UP,
    values.NOT_FINITE,
    values.NEGATIVE_VARIANCE,
    values.COLLAPSED_VARIANCE,
    values.EXPLODING_SCALE,
    values.OUTLYING_VARIANCE,
    gammas.NEAR_ZERO_GAMMA,
    gammas.CONSTANT_OUTPUT,
    structure.MISSING_STATISTICS,
    structure.UNEQUAL_SHAPES,
    structure.COPIED_STATISTICS,
    updates.LOW_MOMENTUM,
    conversion.REWRITTEN,
    structure.UNDECIDED,
    updates.INFERENCE_MODE,
    updates.UNUSED_STATISTICS,
)
"""The register of the rules that look at one model, in the order of their codes."""

HISTORY_RULES: Final[tuple[Rule[History], ...]] = (
    over_time.FROZEN,
    over_time.DRIFTING,
    over_time.DIVERGING,
)
"""The register of the rules that look at the history of a run."""

RULES: Final[tuple[Rule[Any], ...]] = (*MODEL_RULES, *HISTORY_RULES)
"""All rules."""

_DEFAULTS: Final = Thresholds()


def check(
    subject: Model | History,
    *,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    thresholds: Thresholds = _DEFAULTS,
) -> Findings:
    """Apply the rules to a model, or to the history of a run.

    Args:
        subject: the model, or the history.
        select: names of rules or beginnings of codes (`BN001`, `BN1`); only these are applied.
            All are, where it is empty.
        ignore: as `select`; these are not applied.
        thresholds: where the rules draw their lines.

    Returns:
        The findings: the gravest first, then by rule, then in the order of the layers.

    Raises:
        BnstatError: `select` or `ignore` names no rule, or an array cannot be read.
    """
    chosen = {rule.code for rule in find_rules(select)} if select else {r.code for r in RULES}
    chosen -= {rule.code for rule in find_rules(ignore)}
    if isinstance(subject, History):
        found = _apply(HISTORY_RULES, subject, chosen, thresholds)
    else:
        found = _apply(MODEL_RULES, subject, chosen, thresholds)
    rules = HISTORY_RULES if isinstance(subject, History) else MODEL_RULES
    return Findings(
        sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)),
        len(subject.layers),
        len(chosen.intersection(rule.code for rule in rules)),
    )


def _apply(
    rules: Sequence[Rule[Subject]], subject: Subject, codes: set[str], thresholds: Thresholds
) -> list[Finding]:
    return [
        finding
        for rule in rules
        if rule.code in codes
        for finding in rule.find(rule, subject, thresholds)
    ]


def find_rules(prefixes: Sequence[str]) -> list[Rule[Any]]:
    """The rules whose name is one of `prefixes`, or whose code begins with one.

    Raises:
        BnstatError: one of them is the beginning of no code.
    """
    found = {}
    for prefix in prefixes:
        matching = [
            rule
            for rule in RULES
            if rule.name == prefix.lower() or (prefix and rule.code.startswith(prefix.upper()))
        ]
        if not matching:
            raise BnstatError(repr(prefix), "no rule has such a name or code", "see check --rules")
        found.update({rule.code: rule for rule in matching})
    return [rule for rule in RULES if rule.code in found]


__all__ = [
    "HISTORY_RULES",
    "MODEL_RULES",
    "RULES",
    "SEVERITIES",
    "Evidence",
    "Finding",
    "Findings",
    "Rule",
    "Severity",
    "Thresholds",
    "TrainedWith",
    "check",
    "find_rules",
    "trained_with",
]
