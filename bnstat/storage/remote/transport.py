"""Listings and byte ranges through fsspec's drivers.

A listing returns the size, time and tag of every file in a folder, so that no request per file is
needed. Ranges are fetched in parallel. fsspec cannot make a read conditional on a tag, so after a
part of a file was read, the file is compared with the listing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

from bnstat.errors import BnstatError, ChangedError, NotFoundError
from bnstat.storage.access import WEB, Access, redact, redact_all, scheme_of

_CREDENTIALS: Final = "check the credentials that the driver is given"
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
    "InvalidUrlClientError": ("not a valid URL", ""),
    "NonHttpUrlRedirectClientError": ("the server redirects to an address that is not HTTP", ""),
    "ParamValidationError": ("not a valid name in this store", ""),
    "RepositoryNotFoundError": ("no such repository, or access to it is denied", _CREDENTIALS),
    "GatedRepoError": ("access to the repository is denied", _CREDENTIALS),
    "RevisionNotFoundError": ("no such revision", ""),
}
"""Problem and hint by the name of an exception's class."""

_STATUS: Final = {
    401: ("the server requires credentials (401)", _CREDENTIALS),
    403: ("access is denied (403)", _CREDENTIALS),
    404: ("no such file or folder (404)", ""),
    412: ("changed while it was read", _AGAIN),
    429: ("the server reports too many requests (429)", _AGAIN),
}
_MAX_CAUSES: Final = 8
_MAX_LENGTH: Final = 300


def to_bnstat_error(error: BaseException, where: str) -> BnstatError:
    """Convert a driver's error, considering its causes; `where` is the URL without secrets."""
    if isinstance(error, BnstatError):
        return error
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes and len(causes) < _MAX_CAUSES:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    for cause in causes:
        if (status := _http_status(cause)) is not None and status >= 400:
            problem, hint = _STATUS.get(status, (f"the server fails ({status})", _AGAIN))
            of_status = {404: NotFoundError, 412: ChangedError}
            return of_status.get(status, BnstatError)(where, problem, hint)
        for kind in type(cause).__mro__:
            if kind.__name__ in _MESSAGES:
                of_kind = NotFoundError if kind is FileNotFoundError else BnstatError
                return of_kind(where, *_MESSAGES[kind.__name__])
    if isinstance(error, TypeError):
        return BnstatError(where, "the driver does not accept these storage options")
    first_line = redact_all(str(error).strip().partition("\n")[0])
    message = f"cannot be read: {type(error).__name__}: {first_line}"
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


_MAX_THREADS: Final = 64
_TAGS: Final = ("generation", "ETag", "etag", "blob_id")
_TIMES: Final = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")


class Stat(NamedTuple):
    """A file or folder in a listing.

    Attributes:
        path: the driver's form of the path.
        size: the size in bytes; 0 for a folder.
        modified: seconds since the epoch; 0 if unknown.
        tag: a value that changes with the content, such as an ETag; empty if unknown.
    """

    path: str
    is_folder: bool
    size: int
    modified: float
    tag: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def is_same_version(self, other: Stat) -> bool:
        """Return True if sizes are equal, and tags or times too if both are known."""
        if self.size != other.size:
            return False
        if self.tag and other.tag:
            return self.tag.strip('"') == other.tag.strip('"')
        is_unknown = not (self.modified and other.modified)
        return is_unknown or int(self.modified) == int(other.modified)


class Piece(NamedTuple):
    """A range of a file, from `start` up to but excluding `end`."""

    stat: Stat
    start: int
    end: int

    @property
    def is_whole(self) -> bool:
        return self.end - self.start == self.stat.size


class Transport:
    """A file system of fsspec; `url` is a URL in this file system."""

    _opens_by_listing = False
    """True if the driver needs a request to open a file that is not in its cached listings."""

    def __init__(self, fs: Any, scheme: str, url: str = "") -> None:
        del url
        self._fs = fs
        self._scheme = scheme

    @staticmethod
    def options_in(url: str) -> dict[str, str]:
        """Return the options in a URL that the driver itself does not parse."""
        del url
        return {}

    def url(self, path: str) -> str:
        """Return the URL of a driver's path, without secrets."""
        return redact(f"{self._scheme}://{path.removeprefix('/')}")

    def canonical(self, path: str) -> str:
        """Return the form of a path that listings use.

        Raises:
            BnstatError: the store cannot be reached.
        """
        return path

    def listing(self, path: str) -> list[Stat] | None:
        """Return the entries of a folder, or the file at the path alone; None if nothing exists.

        Raises:
            BnstatError: the store cannot be listed.
        """
        try:
            return [stat_of(info) for info in self._fs.ls(path, detail=True)]
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:
            raise to_bnstat_error(error, self.url(path)) from error

    def tree(self, path: str) -> list[Stat]:
        """Return all files in and below a folder, with as few requests as possible.

        Raises:
            BnstatError: the store cannot be listed.
        """
        try:
            infos: Mapping[str, dict[str, Any]] = self._fs.find(path, detail=True)
            if not self._opens_by_listing:
                # The driver would keep this listing, which may be huge, as long as the process.
                self._fs.invalidate_cache()
        except (FileNotFoundError, NotADirectoryError):
            return []
        except Exception as error:
            raise to_bnstat_error(error, self.url(path)) from error
        return [stat_of(info) for info in infos.values()]

    def forget(self, path: str) -> None:
        """Drop the driver's cached listings of a path."""
        self._fs.invalidate_cache(path)

    def fetch(self, pieces: Sequence[Piece]) -> list[bytes]:
        """Return the bytes of each piece.

        A file that is fetched whole in one piece comes from one version of the file. A partly
        fetched file is compared with the listing.

        Raises:
            BnstatError: the bytes cannot be fetched.
            ChangedError: a file was replaced after it was listed.
        """
        try:
            results = self._read(pieces)
        except Exception as error:
            raise to_bnstat_error(error, self.url(pieces[0].stat.path)) from error
        for piece, data in zip(pieces, results, strict=True):
            if isinstance(data, BaseException):
                raise to_bnstat_error(data, self.url(piece.stat.path)) from data
            if len(data) != piece.end - piece.start:
                raise ChangedError(
                    self.url(piece.stat.path),
                    "changed while it was read: it has another size now",
                    "try again later",
                )
        if partly_read := {piece.stat for piece in pieces if not piece.is_whole}:
            self.check_unchanged(partly_read)
        return results

    def check_unchanged(self, stats: Iterable[Stat]) -> None:
        """Compare files with their listings.

        Raises:
            BnstatError: the store cannot be reached.
            ChangedError: a file was replaced after it was listed.
        """
        # Some drivers drop only the listing of the path itself, not of its folder.
        self._fs.invalidate_cache()
        with ThreadPoolExecutor(_MAX_THREADS) as pool:
            list(pool.map(self._check_one, stats))

    def _check_one(self, stat: Stat) -> None:
        where = self.url(stat.path)
        try:
            is_same = stat.is_same_version(stat_of(self._fs.info(stat.path)))
        except FileNotFoundError:
            is_same = False
        except Exception as error:
            raise to_bnstat_error(error, where) from error
        if not is_same:
            raise ChangedError(where, "changed while it was read", "try again later")

    def _read(self, pieces: Sequence[Piece]) -> list[Any]:
        """Return the bytes of each piece, or an error."""
        results: list[Any] = self._fs.cat_ranges(
            [piece.stat.path for piece in pieces],
            [piece.start for piece in pieces],
            # One byte more than a whole file has, to notice that it grew.
            [piece.end + piece.is_whole for piece in pieces],
            on_error="return",
        )
        return results


class HuggingFace(Transport):
    """The Hugging Face hub: paths may contain a revision, and each range needs a thread."""

    _opens_by_listing = True

    def canonical(self, path: str) -> str:
        try:
            resolved: str = self._fs.resolve_path(path).unresolve()
        except Exception as error:
            raise to_bnstat_error(error, self.url(path)) from error
        return resolved

    def check_unchanged(self, stats: Iterable[Stat]) -> None:
        """Do nothing: files of a revision change rarely, and the hub limits requests."""

    def _read(self, pieces: Sequence[Piece]) -> list[Any]:
        with ThreadPoolExecutor(_MAX_THREADS) as pool:
            return list(pool.map(self._read_one, pieces))

    def _read_one(self, piece: Piece) -> bytes | BaseException:
        options = {"size": piece.stat.size, "cache_type": "none"}
        try:
            with self._fs.open(piece.stat.path, "rb", **options) as file:
                file.seek(piece.start)
                data: bytes = file.read(piece.end - piece.start)
                return data
        except Exception as error:
            return error


_BLOB: Final = "blob.core.windows.net"
_DFS: Final = "dfs.core.windows.net"


class Azure(Transport):
    """Azure's blobs, whose URLs may contain the account.

    `abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/PATH`
    """

    def __init__(self, fs: Any, scheme: str, url: str = "") -> None:
        super().__init__(fs, scheme, url)
        self._host = _account_host(url)
        account = self.options_in(url).get("account_name")
        # The driver prefers a connection string, also one of the environment, to an account.
        if account is not None and fs.connection_string is not None:
            actual = fs.service_client.account_name
            if account != actual:
                raise BnstatError(
                    redact(url),
                    f"names the account {account!r}, but the connection string is for {actual!r}",
                    "leave it out of the storage options, unset AZURE_STORAGE_CONNECTION_STRING",
                )

    @staticmethod
    def options_in(url: str) -> dict[str, str]:
        account, _, domain = _account_host(url).partition(".")
        options = {"account_name": account} if account else {}
        if domain not in ("", _DFS, _BLOB):
            options["account_host"] = f"{account}.{domain.replace('dfs.', 'blob.', 1)}"
        return options

    def url(self, path: str) -> str:
        container, slash, blob = path.removeprefix("/").partition("/")
        host = f"@{self._host}" if self._host else ""
        return redact(f"{self._scheme}://{container}{host}{slash}{blob}")


def _account_host(url: str) -> str:
    """Return the host of an account; empty if the URL names only a container."""
    _, at, host = url.partition("://")[2].partition("/")[0].rpartition("@")
    return host if at or host.endswith((f".{_DFS}", f".{_BLOB}")) else ""


def stat_of(info: Mapping[str, Any]) -> Stat:
    """Convert an entry of a driver's listing; the keys depend on the driver."""
    return Stat(
        info["name"].rstrip("/"),
        info["type"] == "directory" or info["name"].endswith("/"),
        int(info.get("size") or 0),
        _seconds(info),
        str(next((info[key] for key in _TAGS if info.get(key)), "")),
    )


def _seconds(info: Mapping[str, Any]) -> float:
    for key in _TIMES:
        value = info.get(key)
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value.replace("Z", "+00:00"))
            except ValueError:
                continue
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, (int, float)):
            return float(value)
    return 0.0


@dataclass(frozen=True)
class _Driver:
    library: str
    transport: type[Transport] = Transport
    options: Mapping[str, Any] = field(default_factory=dict)


_S3: Final = _Driver(
    "s3fs",
    # s3fs itself makes up to five attempts at what its client gives up.
    options={
        "config_kwargs": {
            "connect_timeout": 5,
            "read_timeout": 30,
            "retries": {"mode": "standard", "total_max_attempts": 3},
            "max_pool_connections": 64,
        }
    },
)
_GCS: Final = _Driver("gcsfs")
_AZURE: Final = _Driver("adlfs", Azure)
_DRIVERS: Final = {
    "s3": _S3,
    "s3a": _S3,
    "gs": _GCS,
    "gcs": _GCS,
    "az": _AZURE,
    "abfs": _AZURE,
    "abfss": _AZURE,
    "hf": _Driver("huggingface_hub", HuggingFace),
    "memory": _Driver("fsspec"),
}
"""Driver by scheme."""


def connect(url: str, access: Access) -> tuple[Transport, str]:
    """Return the transport for a URL, and the driver's form of the URL's path.

    URLs of the same store share a transport.

    Raises:
        BnstatError: the scheme is unknown, the driver is not installed, an option is wrong, or the
            options and the URL name different stores.
    """
    scheme = scheme_of(url) or ""
    driver = _DRIVERS.get(scheme)
    if driver is None:
        schemes = [f"{name}://" for name in (*_DRIVERS, *WEB)]
        raise BnstatError(
            redact(url),
            f"{scheme}:// is not a supported scheme",
            f"URLs start with {', '.join(schemes[:-1])} or {schemes[-1]}",
        )
    try:
        import fsspec

        kind = fsspec.get_filesystem_class(scheme)
        options = {**kind._get_kwargs_from_urls(url), **driver.transport.options_in(url)}
        for key, value in options.items():
            if access.options.get(key, value) != value:
                raise BnstatError(
                    redact(url),
                    f"names the {key} {value!r}, but the storage options name another",
                    f"leave {key} out of the storage options",
                )
        store = (scheme, *sorted(options.items()))
        if (transport := access.transports.get(store)) is None:
            fs = fsspec.filesystem(scheme, **{**driver.options, **options, **access.options})
            transport = driver.transport(fs, scheme, url)
            access.transports[store] = transport
        return transport, kind._strip_protocol(url)
    except ImportError as error:
        raise missing_driver(url, driver.library) from error
    except (TypeError, ValueError) as error:
        raise BnstatError(
            redact(url),
            "the driver does not accept this address or these storage options",
            "pass what it needs with --storage-option KEY=VALUE, or in its environment",
        ) from error
    except Exception as error:
        raise to_bnstat_error(error, redact(url)) from error


def missing_driver(url: str, library: str) -> BnstatError:
    """Return the error that names the library to install."""
    return BnstatError(
        redact(url),
        f"the driver for {scheme_of(url)}:// is not installed",
        f"pip install {library}",
    )
