"""What drivers list and fetch, in whatever words they put it."""

from __future__ import annotations

import io
from datetime import datetime, timezone
from typing import Any

import pytest

from bnstat.errors import BnstatError, ChangedError
from bnstat.storage.remote.transport import Piece, Stat, Threads, Transport, stat_of

NOON = datetime(2024, 5, 6, 12, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ({"LastModified": NOON}, NOON.timestamp()),
        ({"last_modified": NOON}, NOON.timestamp()),
        ({"updated": "2024-05-06T12:00:00Z"}, NOON.timestamp()),
        ({"updated": "2024-05-06T14:00:00+02:00"}, NOON.timestamp()),
        ({"mtime": 12.5}, 12.5),
        ({"modified": 12}, 12.0),
        ({"created": NOON}, NOON.timestamp()),
        ({"updated": "yesterday", "mtime": 3}, 3.0),
        ({"LastModified": None, "created": 4}, 4.0),
        ({"mtime": 1, "created": 2}, 1.0),
        ({}, 0.0),
    ],
)
def test_times(told: dict[str, Any], seconds: float) -> None:
    assert stat_of({"name": "a/b", "type": "file", **told}).modified == seconds


@pytest.mark.parametrize(
    ("info", "stat"),
    [
        ({"name": "a/b", "type": "file", "size": 5, "ETag": '"t"'}, ("a/b", False, 5, 0.0, '"t"')),
        ({"name": "a/b", "type": "file", "size": 5, "etag": "t"}, ("a/b", False, 5, 0.0, "t")),
        ({"name": "a/b", "type": "file", "generation": 7}, ("a/b", False, 0, 0.0, "7")),
        ({"name": "a/b", "type": "file", "ETag": "", "etag": "u"}, ("a/b", False, 0, 0.0, "u")),
        ({"name": "a/b/", "type": "directory", "size": None}, ("a/b", True, 0, 0.0, "")),
    ],
)
def test_entries(info: dict[str, Any], stat: tuple[Any, ...]) -> None:
    assert stat_of(info) == stat
    assert stat_of(info).name == "b"


CONTENT = b"0123456789"


class Files:
    """A file system of one file, which may fail."""

    def __init__(self, error: Exception | None = None, short: int = 0) -> None:
        self.error, self.short = error, short
        self.opened: list[tuple[str, str, dict[str, Any]]] = []

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error

    def ls(self, path: str, detail: bool) -> list[dict[str, Any]]:
        self._fail()
        return [{"name": f"{path}/x", "type": "file", "size": 10}]

    def cat_ranges(
        self, paths: list[str], starts: list[int], ends: list[int], on_error: str
    ) -> list[Any]:
        assert on_error == "return"
        self._fail()
        pairs = zip(starts, ends, strict=True)
        return [CONTENT[start : end - self.short] for start, end in pairs]

    def open(self, path: str, mode: str, **how: Any) -> io.BytesIO:
        self.opened.append((path, mode, how))
        self._fail()
        return io.BytesIO(CONTENT)


STAT = Stat("b/x", False, 10, 0.0, "")
PIECES = [Piece(STAT, 2, 5), Piece(STAT, 0, 10)]


@pytest.mark.parametrize("kind", [Transport, Threads])
def test_pieces_come_in_order(kind: type[Transport]) -> None:
    assert kind(Files(), "s3").fetch(PIECES) == [b"234", CONTENT]


def test_nothing_is_read_ahead() -> None:
    files = Files()
    Threads(files, "hf").fetch(PIECES[:1])
    assert files.opened == [("b/x", "rb", {"size": 10, "cache_type": "none"})]


@pytest.mark.parametrize("kind", [Transport, Threads])
def test_what_goes_wrong_is_told_of_the_file(kind: type[Transport]) -> None:
    with pytest.raises(BnstatError, match="s3://b/x: the server does not answer in time"):
        kind(Files(TimeoutError()), "s3").fetch(PIECES)
    own = ChangedError("b", "changed", "try again")
    with pytest.raises(ChangedError) as caught:
        kind(Files(own), "s3").fetch(PIECES)
    assert caught.value is own


def test_fewer_bytes_than_announced_are_a_change() -> None:
    with pytest.raises(ChangedError, match="s3://b/x: 2 bytes came instead of 3; try again"):
        Transport(Files(short=1), "s3").fetch(PIECES)


def test_listings() -> None:
    transport = Transport(Files(), "s3")
    assert transport.listing("b") == [STAT]
    assert transport.canonical("b/x") == "b/x"
    assert transport.url("/b/x") == transport.url("b/x") == "s3://b/x"
    for absent in (FileNotFoundError(), NotADirectoryError()):
        assert Transport(Files(absent), "s3").listing("b") is None
    with pytest.raises(BnstatError, match="s3://b: access is denied"):
        Transport(Files(PermissionError()), "s3").listing("b")
