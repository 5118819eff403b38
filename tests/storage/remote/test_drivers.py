"""Which driver a URL gets, with which options, and what is said where it cannot be had."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bnstat.errors import BnstatError
from bnstat.storage.access import Access
from bnstat.storage.remote.drivers import connect
from bnstat.storage.remote.transport import S3, HuggingFace, Transport

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What fsspec is asked for: scheme and options."""
    calls = []
    memory = fsspec.filesystem("memory")

    def filesystem(scheme: str, **options: Any) -> Any:
        calls.append((scheme, options))
        return memory

    monkeypatch.setattr(fsspec, "filesystem", filesystem)
    return calls


@pytest.mark.parametrize(
    ("scheme", "kind"),
    [("s3", S3), ("s3a", S3), ("gs", Transport), ("gcs", Transport), ("az", Transport),
     ("abfs", Transport), ("abfss", Transport), ("hf", HuggingFace), ("memory", Transport)],
)  # fmt: skip
def test_schemes(asked: list[Any], scheme: str, kind: type[Transport]) -> None:
    transport, _ = connect(f"{scheme.upper()}://place/model", Access({"anon": True}))
    assert type(transport) is kind
    ((called, options),) = asked
    assert called == scheme
    assert options["anon"] is True
    assert ("config_kwargs" in options) is (kind is S3)


def test_the_path_is_in_the_drivers_words() -> None:
    _, path = connect("memory://place/model", Access())
    assert path == "/place/model"


def test_options_that_are_given_win(asked: list[Any]) -> None:
    connect("s3://bucket/a", Access({"config_kwargs": {}}))
    assert asked == [("s3", {"config_kwargs": {}})]


def test_patience_ends(asked: list[Any]) -> None:
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
            "s3://bucket/a: the driver for s3:// is not installed; pip install 'bnstat[s3]'",
        ),
        (
            "memory://a",
            ImportError("no fsspec"),
            "memory://a: the driver for memory:// is not installed; pip install 'fsspec'",
        ),
        (
            "hf://me/model",
            ValueError("what?"),
            "hf://me/model: the driver needs other storage options, or does not take this "
            "address; give what it needs with --storage-option KEY=VALUE, or in its environment",
        ),
        ("gs://a", TypeError("what?"), "gs://a: the driver needs other storage options"),
        ("az://a", TimeoutError(), "az://a: the server does not answer in time; try again later"),
    ],
)
def test_a_driver_that_cannot_be_had(
    url: str, error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsspec, "filesystem", raising(error))
    with pytest.raises(BnstatError) as caught:
        connect(url, Access())
    assert str(caught.value).startswith(message)


def test_a_scheme_that_nobody_knows() -> None:
    with pytest.raises(BnstatError) as caught:
        connect("gopher://host/a", Access())
    text = str(caught.value)
    assert text.startswith(
        "gopher://host/a: nothing is known of gopher://; URLs start with s3://, "
    )
    assert text.endswith(", memory://, http:// or https://")
