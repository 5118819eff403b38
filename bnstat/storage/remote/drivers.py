"""Which of fsspec's drivers reads a URL, and what has to be installed for it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from bnstat.errors import BnstatError
from bnstat.storage.access import Access
from bnstat.storage.address import WEB, scheme_of, shown
from bnstat.storage.remote.faults import fault
from bnstat.storage.remote.transport import S3, HuggingFace, Transport


class _Driver(NamedTuple):
    extra: str
    defaults: Mapping[str, Any] = MappingProxyType({})
    transport: type[Transport] = Transport


_PATIENCE: Final = {
    "connect_timeout": 10,
    "read_timeout": 30,
    "retries": {"max_attempts": 3},
    "max_pool_connections": 64,
}
_S3: Final = _Driver("s3", {"config_kwargs": _PATIENCE}, S3)
_GCS: Final = _Driver("gcs")
_AZURE: Final = _Driver("azure")
_DRIVERS: Final = {
    "s3": _S3,
    "s3a": _S3,
    "gs": _GCS,
    "gcs": _GCS,
    "az": _AZURE,
    "abfs": _AZURE,
    "abfss": _AZURE,
    "hf": _Driver("hf", transport=HuggingFace),
    "memory": _Driver(""),
}
"""Scheme -> the extra that installs the driver, its options unless others are given, its kind."""


def connect(url: str, access: Access) -> tuple[Transport, str]:
    """What moves the bytes of a URL, and the URL's path in the driver's words.

    Raises:
        BnstatError: the scheme is unknown, its driver missing, or an option wrong.
    """
    scheme = scheme_of(url) or ""
    driver = _DRIVERS.get(scheme)
    if driver is None:
        raise BnstatError(
            shown(url), f"nothing is known of {scheme}://", f"URLs start with {_known()}"
        )
    try:
        import fsspec

        if (fs := access.drivers.get(scheme)) is None:
            fs = fsspec.filesystem(scheme, **{**driver.defaults, **access.options})
            access.drivers[scheme] = fs
        path = fs._strip_protocol(url)
    except ImportError as error:
        raise missing(url, driver.extra) from error
    except (TypeError, ValueError) as error:
        raise BnstatError(
            shown(url),
            "the driver needs other storage options, or does not take this address",
            "give what it needs with --storage-option KEY=VALUE, or in its environment",
        ) from error
    except Exception as error:
        raise fault(error, shown(url)) from error
    return driver.transport(fs, scheme), path


def missing(url: str, extra: str) -> BnstatError:
    """The error where a driver is not installed."""
    name = f"bnstat[{extra}]" if extra else "fsspec"
    return BnstatError(
        shown(url),
        f"the driver for {scheme_of(url)}:// is not installed",
        f"pip install '{name}'",
    )


def _known() -> str:
    schemes = [f"{scheme}://" for scheme in (*_DRIVERS, *WEB)]
    return f"{', '.join(schemes[:-1])} or {schemes[-1]}"
