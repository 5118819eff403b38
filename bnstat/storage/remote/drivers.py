"""Which of fsspec's drivers reads a URL, and what has to be installed for it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from bnstat.errors import BnstatError
from bnstat.storage.access import Access
from bnstat.storage.address import WEB, scheme_of, shown
from bnstat.storage.remote.faults import fault
from bnstat.storage.remote.pinned import S3, Azure, Gcs
from bnstat.storage.remote.transport import HuggingFace, Transport


class _Driver(NamedTuple):
    library: str
    defaults: Mapping[str, Any] = MappingProxyType({})
    transport: type[Transport] = Transport


_PATIENCE: Final = {
    "connect_timeout": 10,
    "read_timeout": 30,
    "retries": {"mode": "standard", "total_max_attempts": 4},
    "max_pool_connections": 64,
}
_S3: Final = _Driver("s3fs", {"config_kwargs": _PATIENCE}, S3)
_GCS: Final = _Driver("gcsfs", transport=Gcs)
_AZURE: Final = _Driver("adlfs", transport=Azure)
_DRIVERS: Final = {
    "s3": _S3,
    "s3a": _S3,
    "gs": _GCS,
    "gcs": _GCS,
    "az": _AZURE,
    "abfs": _AZURE,
    "abfss": _AZURE,
    "hf": _Driver("huggingface_hub", transport=HuggingFace),
    "memory": _Driver("fsspec"),
}
"""Scheme -> the driver's library, its default options and the transport that uses it."""


def connect(url: str, access: Access) -> tuple[Transport, str]:
    """Return what moves the bytes of a URL, and the URL's path in the driver's words.

    URLs that name the same store share what moves their bytes.

    Raises:
        BnstatError: the scheme is unknown, its driver missing, an option wrong, or the options
            are for another store than the URL names.
    """
    scheme = scheme_of(url) or ""
    driver = _DRIVERS.get(scheme)
    if driver is None:
        raise BnstatError(
            shown(url), f"nothing is known of {scheme}://", f"URLs start with {_known()}"
        )
    try:
        import fsspec

        kind = fsspec.get_filesystem_class(scheme)
        named = {**kind._get_kwargs_from_urls(url), **driver.transport.named(url)}
        if other := [key for key in named if access.options.get(key, named[key]) != named[key]]:
            raise BnstatError(
                shown(url),
                f"names the {other[0]} {named[other[0]]!r}, and the storage options name another",
                f"leave {other[0]} out of the storage options",
            )
        store = (scheme, *sorted(named.items()))
        if (transport := access.transports.get(store)) is None:
            fs = fsspec.filesystem(scheme, **{**driver.defaults, **named, **access.options})
            transport = driver.transport(fs, scheme, url)
            access.transports[store] = transport
        path = kind._strip_protocol(url)
    except ImportError as error:
        raise missing(url, driver.library) from error
    except (TypeError, ValueError) as error:
        raise BnstatError(
            shown(url),
            "the driver needs other storage options, or does not take this address",
            "give what it needs with --storage-option KEY=VALUE, or in its environment",
        ) from error
    except Exception as error:
        raise fault(error, shown(url)) from error
    return transport, path


def missing(url: str, library: str) -> BnstatError:
    """Return the error that names the library to install for a URL."""
    return BnstatError(
        shown(url),
        f"the driver for {scheme_of(url)}:// is not installed",
        f"pip install {library}",
    )


def _known() -> str:
    schemes = [f"{scheme}://" for scheme in (*_DRIVERS, *WEB)]
    return f"{', '.join(schemes[:-1])} or {schemes[-1]}"
