"""URLs: how they are recognized and printed, limits on downloads, and errors of drivers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bnstat.errors import BnstatError, ChangedError, DamagedError, NotFoundError
from bnstat.storage.access import Access, is_url, redact, refuse_url, scheme_of, to_bnstat_error


@pytest.mark.parametrize(
    ("path", "scheme"),
    [
        ("s3://bucket/model", "s3"),
        ("HTTPS://host/m.h5", "https"),
        ("C:\\models\\m.h5", None),
        ("C://models/m.h5", None),
        ("models/m.h5", None),
        ("models/s3://x", None),
        ("zip::s3://x", None),
        ("", None),
    ],
)
def test_schemes(path: str, scheme: str | None) -> None:
    assert scheme_of(path) == scheme
    assert is_url(path) == (scheme is not None)


@pytest.mark.parametrize(
    ("path", "printed"),
    [
        ("https://me:word@host:80/a/b?X-Amz-Signature=word#word", "https://host:80/a/b"),
        ("s3://key:word@bucket/a", "s3://bucket/a"),
        ("s3://bucket/a?versionId=word", "s3://bucket/a"),
        ("s3://bucket/what?/a", "s3://bucket/what?/a"),
        ("abfs://container@account/a", "abfs://container@account/a"),
        ("hf://me/model@main/a", "hf://me/model@main/a"),
        ("runs/a?b=word", "runs/a?b=word"),
    ],
)
def test_printed_urls_contain_no_secrets(path: str, printed: str) -> None:
    assert redact(path) == printed


def test_urls_are_refused_where_files_on_disk_are_needed() -> None:
    refuse_url("runs/model", "a folder is needed")
    with pytest.raises(BnstatError, match=r"^s3://bucket/a: is a URL, and a folder is needed"):
        refuse_url("s3://key:word@bucket/a", "a folder is needed")


def test_downloads_are_counted_together() -> None:
    access = Access(max_download=1000)
    access.take("a", 600)
    message = r"b: .* limit of 1 kB .*600 bytes downloaded, 401 bytes more"
    with pytest.raises(BnstatError, match=message):
        access.take("b", 401)
    access.take("c", 400)
    assert access.left == 0


WHERE = "s3://bucket/a"


def raised(name: str, *bases: type[BaseException], **attributes: Any) -> BaseException:
    """Create an error of a driver's class; the driver may be missing."""
    error = type(name, bases or (Exception,), {})("Oh no\nand more")
    for attribute, value in attributes.items():
        setattr(error, attribute, value)
    return error


def line_of(error: BaseException) -> str:
    return str(to_bnstat_error(error, WHERE))


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (raised("NoCredentialsError"), "no credentials were found; check the credentials"),
        (raised("TokenRetrievalError"), "the credentials have expired; check the credentials"),
        (PermissionError("x"), "access is denied; check the credentials"),
        (FileNotFoundError("x"), "no such file, folder or bucket"),
        (raised("Lost", FileNotFoundError), "no such file, folder or bucket"),
        (TimeoutError("x"), "the server does not answer in time; try again later"),
        (raised("ReadTimeout", raised("TimeoutException").__class__), "does not answer in time"),
        (ConnectionResetError("x"), "the connection broke off; try again later"),
        (raised("GatedRepoError"), "access to the repository is denied; check the credentials"),
        (TypeError("x"), "the driver does not accept these storage options"),
        (raised("Odd"), "cannot be read: Odd: Oh no"),
        (Exception("at https://me:word@host/a?sig=word"), "Exception: at https://host/a"),
    ],
)
def test_kinds(error: BaseException, what: str) -> None:
    assert line_of(error).startswith(f"{WHERE}: ")
    assert what in line_of(error)
    is_absent = type(to_bnstat_error(error, WHERE)) is NotFoundError
    assert is_absent == isinstance(error, FileNotFoundError)
    assert "word" not in line_of(error)


@pytest.mark.parametrize(
    ("status", "kind", "what"),
    [
        (401, BnstatError, "the server requires credentials (401); check the credentials"),
        (403, BnstatError, "access is denied (403); check the credentials"),
        (404, NotFoundError, "no such file or folder (404)"),
        (412, ChangedError, "changed while it was read; try again later"),
        (429, BnstatError, "the server reports too many requests (429); try again later"),
        (400, BnstatError, "the server reports an error (400); try again later"),
        (503, BnstatError, "the server reports an error (503); try again later"),
    ],
)
@pytest.mark.parametrize("form", ["boto", "aiohttp", "httpx", "answer", "gcs"])
def test_statuses(status: int, kind: type[BnstatError], what: str, form: str) -> None:
    answer = {"ResponseMetadata": {"HTTPStatusCode": status}}
    error = {
        "boto": raised("ClientError", response=answer),
        "aiohttp": raised("ClientResponseError", status=status),
        "httpx": raised("HTTPStatusError", status_code=status),
        "answer": raised("Odd", response=SimpleNamespace(status_code=status)),
        "gcs": raised("HttpError", code=status),
    }[form]
    converted = to_bnstat_error(error, WHERE)
    assert type(converted) is kind
    assert str(converted).startswith(f"{WHERE}: {what}")


@pytest.mark.parametrize(
    "error",
    [
        raised("Odd", code=404),
        raised("Odd", status=200),
        raised("Odd", status=302),
        raised("Odd", status=99999),
        raised("Odd", status="404"),
        raised("ClientError", response={}),
        raised("ClientError", response={"ResponseMetadata": {"HTTPStatusCode": "404"}}),
        raised("HttpError", code=7, status=404),
    ],
)
def test_other_numbers_are_not_statuses(error: BaseException) -> None:
    assert "cannot be read: " in line_of(error)


def test_causes_are_examined() -> None:
    for link in ("__cause__", "__context__"):
        error = raised("Odd")
        setattr(error, link, raised("Odd", **{link: TimeoutError()}))
        assert "does not answer in time" in line_of(error)
    circle = raised("Odd")
    circle.__context__ = raised("Other", __context__=circle)
    assert "cannot be read: Odd" in line_of(circle)
    deep: BaseException = TimeoutError()
    for _ in range(7):
        deep = raised("Odd", __cause__=deep)
    assert "does not answer in time" in line_of(deep)
    assert "cannot be read: Odd" in line_of(raised("Odd", __cause__=deep))


def test_own_errors_stay_and_long_messages_are_cut() -> None:
    own = DamagedError("a", "is damaged")
    assert to_bnstat_error(own, WHERE) is own
    assert len(line_of(Exception("x" * 5000))) == len(WHERE) + 2 + 300
    assert line_of(Exception("")).endswith("cannot be read: Exception: Exception")
