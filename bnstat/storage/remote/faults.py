"""What goes wrong on the way, as one clear line that tells no secret."""

from __future__ import annotations

from typing import Final

from bnstat.errors import BnstatError, ChangedError, NotFoundError
from bnstat.storage.address import scrubbed

_CREDENTIALS: Final = "check the credentials that the driver is given"
_NETWORK: Final = "check the address, the network and the proxy"
_AGAIN: Final = "try again later"
_BROKEN: Final = "the connection broke off"

_TOLD: Final = {
    "NoCredentialsError": ("no credentials were found", _CREDENTIALS),
    "PartialCredentialsError": ("the credentials are not complete", _CREDENTIALS),
    "TokenRetrievalError": ("the credentials have expired", _CREDENTIALS),
    "CredentialRetrievalError": ("no credentials could be had", _CREDENTIALS),
    "DefaultCredentialsError": ("no credentials were found", _CREDENTIALS),
    "ClientAuthenticationError": ("the server refuses the credentials", _CREDENTIALS),
    "PermissionError": ("access is denied", _CREDENTIALS),
    "FileNotFoundError": ("no such file, folder or bucket", ""),
    "EndpointConnectionError": ("the server cannot be reached", _NETWORK),
    "ClientConnectorDNSError": ("the server's name is not known", _NETWORK),
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
    "ClientPayloadError": (_BROKEN, _AGAIN),
    "IncompleteReadError": (_BROKEN, _AGAIN),
    "ResponseStreamingError": (_BROKEN, _AGAIN),
    "ConnectionError": (_BROKEN, _AGAIN),
    "TooManyRedirects": ("the server redirects in a circle", ""),
    "InvalidURL": ("is no valid URL", ""),
    "InvalidUrlClientError": ("is no valid URL", ""),
    "NonHttpUrlRedirectClientError": ("the server redirects to what is no web address", ""),
    "ParamValidationError": ("is no name that the store can have", ""),
    "RepositoryNotFoundError": ("no such repository, or access to it is denied", _CREDENTIALS),
    "GatedRepoError": ("access to the repository is denied", _CREDENTIALS),
    "RevisionNotFoundError": ("no such revision", ""),
}
"""Name of an exception's class -> what is wrong, what to try."""

_STATUS: Final = {
    401: ("the server wants credentials (401)", _CREDENTIALS),
    403: ("access is denied (403)", _CREDENTIALS),
    404: ("no such file or folder (404)", ""),
    412: ("changed while it was read", _AGAIN),
    429: ("too many requests, says the server (429)", _AGAIN),
}


def fault(error: BaseException, where: str) -> BnstatError:
    """The error to raise for one of a driver's.

    Args:
        error: what the driver raised.
        where: the URL, as it may be shown.
    """
    if isinstance(error, BnstatError):
        return error
    for one in _causes(error):
        if (status := _status(one)) is not None and status >= 400:
            return _of_status(status, where)
        for kind in type(one).__mro__:
            if kind.__name__ in _TOLD:
                what, hint = _TOLD[kind.__name__]
                if kind is FileNotFoundError:
                    return NotFoundError(where, what, hint)
                return BnstatError(where, what, hint)
    if isinstance(error, TypeError):
        return BnstatError(where, "the driver does not take these storage options")
    first = scrubbed(str(error).strip().partition("\n")[0])
    return BnstatError(where, f"cannot be read: {type(error).__name__}: {first}"[:300])


def is_broken_off(error: BaseException) -> bool:
    """Whether a connection ended before all bytes came, so that asking again may help."""
    return any(
        _TOLD.get(kind.__name__, ("",))[0] == _BROKEN
        for one in _causes(error)
        for kind in type(one).__mro__
    )


def _of_status(status: int, where: str) -> BnstatError:
    what, hint = _STATUS.get(status, (f"the server fails ({status})", _AGAIN))
    kind = {404: NotFoundError, 412: ChangedError}.get(status, BnstatError)
    return kind(where, what, hint)


def _causes(error: BaseException) -> list[BaseException]:
    """The error, then those that led to it."""
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in chain and len(chain) < 8:
        chain.append(one)
        one = one.__cause__ or one.__context__
    return chain


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error is about."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status if isinstance(status, int) else None
    names = ("code",) if type(error).__name__ == "HttpError" else ("status", "status_code")
    for holder in (error, answer):
        for name in names:
            status = getattr(holder, name, None)
            if isinstance(status, int) and 100 <= status < 600:
                return status
    return None
