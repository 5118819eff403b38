"""Byte ranges over HTTP.

A server may ignore `Range`, send another range or a changed file, redirect in a circle, be busy, or
close the connection. Each response is checked, and no more of the body is read than needed.

Source: RFC 9110, sections 10.2.3, 14 and 15.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import fsspec
from fsspec.asyn import sync

from bnstat.errors import BnstatError, ChangedError, NotFoundError
from bnstat.storage.access import Access, redact, to_bnstat_error
from bnstat.storage.files import Entry, File, Folder, Spot
from bnstat.storage.stores import Piece, RemoteFile, RemoteStore

_HEAD: Final = 4 << 10  # bytes requested to determine the existence and size of a file
_MAX_WHOLE: Final = 16 << 20  # bytes of a file that a server without ranges may send whole
_MAX_EXPECTED: Final = 1000  # files requested together; a hostile file may name any number
_ATTEMPTS: Final = 4
_FIRST_WAIT: Final = 0.25
_LONGEST_WAIT: Final = 5.0
_MAX_REDIRECTS: Final = 5
_PARALLEL: Final = 64
_TEMPORARY: Final = {408, 425, 429, 500, 502, 503, 504}
_ABSENT: Final = {404, 410}
_BROKEN_OFF: Final = (
    aiohttp.ClientPayloadError,
    aiohttp.ServerDisconnectedError,
    aiohttp.ClientOSError,
    asyncio.TimeoutError,
)
_OUTSIDE: Final = {"", ".", ".."}  # parts of paths that may lead out of a folder
_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")

_HINT: Final = "download the file and pass its path"
_WINDOW: Final = 30.0
_MIN_BYTES: Final = 30_000
"""Bytes that must arrive in each window of `_WINDOW` seconds, unless a response begins."""

Head = tuple[Entry, bytes]
"""(entry with an empty name, first bytes of the file); a server without ranges sends all bytes."""


class WebStore(RemoteStore):
    """Files on web servers, which have no listings: files can only be requested by name."""

    def __init__(self, fs: Any, access: Access) -> None:
        super().__init__(fs, "https", access)
        self._received = 0

    def url(self, path: str) -> str:
        return redact(path)

    def heads(self, urls: Sequence[str]) -> list[Head | BaseException | None]:
        """Return for each URL a `Head`, None if no file exists, or the exception of the request."""
        return self._gather(list(map(self._head, urls)), self.url(urls[0]))

    def check_unchanged(self, files: Iterable[RemoteFile]) -> None:
        """Do nothing, because the tag in every response is checked."""

    def _read(self, pieces: Sequence[Piece]) -> list[Any]:
        return self._gather([self._piece(piece) for piece in pieces], pieces[0].file.path)

    def _gather(self, requests: Sequence[Awaitable[Any]], where: str) -> list[Any]:
        """Make requests in parallel; return a list with the result or exception of each."""
        gate = asyncio.Semaphore(_PARALLEL)

        async def limited(request: Awaitable[Any]) -> Any:
            async with gate:
                return await request

        async def gather() -> list[Any]:
            results = asyncio.gather(*map(limited, requests), return_exceptions=True)
            while True:
                before = self._received
                if (await asyncio.wait([results], timeout=_WINDOW))[0]:
                    return results.result()
                if self._received - before < _MIN_BYTES:
                    results.cancel()
                    with suppress(asyncio.CancelledError):
                        await results
                    what = f"the server sends less than {_MIN_BYTES:,} bytes in {_WINDOW:g} seconds"
                    raise BnstatError(where, what, "try again later")

        return list(sync(self._fs.loop, gather))

    async def _head(self, url: str) -> Head | None:
        limit = min(_MAX_WHOLE, self.access.left)
        response, data = await self._request(url, 0, _HEAD, limit)
        if response.status in _ABSENT or _is_folder(response):
            return None
        if response.status == 416:
            return _entry(response, 0), b""
        _refuse_failure(response, url)
        if response.status == 206:
            content = _content_range(response)
            if content is None:
                raise BnstatError(redact(url), "the server does not report the file size", _HINT)
            start, end, size = content
            if start != 0 or end > min(_HEAD, size):
                raise BnstatError(redact(url), "the server sends other bytes than requested", _HINT)
            _refuse_incomplete(response, data, end, url)
            return _entry(response, size), data
        size = response.content_length
        if max(len(data), size or 0) > limit:
            what = "the server cannot send a part of a file, and the whole file is too large"
            length = f" ({size:,} bytes)" if size is not None else ""
            hint = f"{_HINT}, or serve it with ranges"
            raise BnstatError(redact(url), what + length, hint)
        return _entry(response, len(data)), data

    async def _piece(self, piece: Piece) -> bytes:
        url, entry, length = piece.file.inside, piece.file.entry, piece.end - piece.start
        response, data = await self._request(url, piece.start, piece.end, length)
        if response.status in (412, 416):
            raise ChangedError(redact(url), "changed while it was read", "try again")
        _refuse_failure(response, url)
        content = _content_range(response)
        is_other_size = content is not None and content[2] != entry.size
        if is_other_size or (entry.tag and _tag(response) not in ("", entry.tag)):
            raise ChangedError(redact(url), "changed while it was read", "try again")
        is_range = content is not None and content[:2] == (piece.start, piece.end)
        is_file = piece.is_whole and response.content_length == length
        if not (is_range if response.status == 206 else is_file and response.status == 200):
            raise BnstatError(redact(url), "the server sends other bytes than requested", _HINT)
        _refuse_incomplete(response, data, length, url)
        return data

    async def _request(self, url: str, start: int, end: int, limit: int) -> tuple[Any, bytes]:
        """Return the response and its body: the range, or up to `limit` bytes of a whole file."""
        session = await self._fs.set_session()
        options = {**self._fs.kwargs, "max_redirects": _MAX_REDIRECTS}
        ours = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        options["headers"] = {**options.get("headers", {}), **ours}
        for attempt in range(1, _ATTEMPTS + 1):
            wait = _FIRST_WAIT * 2 ** (attempt - 1) * random.uniform(1, 1.5)
            try:
                async with session.get(self._fs.encode_url(url), **options) as response:
                    self._received += _MIN_BYTES
                    if response.status not in _TEMPORARY or attempt == _ATTEMPTS:
                        most = end - start if response.status == 206 else limit
                        return response, await self._body(response, most)
                    retry_after = response.headers.get("Retry-After", "")
                    if retry_after.isdecimal():
                        wait = max(wait, float(retry_after))
            except aiohttp.ClientConnectorError:
                raise
            except _BROKEN_OFF:
                if attempt == _ATTEMPTS:
                    raise
            await asyncio.sleep(min(wait, _LONGEST_WAIT))
        raise AssertionError("the last attempt returns or raises")

    async def _body(self, response: Any, limit: int) -> bytes:
        """Return the body, cut soon after `limit` bytes; empty if `Content-Length` is larger."""
        data = bytearray()
        is_file = response.status in (200, 206) and not _is_folder(response)
        if is_file and (response.content_length or 0) <= limit:
            async for chunk in response.content.iter_any():
                self._received += len(chunk)
                data += chunk
                if len(data) > limit:
                    break
        return bytes(data)


def _is_folder(response: Any) -> bool:
    """Return True if the server redirected to a folder, which it sends as an HTML page."""
    return bool(response.history) and response.url.path.endswith("/")


def _refuse_failure(response: Any, url: str) -> None:
    if response.status >= 400:
        response.raise_for_status()
    if response.url.scheme != "https" and url.startswith("https:"):
        raise BnstatError(redact(url), "the server redirects from HTTPS to an insecure address")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        what = "the server compresses the file, which bnstat did not request"
        raise BnstatError(redact(url), what, _HINT)


def _refuse_incomplete(response: Any, data: bytes, length: int, url: str) -> None:
    if response.content_length not in (None, length):
        raise BnstatError(redact(url), "the server sends contradictory lengths", _HINT)
    if len(data) != length:
        raise BnstatError(redact(url), f"the server sent {len(data)} bytes but announced {length}")


def _content_range(response: Any) -> tuple[int, int, int] | None:
    """Return (start, end, file size) from the header `Content-Range`; None if not valid."""
    match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return None if match is None else (int(match[1]), int(match[2]) + 1, int(match[3]))


def _entry(response: Any, size: int) -> Entry:
    try:
        modified = parsedate_to_datetime(response.headers["Last-Modified"]).timestamp()
    except (KeyError, ValueError, TypeError, OverflowError):
        modified = 0.0
    return Entry("", False, size, _tag(response), modified=modified)


def _tag(response: Any) -> str:
    return str(response.headers.get("ETag") or response.headers.get("Last-Modified") or "")


def find_on_web(url: str, access: Access) -> Spot:
    """Return the location of a URL; see `bnstat.storage.local.find`."""
    options = dict(access.options)
    options["client_kwargs"] = {
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30),
        "trust_env": True,
        **options.get("client_kwargs", {}),
    }
    try:
        fs = fsspec.filesystem("https", **options)
    except Exception as error:
        raise to_bnstat_error(error, redact(url)) from error
    folder = WebFolder(WebStore(fs, access), url)
    return Spot(None if folder.is_plain else folder.parent(), folder.name, folder)


class WebFolder(Folder):
    """A folder on a web server; `is_plain` is True if the URL has no path or ends with a slash.

    The query of the URL is added to the URL of each file.
    """

    can_list = False

    def __init__(self, store: WebStore, url: str) -> None:
        match = re.fullmatch(r"(\w+://[^/?#]+)([^?#]*)(\?[^#]*)?(#.*)?", url, re.DOTALL)
        if match is None:
            raise BnstatError(redact(url), "not a valid URL")
        self._host, path, self._query = match[1], match[2], match[3] or ""
        self._inside = path.strip("/")
        self.is_plain = path.endswith("/") or not self._inside
        self.path = redact(self._host + path).rstrip("/")
        self.name = self._inside.rpartition("/")[2]
        self._store = store
        self._files: dict[str, RemoteFile | None] = {}

    def names(self) -> list[str]:
        what = "no such model, and web servers do not list their files"
        hint = "pass a file's URL, such as a checkpoint's .index, or the checkpoint's prefix"
        raise NotFoundError(self.path, what, hint)

    def matching(self, prefix: str, suffix: str = "") -> list[str]:
        """Return the matching names of files that were requested before and exist."""
        names = sorted(name for name, file in self._files.items() if file is not None)
        return [name for name in names if name.startswith(prefix) and name.endswith(suffix)]

    def file(self, name: str) -> File | None:
        self.expect([name])
        return self._files.get(name)

    def expect(self, names: Iterable[str]) -> None:
        new = [
            name
            for name in names
            if name not in self._files and _OUTSIDE.isdisjoint(re.split(r"[/\\]", name))
        ][:_MAX_EXPECTED]
        if not new:
            return
        base = f"{self._host}/{self._inside}".rstrip("/")
        urls = [f"{base}/{quote(name, safe='/%:@!$&()*+,;=~-._')}{self._query}" for name in new]
        access = self._store.access
        for name, url, head in zip(new, urls, self._store.heads(urls), strict=True):
            if isinstance(head, BaseException):
                raise to_bnstat_error(head, redact(url)) from head
            self._files[name] = None
            if head is not None:
                entry, data = head
                entry = entry._replace(name=name.rpartition("/")[2])
                self._files[name] = file = RemoteFile(self._store, self, url, entry)
                access.take(file.path, len(data))
                file.fetched.add(0, data)
                if len(data) > _HEAD:
                    access.notes.append(f"{file.path}: the server sends only whole files")

    def folder(self, name: str) -> Folder | None:
        return self._at(f"{self._inside}/{name}" if self._inside else name)

    def parent(self) -> WebFolder | None:
        return self._at(self._inside.rpartition("/")[0]) if self._inside else None

    def modified(self, name: str) -> float:
        file = self._files.get(name)
        return 0.0 if file is None else file.entry.modified

    def _at(self, inside: str) -> WebFolder:
        return WebFolder(self._store, f"{self._host}/{inside}{self._query}")
