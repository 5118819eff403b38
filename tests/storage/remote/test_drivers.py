"""Drivers: which one a URL gets, with which options, and what is wrong if it cannot be used."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from bnstat.errors import BnstatError
from bnstat.storage.access import Access
from bnstat.storage.local import find
from bnstat.storage.stores import HuggingFace, RemoteStore, connect

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
    [
        ("hf", HuggingFace),
        *((s, RemoteStore) for s in ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")),
    ],
)
def test_schemes(asked: list[Any], scheme: str, kind: type[RemoteStore]) -> None:
    store, _ = connect(f"{scheme.upper()}://place/model", Access({"anon": True}))
    assert type(store) is kind
    ((called, options),) = asked
    assert called == scheme
    assert options["anon"] is True
    assert ("config_kwargs" in options) is scheme.startswith("s3")


def test_the_path_is_spelled_like_the_drivers() -> None:
    _, path = connect("memory://place/model", Access())
    assert path == "/place/model"


def test_options_of_s3(asked: list[Any]) -> None:
    connect("s3://bucket/a", Access({"config_kwargs": {}}))
    connect("s3://bucket/a", Access())
    own, (_, options) = asked
    assert own == ("s3", {"config_kwargs": {}})
    assert 0 < options["config_kwargs"]["connect_timeout"] <= 10
    assert 0 < options["config_kwargs"]["read_timeout"] <= 60


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        (
            "s3://key:word@bucket/a",
            ImportError("no s3fs"),
            "s3://bucket/a: the driver for s3:// is not installed; pip install s3fs",
        ),
        (
            "hf://me/model",
            ValueError("what?"),
            "hf://me/model: the driver does not accept this address or these storage options; "
            "pass the driver's options with --storage-option KEY=VALUE or environment variables",
        ),
        ("gs://a", TypeError("what?"), "gs://a: the driver does not accept this address or these"),
        ("az://a", TimeoutError(), "az://a: the server does not answer in time; try again later"),
    ],
)
def test_unusable_drivers(url, error, message, monkeypatch) -> None:
    def filesystem(scheme: str, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(fsspec, "filesystem", filesystem)
    monkeypatch.setattr(fsspec, "get_filesystem_class", lambda scheme: MemoryFileSystem)
    with pytest.raises(BnstatError) as caught:
        connect(url, Access())
    assert str(caught.value).startswith(message)


def test_unknown_schemes() -> None:
    message = "^gopher://host/a: gopher:// is not a supported scheme; URLs start with s3://, .*"
    with pytest.raises(BnstatError, match=f"{message}, memory://, http:// or https://$"):
        connect("gopher://host/a", Access())


class Blobs(MemoryFileSystem):  # type: ignore[misc]
    """A part of Azure's driver: each account has its own blobs."""

    cachable = False
    blobs: ClassVar[dict[str, list[str]]] = {}
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
        names = [name for name in self.blobs[self.account] if name.rpartition("/")[0] == path]
        if not names:
            raise FileNotFoundError(path)
        return [{"name": name, "type": "file", "size": 0} for name in names]

    def invalidate_cache(self, path: str | None = None) -> None: ...


@pytest.fixture
def blobs(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Replace the driver of `abfss://`; return the blobs of each account."""
    monkeypatch.setattr(fsspec, "filesystem", lambda scheme, **options: Blobs(**options))
    monkeypatch.setattr(fsspec, "get_filesystem_class", lambda scheme: Blobs)
    held = {"of-the-environment": ["c/run/neither"]}
    monkeypatch.setattr(Blobs, "blobs", held)
    return held


def test_accounts_in_urls(blobs: dict[str, list[str]]) -> None:
    """Two URLs may differ only in the account."""
    access = Access()
    blobs |= {name: [f"c/run/{name}"] for name in ("one", "two")}
    for name in ("one", "two", "one"):
        url = f"abfss://c@{name}.dfs.core.windows.net/run"
        folder = find(url, access).folder
        assert (folder.path, folder.names()) == (url, [name])
        # A scan opens models by the path of their folder.
        again = find(folder.path, access.knowing(folder.path, folder.entries())).folder
        assert again.names() == [name]
    assert len(access.drivers) == 2
    plain = find("abfss://c/run", access).folder
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
@pytest.mark.usefixtures("blobs")
def test_hosts_of_accounts(host: str, options: dict[str, str]) -> None:
    store, path = connect(f"abfss://c@{host}/run", Access())
    assert (store._fs.account, store._fs.options, path) == ("me", options, "c/run")
    assert store.url("c/run/m") == f"abfss://c@{host}/run/m"


@pytest.mark.usefixtures("blobs")
def test_another_account(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "abfss://c@me.dfs.core.windows.net/run"
    connect(url, Access({"account_name": "me"}))
    with pytest.raises(BnstatError, match="account_name is 'me' in the URL, but"):
        connect(url, Access({"account_name": "you"}))
    monkeypatch.setattr(Blobs, "connection_string", "AccountName=...")
    connect(url, Access())
    monkeypatch.setattr(Blobs, "service_client", SimpleNamespace(account_name="you"))
    with pytest.raises(BnstatError, match="'me', but the connection string is for 'you'"):
        connect(url, Access())
