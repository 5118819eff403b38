"""Errors of drivers as one clear line without secrets."""

from __future__ import annotations

from typing import Any, Final

from bnstat.errors import BnstatError, ChangedError, NotFoundError
from bnstat.storage.access import redact_all

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
    """Convert a driver's error, by its causes as well; `where` is the URL without secrets."""
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
