"""The counts of a scan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from bnstat.checks import RULES, SEVERITIES, Severity
from bnstat.scanning.record import Record

_NAMES: Final = {rule.code: rule.name for rule in RULES}


@dataclass(slots=True)
class Tally:
    """What was told so far; it grows with the rules, not with the models.

    Attributes:
        fail_on: from which severity on a model fails.
        models: all records.
        unread: those that could not be read.
        without: those without batch norm.
        failed: those that make the scan fail.
        worst: severity -> the models whose gravest finding has it.
        rules: rule's code -> the models with such findings.
        troubles: trouble -> the models with it.
    """

    fail_on: Severity | None = None
    models: int = 0
    unread: int = 0
    without: int = 0
    failed: int = 0
    worst: Counter[Severity] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)

    def counting(self, records: Iterable[Record]) -> Iterator[Record]:
        """Pass records on, and count them."""
        for record in records:
            self.models += 1
            self.failed += record.fails(self.fail_on)
            if record.trouble is not None:
                self.unread += 1
                self.troubles[record.trouble] += 1
            elif not record.layers and record.worst is None:
                self.without += 1
            if record.worst is not None:
                self.worst[record.worst] += 1
            self.rules.update(record.findings.keys())
            yield record

    @property
    def sound(self) -> int:
        """The models in which nothing was found."""
        return self.models - self.unread - self.without - sum(self.worst.values())

    @property
    def code(self) -> int:
        """The exit code: 0, or 1 where a model fails or there is none, or 2 if none was read."""
        if self.models and self.unread == self.models:
            return 2
        return int(self.failed > 0 or not self.models)

    def summary(self) -> str:
        """The counts of the models in a line."""
        parts = [
            (self.sound, "sound"),
            *((self.worst[severity], f"with {severity}s") for severity in SEVERITIES[:2]),
            (self.worst["info"], "with info"),
            (self.without, "without batch norm"),
            (self.unread, "not readable"),
        ]
        models = "1 model" if self.models == 1 else f"{self.models:,} models"
        told = ", ".join(f"{count:,} {what}" for count, what in parts if count)
        return f"{models}: {told}" if told else "no model found"

    def by_finding(self) -> list[tuple[str, str, int]]:
        """Code, name and number of models of each rule that found something."""
        return [(code, name, self.rules[code]) for code, name in _NAMES.items() if self.rules[code]]

    def by_trouble(self) -> list[tuple[str, int]]:
        """The troubles, the commonest first."""
        return self.troubles.most_common()
