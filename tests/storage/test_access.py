"""URLs: how they are recognized and printed, and the limit on downloads."""

from __future__ import annotations

import pytest

from bnstat.errors import BnstatError
from bnstat.storage.access import Access, is_url, redact, refuse_url, scheme_of


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
    with pytest.raises(
        BnstatError,
        match=r"b: .* limit of 1 kB .*600 bytes downloaded, 401 bytes more",
    ):
        access.take("b", 401)
    access.take("c", 400)
    assert access.left == 0
