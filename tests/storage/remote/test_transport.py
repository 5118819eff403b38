"""fsspec's drivers: which one a URL gets, what it lists, and what it fetches."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from bnstat.errors import BnstatError, ChangedError
from bnstat.storage.access import Access
from bnstat.storage.local import find
from bnstat.storage.remote.transport import (
    Azure,
    HuggingFace,
    Piece,
    Stat,
    Transport,
    connect,
    stat_of,
)

NOON = datetime(2024, 5, 6, 12, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("info", "seconds"),
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
def test_times(info: dict[str, Any], seconds: float) -> None:
    assert stat_of({"name": "a/b", "type": "file", **info}).modified == seconds


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
        self.is_cached = True

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error

    def ls(self, path: str, detail: bool) -> list[dict[str, Any]]:
        self._fail()
        return [{"name": f"{path}/x", "type": "file", "size": 10}]

    def find(self, path: str, detail: bool) -> dict[str, dict[str, Any]]:
        return {info["name"]: info for info in self.ls(path, detail)}

    def info(self, path: str) -> dict[str, Any]:
        assert not self.is_cached
        self.checked.append(path)
        return {"name": path, "type": "file", "size": len(self.content), "ETag": self.tag}

    def invalidate_cache(self) -> None:
        self.is_cached = False

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
    assert transport.fetch([Piece(STAT, 0, 10)]) == [CONTENT]
    assert fs.is_cached
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
        (Stat("b/x", False, 10, 0.0, "tag"), True),
        (Stat("b/x", False, 11, 0.0, "tag"), False),
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


fsspec = pytest.importorskip("fsspec")
MemoryFileSystem = fsspec.get_filesystem_class("memory")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Record the scheme and the options that fsspec is asked for."""
    calls = []
    memory = fsspec.filesystem("memory")

    def filesystem(scheme: str, **options: Any) -> Any:
        calls.append((scheme, options))
        return memory

    monkeypatch.setattr(fsspec, "filesystem", filesystem)
    monkeypatch.setattr(fsspec, "get_filesystem_class", lambda scheme: type(memory))
    return calls


@pytest.mark.parametrize(
    ("scheme", "kind"),
    [("s3", Transport), ("s3a", Transport), ("gs", Transport), ("gcs", Transport),
     ("az", Azure), ("abfs", Azure), ("abfss", Azure), ("hf", HuggingFace), ("memory", Transport)],
)  # fmt: skip
def test_schemes(asked: list[Any], scheme: str, kind: type[Transport]) -> None:
    transport, _ = connect(f"{scheme.upper()}://place/model", Access({"anon": True}))
    assert type(transport) is kind
    ((called, options),) = asked
    assert called == scheme
    assert options["anon"] is True
    assert ("config_kwargs" in options) is scheme.startswith("s3")


def test_the_path_is_spelled_like_the_drivers() -> None:
    _, path = connect("memory://place/model", Access())
    assert path == "/place/model"


def test_the_users_options_win(asked: list[Any]) -> None:
    connect("s3://bucket/a", Access({"config_kwargs": {}}))
    assert asked == [("s3", {"config_kwargs": {}})]


def test_timeouts(asked: list[Any]) -> None:
    connect("s3://bucket/a", Access())
    ((_, options),) = asked
    assert 0 < options["config_kwargs"]["connect_timeout"] <= 10
    assert 0 < options["config_kwargs"]["read_timeout"] <= 60


def raising(error: Exception) -> Callable[..., Any]:
    def filesystem(scheme: str, **options: Any) -> Any:
        raise error

    return filesystem


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        (
            "s3://key:word@bucket/a",
            ImportError("no s3fs"),
            "s3://bucket/a: the driver for s3:// is not installed; pip install s3fs",
        ),
        (
            "memory://a",
            ImportError("no fsspec"),
            "memory://a: the driver for memory:// is not installed; pip install fsspec",
        ),
        (
            "hf://me/model",
            ValueError("what?"),
            "hf://me/model: the driver does not accept this address or these storage options; "
            "pass what it needs with --storage-option KEY=VALUE, or in its environment",
        ),
        ("gs://a", TypeError("what?"), "gs://a: the driver does not accept this address or these"),
        ("az://a", TimeoutError(), "az://a: the server does not answer in time; try again later"),
    ],
)
def test_unusable_drivers(
    url: str, error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsspec, "filesystem", raising(error))
    monkeypatch.setattr(fsspec, "get_filesystem_class", lambda scheme: MemoryFileSystem)
    with pytest.raises(BnstatError) as caught:
        connect(url, Access())
    assert str(caught.value).startswith(message)


def test_unknown_schemes() -> None:
    with pytest.raises(BnstatError) as caught:
        connect("gopher://host/a", Access())
    text = str(caught.value)
    assert text.startswith(
        "gopher://host/a: gopher:// is not a supported scheme; URLs start with s3://, "
    )
    assert text.endswith(", memory://, http:// or https://")


class Blobs(MemoryFileSystem):  # type: ignore[misc]
    """A part of Azure's driver: each account has its own blobs."""

    cachable = False
    accounts: ClassVar[dict[str, dict[str, bytes]]] = {}
    connection_string: str | None = None

    def __init__(self, account_name: str = "of-the-environment", **options: str) -> None:
        super().__init__()
        self.options = options
        self.account = account_name

    @property
    def service_client(self) -> SimpleNamespace:
        return SimpleNamespace(account_name=self.account)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        container, _, blob = path.partition("://")[2].partition("/")
        return f"{container.partition('@')[0]}/{blob}" if "://" in path else path

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        held = {
            name: content
            for name, content in self.accounts[self.account].items()
            if name.rpartition("/")[0] == path
        }
        if not held:
            raise FileNotFoundError(path)
        return [
            {"name": name, "type": "file", "size": len(content)} for name, content in held.items()
        ]

    def invalidate_cache(self, path: str | None = None) -> None: ...


@pytest.fixture
def accounts(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, bytes]]:
    """Replace the driver of `abfss://`; return the blobs of each account."""
    monkeypatch.setattr(fsspec, "filesystem", lambda scheme, **options: Blobs(**options))
    monkeypatch.setattr(fsspec, "get_filesystem_class", lambda scheme: Blobs)
    held: dict[str, dict[str, bytes]] = {"of-the-environment": {"c/run/neither": b""}}
    monkeypatch.setattr(Blobs, "accounts", held)
    return held


def test_accounts_in_urls(accounts: dict[str, dict[str, bytes]]) -> None:
    """Two URLs may differ only in the account."""
    access = Access()
    for name in ("one", "two"):
        accounts[name] = {f"c/run/{name}": b""}
    for name in ("one", "two", "one"):
        url = f"abfss://c@{name}.dfs.core.windows.net/run"
        folder = find(url, access).folder
        assert folder is not None
        assert folder.path == url
        assert folder.names() == [name]
        # A scan opens models by the path of their folder.
        again = find(folder.path, access.knowing(folder.path, folder.entries())).folder
        assert again is not None
        assert again.names() == [name]
    assert len(access.transports) == 2
    plain = find("abfss://c/run", access).folder
    assert plain is not None
    assert (plain.path, plain.names()) == ("abfss://c/run", ["neither"])


@pytest.mark.parametrize(
    ("host", "options"),
    [
        ("me.dfs.core.windows.net", {}),
        ("me.blob.core.windows.net", {}),
        ("me", {}),
        ("me.dfs.core.chinacloudapi.cn", {"account_host": "me.blob.core.chinacloudapi.cn"}),
    ],
)
def test_hosts_of_accounts(
    host: str, options: dict[str, str], accounts: dict[str, dict[str, bytes]]
) -> None:
    transport, path = connect(f"abfss://c@{host}/run", Access())
    assert (transport._fs.account, transport._fs.options, path) == ("me", options, "c/run")
    assert transport.url("c/run/m") == f"abfss://c@{host}/run/m"


def test_options_for_another_account(accounts: dict[str, dict[str, bytes]]) -> None:
    url = "abfss://c@me.dfs.core.windows.net/run"
    connect(url, Access({"account_name": "me"}))
    with pytest.raises(BnstatError, match="account_name 'me', but the storage options name an"):
        connect(url, Access({"account_name": "you"}))


def test_a_connection_string_for_another_account(
    accounts: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "abfss://c@me.dfs.core.windows.net/run"
    monkeypatch.setattr(Blobs, "connection_string", "AccountName=...")
    connect(url, Access())
    monkeypatch.setattr(Blobs, "service_client", SimpleNamespace(account_name="you"))
    with pytest.raises(BnstatError, match="'me', but the connection string is for 'you'"):
        connect(url, Access())
