"""What a scan tells of one model, in plain data that travels between machines."""

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
    """One model, or why it could not be read.

    Attributes:
        path: where it lies, as a path that other commands take.
        checkpoint: its name in that place, where it has one.
        step: its training step, where the name tells it.
        format: as in a model's JSON; None where it could not be read.
        writer: as in a model's JSON.
        layers: how many batch-norm layers it has.
        channels: how many channels these have together.
        worst: the gravest severity of the findings; None where nothing was found.
        rule: the code of the first rule of that severity.
        findings: rule's code -> number of findings.
        trouble: why it could not be read, in a word; None where it was.
        reason: the same in a sentence, without the path; empty where it was read.
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
        """The path, and the checkpoint's name where the path does not tell it."""
        if self.checkpoint is None or self.checkpoint in self.path.rpartition("/")[2]:
            return self.path
        return f"{self.path} {self.checkpoint}"

    def fails(self, fail_on: Severity | None) -> bool:
        """Whether it could not be read, or has findings of that severity or a graver one.

        Args:
            fail_on: `warning`, if None.
        """
        if self.worst is None:
            return self.trouble is not None
        return SEVERITIES.index(self.worst) <= SEVERITIES.index(fail_on or "warning")


def of_model(path: str, model: Model, findings: list[Finding]) -> Record:
    """The record of a model; the gravest of its findings come first."""
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


def of_error(path: str, error: BnstatError, **known: Any) -> Record:
    """The record of what could not be read."""
    troubles: list[Trouble] = [name for kind, name in _TROUBLES if isinstance(error, kind)]
    where = os.path.basename(error.where) if error.where.startswith(path) else error.where
    inside = "" if error.where == path else f"{where}: "
    hint = f"; {error.hint}" if error.hint else ""
    trouble: Trouble = troubles[0] if troubles else "unreadable"
    return Record(path, trouble=trouble, reason=f"{inside}{error.what}{hint}", **known)


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
