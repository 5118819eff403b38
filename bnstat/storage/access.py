"""Access to URLs: redaction, errors of drivers, limits on downloads, and checks for changes.

A URL may contain a password or a signature, so messages contain only redacted URLs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock, local
from typing import TYPE_CHECKING, Any, Final

from bnstat import errors
from bnstat.errors import BnstatError, ChangedError, NotFoundError, first_line

if TYPE_CHECKING:
    from bnstat.storage.files import Entry
    from bnstat.storage.stores import RemoteFile, RemoteStore


MAX_DOWNLOAD = 256_000_000
"""The default limit on downloads, in bytes."""

WEB = ("http", "https")

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://[^\s'\"<>]+")


def scheme_of(path: str) -> str | None:
    """Return the scheme of a URL in lower case; None for a local path, such as `C:/model`."""
    match = _SCHEME.match(path)
    return match[1].lower() if match else None


def is_url(path: str) -> bool:
    """Return True if a path is a URL."""
    return scheme_of(path) is not None


def redact(path: str) -> str:
    """Return a URL without user, password, query and fragment; a local path unchanged."""
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


def refuse_url(path: str, reason: str) -> None:
    """Raise if a path is a URL; the message is "is a URL, and" followed by `reason`."""
    if is_url(path):
        raise BnstatError(redact(path), f"is a URL, and {reason}", "download it first")


class Access:
    """The options of drivers, the connections in use, and a count of the bytes downloaded.

    Attributes:
        options: passed to the driver unchanged, such as an endpoint or a key.
        listed: URL of a folder -> all files in and below this folder, from an earlier listing.
        drivers: scheme and options in the URL -> fsspec's file system.
        stores: scheme and options in the URL -> the `RemoteStore` in use.
        notes: remarks about servers, one line each.
    """

    def __init__(
        self, options: Mapping[str, Any] | None = None, max_download: int = MAX_DOWNLOAD
    ) -> None:
        self.options = dict(options or {})
        self.listed: Mapping[str, Sequence[Entry]] = {}
        self.drivers: dict[tuple[Any, ...], Any] = {}
        self.stores: dict[tuple[Any, ...], RemoteStore] = {}
        self.notes: list[str] = []
        self._limit = max_download
        self._downloaded = 0
        self._lock = Lock()
        self._reads = _Reads()

    def knowing(self, folder: str, files: Sequence[Entry]) -> Access:
        """Return an `Access` with the same drivers, and `files` as the listing of `folder`."""
        other = Access(self.options, self._limit)
        other.listed = {folder: files}
        other.drivers = self.drivers
        return other

    def forget(self) -> None:
        """Drop all listings, so that folders are listed again."""
        self.listed = {}
        self.stores.clear()

    @property
    def left(self) -> int:
        """The number of bytes that may still be downloaded."""
        return self._limit - self._downloaded

    def take(self, where: str, size: int) -> None:
        """Count `size` bytes before they are downloaded; raise a `BnstatError` above the limit."""
        with self._lock:
            if self._downloaded + size > self._limit:
                raise BnstatError(
                    where,
                    f"reading this exceeds the download limit of {format_size(self._limit)} "
                    f"({format_size(self._downloaded)} downloaded, {format_size(size)} more)",
                    "allow more with --max-download (max_download in Python)",
                )
            self._downloaded += size

    def add_reads(self, store: RemoteStore, files: Iterable[RemoteFile]) -> None:
        """Check remote files for changes: at once or, in `reading`, at the end of the block."""
        self._reads.unchecked.setdefault(store, set()).update(files)
        if not self._reads.blocks:
            self._check_reads()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Delay checks for changed files, in this thread, to the end of the block.

        Outside of a block, each read is followed by a check, which costs a round trip. If a file
        changed, `ChangedError` replaces an error about damage or an unknown format.
        """
        self._reads.blocks += 1
        try:
            yield
            self._check_reads()
        except (errors.DamagedError, errors.UnknownFormatError, errors.UnsupportedError):
            self._check_reads()
            raise
        except BaseException:
            self._reads.unchecked.clear()
            raise
        finally:
            self._reads.blocks -= 1

    def _check_reads(self) -> None:
        unchecked, self._reads.unchecked = self._reads.unchecked, {}
        for store, files in unchecked.items():
            store.check_unchanged(files)


class _Reads(local):
    """A thread's remote files to check for changes, and nesting depth of `reading` blocks."""

    def __init__(self) -> None:
        self.unchecked: dict[RemoteStore, set[RemoteFile]] = {}
        self.blocks = 0


def format_size(size: int) -> str:
    """Return a number of bytes as text, such as `256 MB`."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 1000)):
        if size >= factor:
            number = f"{size / factor:.3g}" if size < 1000 * factor else f"{size // factor}"
            return f"{number} {unit}"
    return f"{size} bytes"


def missing_driver(url: str, library: str) -> BnstatError:
    """Return the error for a missing driver; the hint names the library to install."""
    what = f"the driver for {scheme_of(url)}:// is not installed"
    return BnstatError(redact(url), what, f"pip install {library}")


_CREDENTIALS: Final = "check the credentials that the driver uses"
_NETWORK: Final = "check the address, the network and the proxy"
_AGAIN: Final = "try again later"

_MESSAGES: Final = {
    "NoCredentialsError": ("no credentials were found", _CREDENTIALS),
    "PartialCredentialsError": ("the credentials are not complete", _CREDENTIALS),
    "TokenRetrievalError": ("the credentials have expired", _CREDENTIALS),
    "CredentialRetrievalError": ("the credentials cannot be retrieved", _CREDENTIALS),
    "DefaultCredentialsError": ("no credentials were found", _CREDENTIALS),
    "ClientAuthenticationError": ("the server refuses the credentials", _CREDENTIALS),
    "PermissionError": ("access is denied", _CREDENTIALS),
    "FileNotFoundError": ("no such file, folder or bucket", ""),
    "EndpointConnectionError": ("the server cannot be reached", _NETWORK),
    "ClientConnectorDNSError": ("the server's name cannot be resolved", _NETWORK),
    "ClientConnectorCertificateError": ("the server's certificate is not trusted", ""),
    "ClientConnectorSSLError": ("no secure connection can be made", ""),
    "SSLError": ("no secure connection can be made", ""),
    "ConnectError": ("the server cannot be reached", _NETWORK),
    "ClientConnectorError": ("the server cannot be reached", _NETWORK),
    "TimeoutException": ("the server does not answer in time", _AGAIN),
    "ConnectTimeoutError": ("the server does not answer in time", _NETWORK),
    "ReadTimeoutError": ("the server does not answer in time", _AGAIN),
    "TimeoutError": ("the server does not answer in time", _AGAIN),
    "ServerDisconnectedError": ("the server ended the connection", _AGAIN),
    "ClientPayloadError": ("the connection broke off", _AGAIN),
    "IncompleteReadError": ("the connection broke off", _AGAIN),
    "ResponseStreamingError": ("the connection broke off", _AGAIN),
    "ConnectionError": ("the connection broke off", _AGAIN),
    "TooManyRedirects": ("the server redirects in a circle", ""),
    "InvalidURL": ("not a valid URL", ""),
    "NonHttpUrlRedirectClientError": ("the server redirects to an address that is not HTTP", ""),
    "ParamValidationError": ("not a valid name in this store", ""),
    "RepositoryNotFoundError": ("no such repository, or access to it is denied", _CREDENTIALS),
    "GatedRepoError": ("access to the repository is denied", _CREDENTIALS),
    "RevisionNotFoundError": ("no such revision", ""),
}
"""Name of an exception's class -> (problem, hint) for the message."""

_STATUS: Final = {
    401: (BnstatError, "the server requires credentials (401)", _CREDENTIALS),
    403: (BnstatError, "access is denied (403)", _CREDENTIALS),
    404: (NotFoundError, "no such file or folder (404)", ""),
    412: (ChangedError, "changed while it was read", _AGAIN),
    429: (BnstatError, "the server reports too many requests (429)", _AGAIN),
}
_MAX_CAUSES: Final = 8
_MAX_LENGTH: Final = 300


def to_bnstat_error(error: BaseException, where: str) -> BnstatError:
    """Return a `BnstatError` for a driver's error; `where` is the redacted URL for the message."""
    if isinstance(error, BnstatError):
        return error
    cause: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if cause is None:
            break
        if (status := _http_status(cause)) is not None and status >= 400:
            other = (BnstatError, f"the server reports an error ({status})", _AGAIN)
            of_status, problem, hint = _STATUS.get(status, other)
            return of_status(where, problem, hint)
        for kind in type(cause).__mro__:
            if kind.__name__ in _MESSAGES:
                of_kind = NotFoundError if kind is FileNotFoundError else BnstatError
                return of_kind(where, *_MESSAGES[kind.__name__])
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, TypeError):
        return BnstatError(where, "the driver does not accept these storage options")
    reason = _URL.sub(lambda match: redact(match[0]), first_line(error))
    message = f"cannot be read: {type(error).__name__}: {reason}"
    return BnstatError(where, message[:_MAX_LENGTH])


def _http_status(error: BaseException) -> int | None:
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status if isinstance(status, int) else None
    names = ("code",) if type(error).__name__ == "HttpError" else ("status", "status_code")
    for holder in (error, response):
        for name in names:
            status = getattr(holder, name, None)
            if isinstance(status, int) and 100 <= status < 600:
                return status
    return None
