"""The result of a scan for one model, as plain data for transfer between machines."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from bnstat.checks import RULES, SEVERITIES, Finding, Severity
from bnstat.errors import (
    BnstatError,
    ChangedError,
    DamagedError,
    NotFoundError,
    UnknownFormatError,
    UnsupportedError,
)
from bnstat.model import Model

Trouble = Literal[
    "damaged", "missing", "unsupported", "unknown", "changed", "unreadable", "memory", "died", "bug"
]

_TROUBLES: Final[tuple[tuple[type[BnstatError], Trouble], ...]] = (
    (DamagedError, "damaged"),
    (NotFoundError, "missing"),
    (UnsupportedError, "unsupported"),
    (UnknownFormatError, "unknown"),
    (ChangedError, "changed"),
)


@dataclass(frozen=True, slots=True)
class Record:
    """A model, or the reason why it could not be read.

    Attributes:
        path: the model's path or URL, which other commands accept.
        checkpoint: the name of the checkpoint at the path, if any.
        step: the training step, if the name contains it.
        format: as in the JSON of a model; None if the model could not be read.
        writer: as in the JSON of a model.
        layers: the number of batch-norm layers.
        channels: the number of channels of all layers.
        worst: the most serious severity of the findings, if any.
        rule: the code of the first rule with that severity.
        findings: code of a rule -> number of findings.
        trouble: the kind of read error, in one word; None if the model was read.
        reason: the error message without the path; empty if the model was read.
    """

    path: str
    checkpoint: str | None = None
    step: int | None = None
    format: str | None = None
    writer: str | None = None
    layers: int = 0
    channels: int = 0
    worst: Severity | None = None
    rule: str | None = None
    findings: Mapping[str, int] = field(default_factory=dict)
    trouble: Trouble | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        """The path, followed by the checkpoint's name if the path does not contain it."""
        if self.checkpoint is None or self.checkpoint in self.path.rpartition("/")[2]:
            return self.path
        return f"{self.path} {self.checkpoint}"

    def fails(self, fail_on: Severity | None) -> bool:
        """Return True if the model could not be read, or has a finding of at least this severity.

        Args:
            fail_on: the severity; None for `warning`.
        """
        if self.worst is None:
            return self.trouble is not None
        return SEVERITIES.index(self.worst) <= SEVERITIES.index(fail_on or "warning")


def of_model(path: str, model: Model, findings: list[Finding]) -> Record:
    """Return the record of a model; the most serious findings come first."""
    source = model.source
    first = findings[0] if findings else None
    return Record(
        path=path,
        checkpoint=source.checkpoint,
        step=source.step,
        format=source.format,
        writer=source.writer,
        layers=len(model),
        channels=sum(layer.channels or 0 for layer in model),
        worst=first.severity if first is not None else None,
        rule=first.rule if first is not None else None,
        findings=dict(Counter(finding.rule for finding in findings)),
    )


def of_error(path: str, error: BnstatError, **fields: Any) -> Record:
    """Return the record of a model that could not be read."""
    troubles: list[Trouble] = [name for kind, name in _TROUBLES if isinstance(error, kind)]
    where = os.path.basename(error.where) if error.where.startswith(path) else error.where
    inside = "" if error.where == path else f"{where}: "
    hint = f"; {error.hint}" if error.hint else ""
    trouble: Trouble = troubles[0] if troubles else "unreadable"
    return Record(path, trouble=trouble, reason=f"{inside}{error.what}{hint}", **fields)


_NAMES: Final = {rule.code: rule.name for rule in RULES}


@dataclass(slots=True)
class Tally:
    """Counts of records, without the records.

    Attributes:
        fail_on: the least serious severity that makes a model fail.
        models: all records.
        unread: models that could not be read.
        without: models without batch norm.
        failed: models that make the scan fail.
        worst: severity -> models whose most serious finding has this severity.
        rules: code of a rule -> models with findings of the rule.
        troubles: kind of read error -> models.
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
        """Yield the records, and count them."""
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
        """The number of models without a finding."""
        return self.models - self.unread - self.without - sum(self.worst.values())

    @property
    def code(self) -> int:
        """The exit code: 2 if no model could be read, 1 if a model fails or none exists, else 0."""
        if self.models and self.unread == self.models:
            return 2
        return int(self.failed > 0 or not self.models)

    def summary(self) -> str:
        """Return a line with the counts of the models."""
        parts = [
            (self.sound, "sound"),
            *((self.worst[severity], f"with {severity}s") for severity in SEVERITIES[:2]),
            (self.worst["info"], "with info"),
            (self.without, "without batch norm"),
            (self.unread, "not readable"),
        ]
        models = "1 model" if self.models == 1 else f"{self.models:,} models"
        counts = ", ".join(f"{count:,} {what}" for count, what in parts if count)
        return f"{models}: {counts}" if counts else "no model found"

    def by_finding(self) -> list[tuple[str, str, int]]:
        """Return code, name and number of models for each rule with findings."""
        return [(code, name, self.rules[code]) for code, name in _NAMES.items() if self.rules[code]]

    def by_trouble(self) -> list[tuple[str, int]]:
        """Return the kinds of read errors and the numbers of models, most frequent first."""
        return self.troubles.most_common()
