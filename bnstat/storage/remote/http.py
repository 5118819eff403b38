"""Ranges by HTTP, each answer checked before its body is read.

A server may ignore `Range` and send all of a file, may send another range or a file that changed
since, may redirect in a circle, be busy or break off. What passes is asked for again, a few times.
A server that sends next to nothing is given up.

Source: RFC 9110, sections 10.2.3, 14 and 15.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import aiohttp

from bnstat.errors import BnstatError, ChangedError, NotFoundError
from bnstat.storage.access import Access
from bnstat.storage.address import shown
from bnstat.storage.files import File, Folder
from bnstat.storage.remote.drivers import missing
from bnstat.storage.remote.faults import fault
from bnstat.storage.remote.files import RemoteFile, Warehouse
from bnstat.storage.remote.transport import Piece, Stat, Transport

_HEAD: Final = 4 << 10
"""So much of a file is asked for to learn whether there is one, and how large it is."""

_WHOLE: Final = 16 << 20
"""A file of up to this size is taken whole from a server that cannot send ranges."""

_ATTEMPTS: Final = 4
_FIRST_WAIT: Final = 0.25
_LONGEST_WAIT: Final = 5.0
_MAX_REDIRECTS: Final = 5
_PARALLEL: Final = 64
_PASSING: Final = {408, 425, 429, 500, 502, 503, 504}
_ABSENT: Final = {404, 410}
_BROKEN: Final = (
    aiohttp.ClientPayloadError,
    aiohttp.ServerDisconnectedError,
    aiohttp.ClientOSError,
    asyncio.TimeoutError,
)
_RANGE: Final = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+)")


_WINDOW: Final = 30.0
_LEAST: Final = 30_000
"""In each of these spans of seconds, so many bytes have to come, or the answer to a request."""


class Head(NamedTuple):
    """The beginning of a file, or all of it.

    Attributes:
        stat: what the answer told of the file.
        data: its first bytes.
        is_all: whether the server sent the whole file where a part was asked for.
    """

    stat: Stat
    data: bytes
    is_all: bool


class Http(Transport):
    """Files by HTTP: there are no listings, only names that may be asked for.

    Args:
        fs: the file system.
        scheme: what URLs of it start with.
        window: for how many seconds a server may send less than `least`.
        least: how many bytes have to come in that time, of all requests together.
    """

    def __init__(self, fs: Any, scheme: str, window: float = _WINDOW, least: int = _LEAST) -> None:
        super().__init__(fs, scheme)
        self._window = window
        self._least = least
        self._came = 0

    def url(self, path: str) -> str:
        return shown(path)

    def forget(self, path: str) -> None:
        del path

    def heads(self, paths: Sequence[str], most: int) -> list[Head | BaseException | None]:
        """The beginnings of files; None for those that are not there.

        Args:
            paths: their URLs.
            most: how many bytes of a file may be taken from a server that sends it whole.
        """
        return self._answers([self._head(path, most) for path in paths], self.url(paths[0]))

    def _cat(self, pieces: Sequence[Piece]) -> list[Any]:
        return self._answers([self._part(piece) for piece in pieces], self.url(pieces[0].stat.path))

    def _answers(self, asked: Sequence[Any], where: str) -> list[Any]:
        """Return what comes of requests, all made at once: answers and errors.

        Args:
            asked: the requests.
            where: the URL of one of them, as it may be shown.

        Raises:
            BnstatError: the server is too slow.
        """
        from fsspec.asyn import sync

        gate = asyncio.Semaphore(_PARALLEL)

        async def one(answer: Any) -> Any:
            async with gate:
                return await answer

        async def gather() -> list[Any]:
            answers = asyncio.gather(*map(one, asked), return_exceptions=True)
            while True:
                before = self._came
                if (await asyncio.wait([answers], timeout=self._window))[0]:
                    return answers.result()
                if self._came - before < self._least:
                    answers.cancel()
                    with suppress(asyncio.CancelledError):
                        await answers
                    raise BnstatError(
                        where,
                        f"the server sends less than {self._least:,} bytes "
                        f"in {self._window:g} seconds",
                        "try again later",
                    )

        result: list[Any] = sync(self._fs.loop, gather)
        return result

    async def _head(self, url: str, most: int) -> Head | None:
        async def take(answer: Any) -> Head | None:
            if answer.status in _ABSENT or (answer.history and answer.url.path.endswith("/")):
                return None
            if answer.status == 416:
                return Head(_stat(url, answer, 0), b"", True)
            self._refuse_failure(answer, url)
            told = _content_range(answer)
            if answer.status == 206:
                if told is None:
                    raise BnstatError(shown(url), "the server does not say how large the file is")
                start, end, size = told
                if start != 0 or end > min(_HEAD, size):
                    raise BnstatError(shown(url), "the server sends another range than asked for")
                return Head(_stat(url, answer, size), await self._body(answer, end, url), False)
            return await self._whole(answer, url, most)

        found: Head | None = await self._ask(url, 0, _HEAD, take)
        return found

    async def _whole(self, answer: Any, url: str, most: int) -> Head:
        """The file from a server that sends all of it; a large one is not begun with."""
        limit = min(_WHOLE, most)
        size = answer.content_length
        if size is None or size <= limit:
            data = bytearray()
            async for chunk in answer.content.iter_any():
                self._came += len(chunk)
                data += chunk
                if len(data) > limit:
                    break
            else:
                return Head(_stat(url, answer, len(data)), bytes(data), len(data) > 0)
        raise BnstatError(
            shown(url),
            "the server cannot send a part of a file, and all of it is too much"
            + (f" ({size:,} bytes)" if size is not None else ""),
            "download the file and give its path, or serve it with ranges",
        )

    async def _part(self, piece: Piece) -> bytes:
        url = piece.stat.path

        async def take(answer: Any) -> bytes:
            if answer.status in (412, 416):
                raise _changed(url)
            self._refuse_failure(answer, url)
            told = _content_range(answer)
            if told is not None and told[2] != piece.stat.size:
                raise _changed(url)
            if piece.stat.tag and _tag(answer) not in ("", piece.stat.tag):
                raise _changed(url)
            length = piece.end - piece.start
            if answer.status == 206 and told is not None and told[:2] == (piece.start, piece.end):
                return await self._body(answer, length, url)
            if answer.status == 200 and answer.content_length == length == piece.stat.size:
                return await self._body(answer, length, url)
            raise BnstatError(
                shown(url), "the server sends other bytes than asked for", "download the file"
            )

        found: bytes = await self._ask(url, piece.start, piece.end, take)
        return found

    async def _body(self, answer: Any, length: int, url: str) -> bytes:
        """Return the body, which has to be of that length."""
        if answer.content_length not in (None, length):
            raise BnstatError(shown(url), "the server contradicts itself about lengths")
        data = bytearray()
        async for chunk in answer.content.iter_any():
            self._came += len(chunk)
            data += chunk
            if len(data) > length:
                break
        if len(data) != length:
            raise BnstatError(
                shown(url), f"the server sent {len(data)} bytes where it announced {length}"
            )
        return bytes(data)

    async def _ask(self, url: str, start: int, end: int, take: Any) -> Any:
        """What `take` makes of the answer; what passes is asked for again."""
        session = await self._fs.set_session()
        options = {**self._fs.kwargs}
        headers = {
            **options.pop("headers", {}),
            "Range": f"bytes={start}-{end - 1}",
            "Accept-Encoding": "identity",
        }
        for attempt in range(1, _ATTEMPTS + 1):
            wait = _FIRST_WAIT * 2 ** (attempt - 1) * random.uniform(1, 1.5)
            try:
                async with session.get(
                    self._fs.encode_url(url),
                    headers=headers,
                    max_redirects=_MAX_REDIRECTS,
                    **options,
                ) as answer:
                    self._came += self._least
                    if answer.status not in _PASSING or attempt == _ATTEMPTS:
                        return await take(answer)
                    wait = max(wait, _retry_after(answer))
            except aiohttp.ClientConnectorError:
                raise
            except _BROKEN:
                if attempt == _ATTEMPTS:
                    raise
            await asyncio.sleep(min(wait, _LONGEST_WAIT))
        raise AssertionError("the last attempt returns or raises")

    def _refuse_failure(self, answer: Any, url: str) -> None:
        if answer.status >= 400:
            answer.raise_for_status()
        if answer.url.scheme != "https" and url.startswith("https:"):
            raise BnstatError(shown(url), "the server redirects to an insecure address")
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise BnstatError(shown(url), "the server compresses what it sends, unasked")


def _content_range(answer: Any) -> tuple[int, int, int] | None:
    """From where and before where the answer's bytes are, and the file's size."""
    match = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if match is None or match[1] is None:
        return None
    return int(match[1]), int(match[2]) + 1, int(match[3])


def _stat(url: str, answer: Any, size: int) -> Stat:
    try:
        modified = parsedate_to_datetime(answer.headers["Last-Modified"]).timestamp()
    except (KeyError, ValueError, TypeError):
        modified = 0.0
    return Stat(url, False, size, modified, _tag(answer))


def _tag(answer: Any) -> str:
    return str(answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")


def _retry_after(answer: Any) -> float:
    """For how many seconds the server wants to be left alone."""
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isdigit() else 0.0


def _changed(url: str) -> ChangedError:
    return ChangedError(shown(url), "changed while it was read", "try again")


def find_on_the_web(url: str, access: Access) -> tuple[WebFolder | None, str, WebFolder]:
    """The parent, the name and the folder of a `Spot`.

    Raises:
        BnstatError: the driver is missing.
    """
    folder = WebFolder(_warehouse(url, access), access, url)
    above = folder.parent()
    return (None if folder.is_plain else above), folder.name, folder


def _warehouse(url: str, access: Access) -> Warehouse:
    try:
        import fsspec
        from aiohttp import ClientTimeout
    except ImportError as error:
        raise missing(url, "aiohttp") from error
    patience = ClientTimeout(total=None, sock_connect=10, sock_read=30)
    options = dict(access.options)
    options["client_kwargs"] = {
        "timeout": patience,
        "trust_env": True,
        **options.get("client_kwargs", {}),
    }
    try:
        fs = fsspec.filesystem("https", **options)
    except Exception as error:
        raise fault(error, shown(url)) from error
    return Warehouse(Http(fs, "https"), access)


class WebFolder(Folder):
    """A folder on a web server.

    Args:
        depot: the server.
        access: what may be taken from it.
        url: where it is; a query goes along with every file that is asked for.

    Attributes:
        is_plain: whether the URL ends with a slash, as those of folders do.
    """

    can_list = False

    def __init__(self, depot: Warehouse, access: Access, url: str) -> None:
        match = re.fullmatch(r"(\w+://[^/?#]+)([^?#]*)(\?[^#]*)?(#.*)?", url, re.DOTALL)
        if match is None:
            raise BnstatError(shown(url), "is no valid URL")
        self._host, path, self._query = match[1], match[2], match[3] or ""
        self._inside = path.strip("/")
        self.is_plain = path.endswith("/") or not self._inside
        self.path = shown(self._host + path).rstrip("/")
        self.name = self._inside.rpartition("/")[2]
        self._depot = depot
        self._access = access
        self._known: dict[str, RemoteFile | None] = {}

    def names(self) -> list[str]:
        raise NotFoundError(
            self.path,
            "no such model, and a web server does not list what else there is",
            "give a file's URL: that of a checkpoint's .index, or its prefix",
        )

    def matching(self, prefix: str, suffix: str = "") -> list[str]:
        """Of the files that were asked for by name, those that are there."""
        return sorted(
            name
            for name, file in self._known.items()
            if file is not None and name.startswith(prefix) and name.endswith(suffix)
        )

    def file(self, name: str) -> File | None:
        self.expect([name])
        return self._known.get(name)

    def expect(self, names: Iterable[str]) -> None:
        fresh = [name for name in names if name not in self._known and _leads_down(name)]
        if fresh:
            self._known |= self._ask(fresh)

    def folder(self, name: str) -> Folder | None:
        return self._at(f"{self._inside}/{name}" if self._inside else name)

    def parent(self) -> WebFolder | None:
        return self._at(self._inside.rpartition("/")[0]) if self._inside else None

    def modified(self, name: str) -> float:
        file = self._known.get(name)
        return 0.0 if file is None else file.stat.modified

    def _at(self, inside: str) -> WebFolder:
        return WebFolder(self._depot, self._access, f"{self._host}/{inside}{self._query}")

    def _ask(self, names: Sequence[str]) -> Mapping[str, RemoteFile | None]:
        """The files of these names."""
        transport = self._depot.transport
        assert isinstance(transport, Http)
        base = f"{self._host}/{self._inside}".rstrip("/")
        urls = [f"{base}/{quote(name, safe='/%:@!$&()*+,;=~-._')}{self._query}" for name in names]
        found: dict[str, RemoteFile | None] = {}
        for name, url, head in zip(
            names, urls, transport.heads(urls, self._access.left), strict=True
        ):
            if isinstance(head, BaseException):
                raise fault(head, shown(url)) from head
            if head is None:
                found[name] = None
                continue
            file = found[name] = RemoteFile(self._depot, self, head.stat)
            file.name = name.rpartition("/")[2]
            self._access.take(file.path, len(head.data))
            file.pieces.add(0, head.data)
            if head.is_all and len(head.data) > 4096:
                self._access.notes.append(f"{file.path}: the server sends whole files only")
        return found


def _leads_down(name: str) -> bool:
    """Whether a name stays in its folder."""
    return all(part not in ("", ".", "..") for part in re.split(r"[/\\]", name))
