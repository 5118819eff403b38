"""How files that are far away are reached, and how much of them may be downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from bnstat.errors import BnstatError

if TYPE_CHECKING:
    from bnstat.storage.files import Entry


MAX_DOWNLOAD = 256_000_000
"""So many bytes are downloaded at most, where nothing else is asked for."""


class Access:
    """What drivers are told, and a count of what they fetched.

    Attributes:
        options: what the driver is given as it is, such as an endpoint or a key.
        listed: the URL of a folder -> the files in and below it, by their paths from there, where
            a listing told of them before; there is nothing else in it.
        transports: scheme and what a URL names of the store, such as an account -> what moves
            the bytes of that store, where it is in use.
        depots: such a transport -> what is known of its store.
        notes: what was noticed about servers, one line each.
    """

    def __init__(
        self, options: Mapping[str, Any] | None = None, max_download: int = MAX_DOWNLOAD
    ) -> None:
        self.options = dict(options or {})
        self.listed: Mapping[str, Sequence[Entry]] = {}
        self.transports: dict[tuple[Any, ...], Any] = {}
        self.depots: dict[Any, Any] = {}
        self.notes: list[str] = []
        self._max = max_download
        self._taken = 0
        self._lock = Lock()

    def knowing(self, folder: str, files: Sequence[Entry]) -> Access:
        """The same by the same drivers, for what lies in a folder that was listed before."""
        other = Access(self.options, self._max)
        other.listed = {folder: files}
        other.transports = self.transports
        return other

    def forget(self) -> None:
        """Ask stores anew for what is in them."""
        self.listed = {}
        self.depots.clear()

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
