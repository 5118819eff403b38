"""Lists of findings, which notebooks show as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bnstat.checks.rule import Finding
from bnstat.display import Displayed


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
