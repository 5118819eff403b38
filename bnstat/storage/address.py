"""Paths that are URLs, and how they are shown: without what must not be told.

A URL may carry a password before its host, or a signature behind a question mark.
"""

from __future__ import annotations

import re

from bnstat.errors import BnstatError

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
WEB = ("http", "https")
"""The schemes of web servers."""

_ANY = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://[^\s'\"<>]+")


def scheme_of(path: str) -> str | None:
    """The scheme of a URL, in small letters; None for a local path, be it one of a drive."""
    match = _SCHEME.match(path)
    return match[1].lower() if match else None


def is_url(path: str) -> bool:
    """Whether a path is a URL."""
    return _SCHEME.match(path) is not None


def shown(path: str) -> str:
    """The path as it may be told: a URL without user, password, query and fragment."""
    match = _SCHEME.match(path)
    if match is None:
        return path
    rest = path[match.end() :]
    if match[1].lower() in WEB:
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    else:
        rest = re.sub(r"\?[A-Za-z-]+=.*$", "", rest, flags=re.DOTALL)
    host, slash, inside = rest.partition("/")
    if match[1].lower() not in ("abfs", "abfss"):
        host = host.rpartition("@")[2]
    return f"{match[0]}{host}{slash}{inside}"


def refuse_url(path: str, why: str) -> None:
    """Refuse a URL where files on disk are needed.

    Raises:
        BnstatError: the path is a URL.
    """
    if is_url(path):
        raise BnstatError(shown(path), f"is a URL, and {why}", "download it first")


def scrubbed(text: str) -> str:
    """A message of somebody else's, with its URLs as they may be told."""
    return _ANY.sub(lambda match: shown(match[0]), text)
