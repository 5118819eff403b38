"""What moves bytes: fsspec's drivers, all in the same way.

A listing tells size, time and tag of all that is in a folder, so that nothing is asked once a
file. Ranges are fetched all at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from bnstat.errors import ChangedError
from bnstat.storage.address import shown
from bnstat.storage.remote.faults import fault

_MOST_THREADS: Final = 64
_TAGS: Final = ("generation", "ETag", "etag", "blob_id")


class Stat(NamedTuple):
    """What a listing says of a file or folder.

    Attributes:
        path: where it is, in the driver's words.
        is_folder: whether it is a folder.
        size: in bytes; 0 for a folder.
        modified: when it changed last, in seconds since the epoch; 0 where that is unknown.
        tag: what changes with the content, such as an ETag; empty where that is unknown.
    """

    path: str
    is_folder: bool
    size: int
    modified: float
    tag: str

    @property
    def name(self) -> str:
        """The base name."""
        return self.path.rpartition("/")[2]


class Piece(NamedTuple):
    """Bytes to fetch: of which file, from where on and before where."""

    stat: Stat
    start: int
    end: int


class Transport:
    """One of fsspec's file systems.

    Args:
        fs: the file system.
        scheme: what URLs of it start with.
        url: a URL of it.
    """

    def __init__(self, fs: Any, scheme: str, url: str = "") -> None:
        del url
        self._fs = fs
        self._scheme = scheme

    @staticmethod
    def named(url: str) -> dict[str, str]:
        """Return the options of the driver that a URL sets, beside those that the driver finds."""
        del url
        return {}

    def url(self, path: str) -> str:
        """A path in the driver's words as a URL that may be shown."""
        return shown(f"{self._scheme}://{path.removeprefix('/')}")

    def canonical(self, path: str) -> str:
        """The path in the words that listings have for it.

        Raises:
            BnstatError: it cannot be told.
        """
        return path

    def listing(self, path: str) -> list[Stat] | None:
        """What is in a folder, or the file of that path alone; None where there is nothing.

        Raises:
            BnstatError: it cannot be told.
        """
        try:
            return [stat_of(info) for info in self._fs.ls(path, detail=True)]
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:
            raise fault(error, self.url(path)) from error

    def tree(self, path: str) -> list[Stat]:
        """All files in a folder and below it, in as few requests as the store can.

        Raises:
            BnstatError: it cannot be told.
        """
        try:
            found = self._all(path)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except Exception as error:
            raise fault(error, self.url(path)) from error
        return [stat_of(info) for info in found]

    def _all(self, path: str) -> Iterable[dict[str, Any]]:
        """What the driver tells of all files below a folder."""
        found: dict[str, dict[str, Any]] = self._fs.find(path, detail=True)
        return found.values()

    def forget(self, path: str) -> None:
        """Ask anew for what a listing tells."""
        self._fs.invalidate_cache(path)

    def fetch(self, pieces: Sequence[Piece]) -> list[bytes]:
        """The bytes of each piece.

        Raises:
            BnstatError: they cannot be fetched.
            ChangedError: a file is no longer what the listing said.
        """
        where = self.url(pieces[0].stat.path)
        try:
            found = self._cat(pieces)
        except Exception as error:
            raise fault(error, where) from error
        for piece, data in zip(pieces, found, strict=True):
            if isinstance(data, BaseException):
                raise fault(data, self.url(piece.stat.path)) from data
            if len(data) != piece.end - piece.start:
                raise ChangedError(
                    self.url(piece.stat.path),
                    f"{len(data)} bytes came instead of {piece.end - piece.start}",
                    "try again",
                )
        return found

    def _cat(self, pieces: Sequence[Piece]) -> list[Any]:
        """The bytes, or the error, of each piece."""
        result: list[Any] = self._fs.cat_ranges(
            [piece.stat.path for piece in pieces],
            [piece.start for piece in pieces],
            [piece.end for piece in pieces],
            on_error="return",
        )
        return result


class Threads(Transport):
    """A driver that knows no way to wait for many ranges at once: each has its own thread."""

    def _cat(self, pieces: Sequence[Piece]) -> list[Any]:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(_MOST_THREADS) as pool:
            return list(pool.map(self._one, pieces))

    def _one(self, piece: Piece) -> bytes | BaseException:
        try:
            # What the driver would read ahead is not wanted.
            how = {"size": piece.stat.size, "cache_type": "none"}
            with self._fs.open(piece.stat.path, "rb", **how) as file:
                file.seek(piece.start)
                data: bytes = file.read(piece.end - piece.start)
                return data
        except Exception as error:
            return error


class HuggingFace(Threads):
    """The hub, where a path may tell a revision or leave it out."""

    def canonical(self, path: str) -> str:
        try:
            resolved: str = self._fs.resolve_path(path).unresolve()
        except Exception as error:
            raise fault(error, self.url(path)) from error
        return resolved


def stat_of(info: dict[str, Any]) -> Stat:
    """An entry of a listing, in whatever words the driver puts it."""
    tag = next((info[key] for key in _TAGS if info.get(key)), "")
    return Stat(
        info["name"].rstrip("/"),
        info["type"] == "directory" or info["name"].endswith("/"),
        int(info.get("size") or 0),
        _seconds(info),
        str(tag),
    )


def _seconds(info: dict[str, Any]) -> float:
    for key in ("LastModified", "last_modified", "updated", "mtime", "modified", "created"):
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
