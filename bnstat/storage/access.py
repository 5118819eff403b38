"""URLs: recognition, redaction, access to stores, and limits on downloads.

A URL may contain a password before its host, or a signature after a question mark.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from bnstat.errors import BnstatError

if TYPE_CHECKING:
    from bnstat.storage.files import Entry


MAX_DOWNLOAD = 256_000_000
"""The default limit on downloads, in bytes."""

WEB = ("http", "https")
"""The schemes of web servers."""

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://[^\s'\"<>]+")


def scheme_of(path: str) -> str | None:
    """Return the scheme of a URL in lower case; None for a local path, even with a drive."""
    match = _SCHEME.match(path)
    return match[1].lower() if match else None


def is_url(path: str) -> bool:
    """Return True if a path is a URL."""
    return _SCHEME.match(path) is not None


def redact(path: str) -> str:
    """Return a printable form of a path: a URL without user, password, query and fragment."""
    match = _SCHEME.match(path)
    if match is None:
        return path
    scheme, rest = match[1].lower(), path[match.end() :]
    if scheme in WEB:
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    else:
        rest = re.sub(r"\?[A-Za-z-]+=.*$", "", rest, flags=re.DOTALL)
    host, slash, inside = rest.partition("/")
    # Before the @ of Azure's URLs is the container.
    if scheme not in ("abfs", "abfss"):
        host = host.rpartition("@")[2]
    return f"{match[0]}{host}{slash}{inside}"


def redact_all(text: str) -> str:
    """Redact every URL in a message."""
    return _URL.sub(lambda match: redact(match[0]), text)


def refuse_url(path: str, reason: str) -> None:
    """Raise if a path is a URL, because files on disk are needed.

    Raises:
        BnstatError: the path is a URL.
    """
    if is_url(path):
        raise BnstatError(redact(path), f"is a URL, and {reason}", "download it first")


class Access:
    """The options of drivers, the connections in use, and a count of the bytes downloaded.

    Attributes:
        options: passed to the driver unchanged, such as an endpoint or a key.
        listed: URL of a folder -> all files in and below the folder, if it was listed before.
        transports: scheme and options in the URL -> the `Transport` in use.
        stores: transport -> the `RemoteStore` in use.
        notes: remarks about servers, one line each.
    """

    def __init__(
        self, options: Mapping[str, Any] | None = None, max_download: int = MAX_DOWNLOAD
    ) -> None:
        self.options = dict(options or {})
        self.listed: Mapping[str, Sequence[Entry]] = {}
        self.transports: dict[tuple[Any, ...], Any] = {}
        self.stores: dict[Any, Any] = {}
        self.notes: list[str] = []
        self._limit = max_download
        self._downloaded = 0
        self._lock = Lock()

    def knowing(self, folder: str, files: Sequence[Entry]) -> Access:
        """Return an `Access` with the same drivers, for a folder that was listed before."""
        other = Access(self.options, self._limit)
        other.listed = {folder: files}
        other.transports = self.transports
        return other

    def forget(self) -> None:
        """Drop all listings."""
        self.listed = {}
        self.stores.clear()

    @property
    def left(self) -> int:
        """The number of bytes that may still be downloaded."""
        return self._limit - self._downloaded

    def take(self, where: str, size: int) -> None:
        """Count bytes before they are downloaded.

        Raises:
            BnstatError: the bytes exceed the limit.
        """
        with self._lock:
            if self._downloaded + size > self._limit:
                raise BnstatError(
                    where,
                    f"reading it exceeds the limit of {format_size(self._limit)} on downloads "
                    f"({format_size(self._downloaded)} before, {format_size(size)} more)",
                    "allow more with --max-download (max_download in Python)",
                )
            self._downloaded += size


def format_size(size: int) -> str:
    """Format a number of bytes: `256 MB`."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 1000)):
        if size >= factor:
            number = f"{size / factor:.3g}" if size < 1000 * factor else f"{size // factor}"
            return f"{number} {unit}"
    return f"{size} bytes"
