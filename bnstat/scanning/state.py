"""What was scanned before, in a SQLite file: only what changed since is opened again.

Several scans may use one file at a time: each result is written in a transaction of its own, and
who finds the file locked waits.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Final

from bnstat.errors import BnstatError
from bnstat.scanning.record import Record
from bnstat.scanning.walk import Candidate
from bnstat.storage.access import is_url

_ID: Final = 0x626E7374
"""SQLite's application_id of these files: "bnst"."""

_PATIENCE: Final = 60.0
_LASTING: Final = (None, "damaged", "unsupported", "unknown")
"""The troubles that stay while the file does."""

_TABLE: Final = """
create table if not exists models (
    path blob primary key,      -- absolute, in the system's bytes, or a URL
    signature text not null,    -- of the model's files: names, sizes, times
    how text not null,          -- of bnstat, its rules and how they were applied
    records text not null       -- a JSON list, without the path as it was typed
) without rowid
"""


class State:
    """The records of earlier scans.

    Args:
        path: the file; it is made where there is none.
        how: a text that differs where bnstat, its rules or their settings do.

    Raises:
        BnstatError: it is another kind of file, damaged, or cannot be written.
    """

    def __init__(self, path: str, how: str) -> None:
        self._path = path
        self._how = how
        with self._errors():
            self._base = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
            self._open()

    def _open(self) -> None:
        self._base.execute("begin immediate")
        (mark,) = self._base.execute("pragma application_id").fetchone()
        (tables,) = self._base.execute("select count(*) from sqlite_master").fetchone()
        if mark != _ID and (mark or tables):
            self._base.execute("rollback")
            raise BnstatError(self._path, "is a database of something else")
        self._base.execute(f"pragma application_id = {_ID}")
        self._base.execute(_TABLE)
        self._base.execute("commit")
        self._base.execute("pragma synchronous = normal")
        self._base.execute("create temp table met (path blob primary key) without rowid")
        # Another scan that has just begun may be in the way; the mode is kept in the file.
        with suppress(sqlite3.OperationalError):
            self._base.execute("pragma journal_mode = wal")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise BnstatError(
                self._path, f"cannot be used to keep what was scanned: {error}"
            ) from error

    def known(self, candidate: Candidate) -> list[Record] | None:
        """The records of a candidate that has not changed since; None where it must be opened."""
        key = _key(candidate.path)
        with self._errors():
            self._base.execute("insert or ignore into temp.met values (?)", (key,))
            row = self._base.execute(
                "select records from models where path = ? and signature = ? and how = ?",
                (key, candidate.signature, self._how),
            ).fetchone()
        if row is None or not candidate.signature:
            return None
        return [Record(path=candidate.path, **told) for told in json.loads(row[0])]

    def keep(self, examined: Iterable[tuple[Candidate, list[Record]]]) -> None:
        """Keep the records of some candidates, but for what another try may change."""
        rows = [
            (_key(candidate.path), candidate.signature, self._how, _told(records))
            for candidate, records in examined
            if candidate.signature and all(record.trouble in _LASTING for record in records)
        ]
        with self._errors():
            self._base.execute("begin immediate")
            self._base.executemany("insert or replace into models values (?, ?, ?, ?)", rows)
            self._base.execute("commit")

    def forget_others(self, roots: Iterable[str]) -> None:
        """Forget what is below these roots no more: what `known` was not asked for."""
        with self._errors():
            for root in roots:
                top = _key(root).rstrip(b"/") + b"/"
                self._base.execute(
                    "delete from models where path > ? and path < ? and path not in temp.met",
                    (top, top[:-1] + b"0"),
                )

    def close(self) -> None:
        """Close the file."""
        self._base.close()


def _key(path: str) -> bytes:
    return os.fsencode(path if is_url(path) else os.path.abspath(path))


def _told(records: list[Record]) -> str:
    told = [asdict(record) for record in records]
    for each in told:
        del each["path"]
    return json.dumps(told)
