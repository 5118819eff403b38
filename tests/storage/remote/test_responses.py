"""Responses of a web server, one by one: accepted, refused, or requested again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from bnstat.errors import BnstatError, ChangedError
from bnstat.storage.access import Access
from bnstat.storage.files import Entry

aiohttp = pytest.importorskip("aiohttp", reason="the driver for https:// is not installed")
asyn = pytest.importorskip("fsspec.asyn")
yarl = pytest.importorskip("yarl")

from bnstat.storage import web  # noqa: E402
from bnstat.storage.stores import Piece, RemoteFile  # noqa: E402

URL = "https://host/a/file"


class Response:
    """A server's response, like aiohttp's."""

    def __init__(
        self,
        status: int = 206,
        body: bytes = b"",
        content_range: str | None = None,
        url: str = URL,
        length: int | None = -1,
        redirected: bool = False,
        **headers: str,
    ) -> None:
        self.status, self.url, self.history = status, yarl.URL(url), [None] * redirected
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if content_range is not None:
            self.headers["Content-Range"] = f"bytes {content_range}"
        self.content_length = len(body) if length == -1 else length
        self.content, self._body, self.is_read = self, body, False

    async def iter_any(self) -> AsyncIterator[bytes]:
        self.is_read = True
        for start in range(0, len(self._body), 3):
            yield self._body[start : start + 3]

    def raise_for_status(self) -> None:
        raise aiohttp.ClientResponseError(None, (), status=self.status)

    async def __aenter__(self) -> Response:
        return self

    async def __aexit__(self, *error: object) -> None: ...


class Server:
    """A file system with these responses, in order; `asked` are the headers of each request."""

    def __init__(self, *responses: Response | Exception) -> None:
        self.loop, self.kwargs = asyn.get_loop(), {"headers": {"X": "y"}, "proxy": "p"}
        self.asked: list[Mapping[str, Any]] = []
        self._responses = list(responses)

    def encode_url(self, url: str) -> str:
        return url

    async def set_session(self) -> Server:
        return self

    def get(self, url: str, headers: Mapping[str, str], **options: Any) -> Response:
        self.asked.append({**headers, **options, "url": url})
        response = self._responses.pop(0)
        if isinstance(response, Exception):
            raise response
        return response


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Collect the seconds of waiting, instead of waiting."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(web.asyncio, "sleep", sleep)
    return waited


ENTRY = Entry("file", False, 100, "tag")


def pieces(
    server: Server, start: int = 10, end: int = 14, entry: Entry = ENTRY, url: str = URL
) -> list[Any]:
    store = web.WebStore(server, Access())
    file = RemoteFile(store, web.WebFolder(store, url), url, entry)
    return store._read([Piece(file, start, end)])


def piece(*responses: Response | Exception, **options: Any) -> Any:
    (result,) = pieces(Server(*responses), **options)
    if isinstance(result, BaseException):
        raise result
    return result


def head(*responses: Response | Exception, most: int = 1 << 30) -> Any:
    (result,) = web.WebStore(Server(*responses), Access(None, most)).heads([URL])
    if isinstance(result, BaseException):
        raise result
    return result


class TestPieces:
    @pytest.mark.parametrize("tag", ["", "tag"])
    def test_the_requested_range(self, tag: str) -> None:
        server = Server(Response(206, b"abcd", "10-13/100", ETag=tag))
        assert pieces(server) == [b"abcd"]
        (asked,) = server.asked
        assert asked["Range"] == "bytes=10-13"
        assert asked["Accept-Encoding"] == "identity"
        assert (asked["X"], asked["proxy"], asked["url"]) == ("y", "p", URL)

    @pytest.mark.parametrize(
        ("response", "options"),
        [
            (Response(200, b"abcd"), {"start": 0, "end": 4, "entry": ENTRY._replace(size=4)}),
            # A file without a tag may get one.
            (Response(206, b"abcd", "10-13/100", ETag="x"), {"entry": ENTRY._replace(tag="")}),
            (Response(206, b"abcd", "10-13/100", url="http://host/a"), {"url": "http://host/a"}),
            (Response(206, b"abcd", "10-13/100", length=None), {}),
            (Response(206, b"abcd", "10-13/100", Content_Encoding="identity"), {}),
        ],
    )
    def test_accepted_responses(self, response: Response, options: dict[str, Any]) -> None:
        assert piece(response, **options) == b"abcd"

    @pytest.mark.parametrize(
        ("message", "responses"),
        [
            (
                "sends other bytes than requested; download",
                [
                    Response(206, b"abcd", "10-14/100"),
                    Response(206, b"abcd", "9-13/100"),
                    Response(206, b"abcd"),
                    Response(206, b"abcd", "*/100"),
                    Response(200, b"abcd"),
                    Response(200, b"abcd", "10-13/100"),
                    Response(200, b"x" * 100),
                    Response(200, b"abcd", length=None),
                    Response(204, b"abcd", "10-13/100"),
                ],
            ),
            (
                "changed while it was read; try again",
                [
                    Response(412),
                    Response(416),
                    Response(206, b"abcd", "10-13/101"),
                    Response(206, b"abcd", "10-13/100", ETag="other"),
                    Response(206, b"abcd", "10-13/100", Last_Modified="other"),
                ],
            ),
            ("sent 3 bytes but announ", [Response(206, b"abc", "10-13/100", length=None)]),
            ("but announced 4", [Response(206, b"abcdefg", "10-13/100", length=4)]),
            ("sends contradictory lengths", [Response(206, b"abcd", "10-13/100", length=5)]),
            ("an insecure address", [Response(206, b"abcd", "10-13/100", url="http://host/a")]),
            ("compresses the file", [Response(206, b"abcd", "10-13/100", Content_Encoding="br")]),
        ],
    )
    def test_refused_responses(self, message: str, responses: list[Response]) -> None:
        kind = ChangedError if "changed" in message else BnstatError
        for response in responses:
            with pytest.raises(kind, match=message):
                piece(response)


class TestHeads:
    def test_the_size_and_the_tag_are_read(self) -> None:
        server = Server(Response(404))
        assert web.WebStore(server, Access()).heads([URL]) == [None]
        assert server.asked[0]["Range"] == "bytes=0-4095"
        date = "Thu, 01 Jan 1970 00:01:00 GMT"
        result = head(Response(206, b"abc", "0-2/3", Last_Modified=date))
        assert result == (Entry("", False, 3, date, modified=60.0), b"abc")
        for date in ("never", "Thu, 01 Jan 1970 00:01:00 +99999999999999"):
            response = Response(206, b"x" * 4096, "0-4095/9999", ETag="t", Last_Modified=date)
            assert head(response) == (Entry("", False, 9999, "t"), b"x" * 4096)

    @pytest.mark.parametrize(
        "response",
        [Response(404), Response(410), Response(200, b"list", url=f"{URL}/", redirected=True)],
    )
    def test_missing_files(self, response: Response) -> None:
        assert head(response) is None
        assert not response.is_read

    def test_a_redirect_to_a_file(self) -> None:
        response = Response(206, b"abc", "0-2/3", url="https://other/file", redirected=True)
        assert head(response)[1] == b"abc"

    def test_an_empty_file(self) -> None:
        assert head(Response(416)) == head(Response(200)) == (Entry("", False, 0), b"")

    @pytest.mark.parametrize("length", [-1, None])
    def test_a_server_without_ranges(self, length: int | None) -> None:
        result = head(Response(200, b"abcdefg", length=length), most=7)
        assert result == (Entry("", False, 7), b"abcdefg")
        with pytest.raises(BnstatError, match="cannot send a part of a file") as caught:
            head(Response(200, b"abcdefg", length=length), most=6)
        assert ("(7 bytes)" in str(caught.value)) is (length == -1)

    @pytest.mark.parametrize(
        ("content_range", "message"),
        [
            *((text, "does not report the file size") for text in (None, "x", "0-2/*")),
            *((text, "sends other bytes") for text in ("1-3/9", "0-4096/9999", "0-3/3")),
        ],
    )
    def test_impossible_heads(self, content_range: str | None, message: str) -> None:
        with pytest.raises(BnstatError, match=message):
            head(Response(206, b"abc", content_range))


def right() -> Response:
    return Response(206, b"abcd", "10-13/100")


class TestRetries:
    @pytest.mark.parametrize(
        "failure",
        [
            *map(Response, (408, 425, 429, 500, 502, 503, 504)),
            aiohttp.ClientPayloadError(),
            aiohttp.ServerDisconnectedError(),
            TimeoutError(),
        ],
    )
    def test_temporary_failures_are_retried_three_times(self, failure, waits) -> None:
        assert piece(failure, failure, failure, right()) == b"abcd"
        for wait, least in zip(waits, (0.25, 0.5, 1.0), strict=True):
            assert least <= wait <= 1.5 * least
        with pytest.raises((aiohttp.ClientError, TimeoutError)):
            piece(failure, failure, failure, failure)
        assert len(waits) == 6

    @pytest.mark.parametrize(
        ("retry_after", "least", "most"),
        [("3", 3, 3), ("3600", 5, 5), ("soon", 0.25, 0.375), ("²", 0.25, 0.375), ("", 0, 1)],
    )
    def test_a_server_sets_the_delay(self, retry_after, least, most, waits) -> None:
        assert piece(Response(503, Retry_After=retry_after), right()) == b"abcd"
        (wait,) = waits
        assert least <= wait <= most

    def test_a_lasting_failure_is_raised_at_once(self, waits: list[float]) -> None:
        key = SimpleNamespace(host="host", port=1, ssl=None, is_ssl=False)
        refused = aiohttp.ClientConnectorError(key, OSError("refused"))
        for failure in (refused, *map(Response, (400, 403, 404, 501))):
            with pytest.raises((aiohttp.ClientConnectorError, aiohttp.ClientResponseError)):
                piece(failure)
        assert waits == []
