"""The result of a scan for one model, counts of results, and the results of earlier scans."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from bnstat import errors
from bnstat.checks import RULES, SEVERITIES, Finding, Severity
from bnstat.errors import LONGEST_WHERE, BnstatError, printable
from bnstat.model import Model
from bnstat.scanning.walk import Candidate
from bnstat.storage.access import is_url

Trouble = Literal[
    "damaged", "missing", "unsupported", "unknown", "changed", "unreadable", "memory", "died", "bug"
]

_TROUBLES: Final[Mapping[type[BnstatError], Trouble]] = {
    errors.DamagedError: "damaged",
    errors.NotFoundError: "missing",
    errors.UnsupportedError: "unsupported",
    errors.UnknownFormatError: "unknown",
    errors.ChangedError: "changed",
}


@dataclass(frozen=True, slots=True)
class Record:
    """A scan's report of one model, as plain data that can be sent to another machine.

    Attributes:
        format: as `Source.format`; None if the model could not be read.
        worst: the most serious severity of the findings, if any.
        rule: the code of the rule of the first finding with the severity `worst`.
        findings: code of a rule -> number of findings.
        trouble: the kind of read error; None if the model was read.
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
        """Return True if reading failed, or `worst` is at least `fail_on` (default: `warning`)."""
        if self.worst is None:
            return self.trouble is not None
        return SEVERITIES.index(self.worst) <= SEVERITIES.index(fail_on or "warning")


def of_model(path: str, model: Model, findings: list[Finding]) -> Record:
    """Return the record of a model; `findings` must start with the most serious finding."""
    source = model.source
    worst, rule = (findings[0].severity, findings[0].rule) if findings else (None, None)
    return Record(
        path=path,
        checkpoint=source.checkpoint,
        step=source.step,
        format=source.format,
        writer=source.writer,
        layers=len(model),
        channels=model.channels,
        worst=worst,
        rule=rule,
        findings=dict(Counter(finding.rule for finding in findings)),
    )


def of_error(path: str, error: BnstatError, **fields: Any) -> Record:
    """Return the record of an unreadable model; `fields` are further attributes of the record."""
    trouble: Trouble = _TROUBLES.get(type(error), "unreadable")
    where = os.path.basename(error.where) if error.where.startswith(path) else error.where
    inside = "" if error.where == path else f"{printable(where, LONGEST_WHERE)}: "
    hint = f"; {error.hint}" if error.hint else ""
    return Record(path, trouble=trouble, reason=f"{inside}{error.what}{hint}", **fields)


@dataclass(slots=True)
class Tally:
    """Counts of the models in a scan.

    Attributes:
        fail_on: the least serious severity that makes a model fail.
        without: the number of models without batch norm.
        failed: the number of models that make the scan fail.
        worst: severity -> number of models whose most serious finding has this severity.
        rules: code of a rule -> number of models with findings of the rule.
        troubles: kind of read error -> number of models.
    """

    fail_on: Severity | None = None
    models: int = 0
    without: int = 0
    failed: int = 0
    worst: Counter[Severity] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)

    def counting(self, records: Iterable[Record]) -> Iterator[Record]:
        """Count each record, then yield it."""
        for record in records:
            self.models += 1
            self.failed += record.fails(self.fail_on)
            if record.trouble is not None:
                self.troubles[record.trouble] += 1
            elif not record.layers and record.worst is None:
                self.without += 1
            if record.worst is not None:
                self.worst[record.worst] += 1
            self.rules.update(record.findings.keys())
            yield record

    @property
    def unread(self) -> int:
        return sum(self.troubles.values())

    @property
    def code(self) -> int:
        """The exit code: 2 if no model could be read, 1 if a model fails or none exists, else 0."""
        if self.models and self.unread == self.models:
            return 2
        return int(self.failed > 0 or not self.models)

    def summary(self) -> str:
        """Return one line, such as `3 models: 2 sound, 1 with errors`."""
        others = self.unread + self.without + self.worst.total()
        parts = [
            (self.models - others, "sound"),
            *((self.worst[severity], f"with {severity}s") for severity in SEVERITIES[:2]),
            (self.worst["info"], "with info"),
            (self.without, "without batch norm"),
            (self.unread, "not readable"),
        ]
        models = "1 model" if self.models == 1 else f"{self.models:,} models"
        counts = ", ".join(f"{count:,} {what}" for count, what in parts if count)
        return f"{models}: {counts}" if counts else "no model found"

    def by_finding(self) -> list[tuple[str, str, int]]:
        """Return (code, name, number of models) for each rule with findings."""
        return [(rule.code, rule.name, count) for rule in RULES if (count := self.rules[rule.code])]


_APPLICATION_ID: Final = 0x626E7374  # SQLite's application_id of state files: "bnst"
_LOCK_SECONDS: Final = 60.0
_LASTING: Final = (None, "damaged", "unsupported", "unknown")
"""The values of `Record.trouble` that stay the same as long as the file is unchanged."""

_TABLE: Final = """
create table if not exists models (
    path blob primary key,      -- absolute, in the bytes of the system, or a URL
    signature text not null,    -- of the names, sizes and times of the model's files
    how text not null,          -- of bnstat's version and the options of the scan
    records text not null       -- a JSON list of records without their paths
) without rowid
"""


class State:
    """A SQLite file with the records of earlier scans, so that a scan reads only changed models.

    Several scans may use one file at the same time: each batch is one transaction.
    `options` is a hash of bnstat's version, the rules and the scan's options.
    """

    def __init__(self, path: str, options: str) -> None:
        import sqlite3  # Only scans with a state file need it.

        self._path = path
        self._options = options
        self._database_error = sqlite3.Error
        with self._errors():
            self._base = sqlite3.connect(path, timeout=_LOCK_SECONDS, isolation_level=None)
            self._base.execute("begin immediate")
            (application,) = self._base.execute("pragma application_id").fetchone()
            (tables,) = self._base.execute("select count(*) from sqlite_master").fetchone()
            if application != _APPLICATION_ID and (application or tables):
                self._base.execute("rollback")
                hint = "pass another file to --state"
                raise BnstatError(path, "is a database of another program", hint)
            self._base.execute(f"pragma application_id = {_APPLICATION_ID}")
            self._base.execute(_TABLE)
            self._base.execute("commit")
            self._base.execute("pragma synchronous = normal")
            self._base.execute("create temp table seen (path blob primary key) without rowid")
            # This fails if another scan just began. The file keeps the mode, so once is enough.
            with suppress(sqlite3.Error):
                self._base.execute("pragma journal_mode = wal")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._database_error as error:
            what = f"the results of the scan cannot be stored: {error}"
            raise BnstatError(self._path, what) from error

    def records_of(self, candidate: Candidate) -> list[Record] | None:
        """Return the stored records of a candidate; None for a new or changed candidate."""
        key = _key(candidate.path)
        with self._errors():
            self._base.execute("insert or ignore into temp.seen values (?)", (key,))
            row = self._base.execute(
                "select records from models where path = ? and signature = ? and how = ?",
                (key, candidate.signature, self._options),
            ).fetchone()
        if row is None or not candidate.signature:
            return None
        return [Record(candidate.path, **fields) for fields in json.loads(row[0])]

    def keep(self, examined: Iterable[tuple[Candidate, list[Record]]]) -> None:
        """Store the records of candidates; omit a candidate with an error that may be temporary."""
        rows = []
        for candidate, records in examined:
            if candidate.signature and all(record.trouble in _LASTING for record in records):
                fields = [asdict(record) for record in records]
                for each in fields:
                    del each["path"]
                row = (_key(candidate.path), candidate.signature, self._options, json.dumps(fields))
                rows.append(row)
        with self._errors():
            self._base.execute("begin immediate")
            self._base.executemany("insert or replace into models values (?, ?, ?, ?)", rows)
            self._base.execute("commit")

    def forget_others(self, roots: Iterable[str]) -> None:
        """Delete the records below these roots, except records of models passed to `records_of`."""
        with self._errors():
            for root in roots:
                top = _key(root).rstrip(b"/") + b"/"
                self._base.execute(
                    "delete from models where path > ? and path < ? and path not in temp.seen",
                    (top, top[:-1] + b"0"),
                )

    def close(self) -> None:
        self._base.close()


def _key(path: str) -> bytes:
    return os.fsencode(path if is_url(path) else os.path.abspath(path))
