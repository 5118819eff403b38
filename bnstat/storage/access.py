"""How files that are far away are reached, and how much of them may be downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from typing import Any

from bnstat.errors import BnstatError

MAX_DOWNLOAD = 256_000_000
"""So many bytes are downloaded at most, where nothing else is asked for."""


class Access:
    """What drivers are told, and a count of what they fetched.

    Attributes:
        options: what the driver is given as it is, such as an endpoint or a key.
        notes: what was noticed about servers, one line each.
    """

    def __init__(
        self, options: Mapping[str, Any] | None = None, max_download: int = MAX_DOWNLOAD
    ) -> None:
        self.options = dict(options or {})
        self.notes: list[str] = []
        self._max = max_download
        self._taken = 0
        self._lock = Lock()

    @property
    def left(self) -> int:
        """How many bytes may still be downloaded."""
        return self._max - self._taken

    def take(self, where: str, size: int) -> None:
        """Count bytes that are about to be downloaded.

        Raises:
            BnstatError: they would be more than is allowed.
        """
        with self._lock:
            if self._taken + size > self._max:
                raise BnstatError(
                    where,
                    f"{told(size)} are to be downloaded, {told(self._taken)} were before, "
                    f"and {told(self._max)} are allowed",
                    "allow more with --max-download (max_download in Python)",
                )
            self._taken += size


def told(size: int) -> str:
    """A number of bytes, for people: `256 MB`."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 1000)):
        if size >= factor:
            return (
                f"{size / factor:.3g} {unit}"
                if size < 1000 * factor
                else f"{size // factor} {unit}"
            )
    return f"{size} bytes"
