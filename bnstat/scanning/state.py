"""The records of earlier scans, in a SQLite file, so that a scan reads only changed models.

Several scans may use one file at a time: each batch is written in its own transaction, and a scan
that finds the file locked waits.
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

_APPLICATION_ID: Final = 0x626E7374
"""SQLite's application_id of state files: "bnst"."""

_LOCK_SECONDS: Final = 60.0
_LASTING: Final = (None, "damaged", "unsupported", "unknown")
"""The kinds of read errors that persist as long as the file is unchanged."""

_TABLE: Final = """
create table if not exists models (
    path blob primary key,      -- absolute, in the bytes of the system, or a URL
    signature text not null,    -- of the names, sizes and times of the model's files
    how text not null,          -- of bnstat's version and the options of the scan
    records text not null       -- a JSON list of records without their paths
) without rowid
"""


class State:
    """The records of earlier scans.

    Args:
        path: the file, created if it does not exist.
        options: a string that changes with bnstat's version, its rules and the scan's options.

    Raises:
        BnstatError: the file is not a state file, damaged, or cannot be written.
    """

    def __init__(self, path: str, options: str) -> None:
        self._path = path
        self._options = options
        with self._errors():
            self._base = sqlite3.connect(path, timeout=_LOCK_SECONDS, isolation_level=None)
            self._open()

    def _open(self) -> None:
        self._base.execute("begin immediate")
        (application,) = self._base.execute("pragma application_id").fetchone()
        (tables,) = self._base.execute("select count(*) from sqlite_master").fetchone()
        if application != _APPLICATION_ID and (application or tables):
            self._base.execute("rollback")
            raise BnstatError(self._path, "is a database of another program")
        self._base.execute(f"pragma application_id = {_APPLICATION_ID}")
        self._base.execute(_TABLE)
        self._base.execute("commit")
        self._base.execute("pragma synchronous = normal")
        self._base.execute("create temp table seen (path blob primary key) without rowid")
        # This fails if another scan just began. The file keeps the mode, so once is enough.
        with suppress(sqlite3.OperationalError):
            self._base.execute("pragma journal_mode = wal")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise BnstatError(self._path, f"cannot keep the results of a scan: {error}") from error

    def records_of(self, candidate: Candidate) -> list[Record] | None:
        """Return the records of a candidate, or None if it has to be read."""
        key = _key(candidate.path)
        with self._errors():
            self._base.execute("insert or ignore into temp.seen values (?)", (key,))
            row = self._base.execute(
                "select records from models where path = ? and signature = ? and how = ?",
                (key, candidate.signature, self._options),
            ).fetchone()
        if row is None or not candidate.signature:
            return None
        return [Record(path=candidate.path, **fields) for fields in json.loads(row[0])]

    def keep(self, examined: Iterable[tuple[Candidate, list[Record]]]) -> None:
        """Store the records of some candidates, except errors that may be temporary."""
        rows = [
            (_key(candidate.path), candidate.signature, self._options, _to_json(records))
            for candidate, records in examined
            if candidate.signature and all(record.trouble in _LASTING for record in records)
        ]
        with self._errors():
            self._base.execute("begin immediate")
            self._base.executemany("insert or replace into models values (?, ?, ?, ?)", rows)
            self._base.execute("commit")

    def forget_others(self, roots: Iterable[str]) -> None:
        """Delete the models below these roots for which `records_of` was not called."""
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


def _to_json(records: list[Record]) -> str:
    fields = [asdict(record) for record in records]
    for record in fields:
        del record["path"]
    return json.dumps(fields)
