"""What drivers list and fetch, in whatever words they put it."""

from __future__ import annotations

import io
from datetime import datetime, timezone
from typing import Any

import pytest

from bnstat.errors import BnstatError, ChangedError
from bnstat.storage.remote.transport import HuggingFace, Piece, Stat, Transport, stat_of

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


class FileSystem:
    """A file system with one file of the given size, which may fail."""

    def __init__(self, error: Exception | None = None, size: int = 10, tag: str = "") -> None:
        self.error = error
        self.content = (CONTENT * 2)[:size]
        self.tag = tag
        self.opened: list[tuple[str, str, dict[str, Any]]] = []
        self.checked: list[str] = []

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error

    def ls(self, path: str, detail: bool) -> list[dict[str, Any]]:
        self._fail()
        return [{"name": f"{path}/x", "type": "file", "size": 10}]

    def find(self, path: str, detail: bool) -> dict[str, dict[str, Any]]:
        return {info["name"]: info for info in self.ls(path, detail)}

    def info(self, path: str) -> dict[str, Any]:
        self.checked.append(path)
        return {"name": path, "type": "file", "size": len(self.content), "ETag": self.tag}

    def invalidate_cache(self, path: str | None = None) -> None: ...

    def cat_ranges(
        self, paths: list[str], starts: list[int], ends: list[int], on_error: str
    ) -> list[Any]:
        assert on_error == "return"
        self._fail()
        return [self.content[start:end] for start, end in zip(starts, ends, strict=True)]

    def open(self, path: str, mode: str, **options: Any) -> io.BytesIO:
        self.opened.append((path, mode, options))
        self._fail()
        return io.BytesIO(self.content)


STAT = Stat("b/x", False, 10, 0.0, "")
PIECES = [Piece(STAT, 2, 5), Piece(STAT, 0, 10)]
KINDS = pytest.mark.parametrize("kind", [Transport, HuggingFace])


@KINDS
def test_pieces_are_returned_in_order(kind: type[Transport]) -> None:
    assert kind(FileSystem(), "s3").fetch(PIECES) == [b"234", CONTENT]


def test_nothing_is_read_ahead() -> None:
    fs = FileSystem()
    HuggingFace(fs, "hf").fetch(PIECES[:1])
    assert fs.opened == [("b/x", "rb", {"size": 10, "cache_type": "none"})]


@KINDS
def test_errors_name_the_file(kind: type[Transport]) -> None:
    with pytest.raises(BnstatError, match="s3://b/x: the server does not answer in time"):
        kind(FileSystem(TimeoutError()), "s3").fetch(PIECES)
    own = ChangedError("b", "changed", "try again")
    with pytest.raises(ChangedError) as caught:
        kind(FileSystem(own), "s3").fetch(PIECES)
    assert caught.value is own


@pytest.mark.parametrize("size", [4, 9, 11])
@pytest.mark.parametrize("piece", PIECES)
def test_a_file_of_another_size_has_changed(piece: Piece, size: int) -> None:
    with pytest.raises(ChangedError, match="s3://b/x: changed while it was read"):
        Transport(FileSystem(size=size), "s3").fetch([piece])


def test_a_partly_read_file_is_compared_with_its_listing() -> None:
    fs = FileSystem(tag='"new"')
    transport = Transport(fs, "s3")
    for tag in ("", "new", '"new"'):
        assert transport.fetch([Piece(STAT._replace(tag=tag), 2, 5)]) == [b"234"]
    old = STAT._replace(tag="old")
    with pytest.raises(ChangedError, match="s3://b/x: changed while it was read; try again later"):
        transport.fetch([Piece(old, 2, 5)])
    assert fs.checked == ["b/x"] * 4
    # One response contains all of it.
    assert transport.fetch([Piece(old, 0, 10)]) == [CONTENT]
    assert fs.checked == ["b/x"] * 4
    with pytest.raises(ChangedError):
        transport.check_unchanged([old])


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        (Stat("b/x", False, 10, 5.9, ""), True),
        (Stat("b/x", False, 10, 6.0, ""), False),
        (Stat("b/x", False, 11, 5.0, ""), False),
        (Stat("b/x", False, 10, 5.0, "tag"), True),
    ],
)
def test_times_are_compared_in_a_store_without_tags(other: Stat, is_same: bool) -> None:
    assert Stat("b/x", False, 10, 5.0, "").is_same_version(other) is is_same


def test_listings() -> None:
    transport = Transport(FileSystem(), "s3")
    assert transport.listing("b") == transport.tree("b") == [STAT]
    assert transport.canonical("b/x") == "b/x"
    assert transport.url("/b/x") == transport.url("b/x") == "s3://b/x"
    for absent in (FileNotFoundError(), NotADirectoryError()):
        assert Transport(FileSystem(absent), "s3").listing("b") is None
        assert Transport(FileSystem(absent), "s3").tree("b") == []
    with pytest.raises(BnstatError, match="s3://b: access is denied"):
        Transport(FileSystem(PermissionError()), "s3").listing("b")
