"""Lists of findings, which notebooks show as tables."""

from __future__ import annotations

from bnstat.checks.rule import Finding


class Findings(list[Finding]):
    """Findings: the gravest first, then by rule, then in the order of the layers."""

    def _repr_html_(self) -> str:
        """The table that a notebook shows."""
        from bnstat.output.notebook.tables import of_findings

        return of_findings(self)
