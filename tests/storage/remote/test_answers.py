"""What is made of a web server's answers, one by one: taken, refused, or asked for again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from bnstat.errors import BnstatError, ChangedError
from bnstat.storage.remote.transport import Piece, Stat

aiohttp = pytest.importorskip("aiohttp", reason="the driver for https:// is not installed")
asyn = pytest.importorskip("fsspec.asyn")
yarl = pytest.importorskip("yarl")

from bnstat.storage.remote import http  # noqa: E402

URL = "https://host/a/file"


class Answer:
    """An answer of a server, as aiohttp gives it."""

    def __init__(
        self,
        status: int = 206,
        body: bytes = b"",
        told: str | None = None,
        url: str = URL,
        length: int | None = -1,
        redirected: bool = False,
        **headers: str,
    ) -> None:
        self.status, self.url, self.history = status, yarl.URL(url), [None] * redirected
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if told is not None:
            self.headers["Content-Range"] = f"bytes {told}"
        self.content_length = len(body) if length == -1 else length
        self.content, self._body = self, body

    async def iter_any(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._body), 3):
            yield self._body[start : start + 3]

    def raise_for_status(self) -> None:
        raise aiohttp.ClientResponseError(None, (), status=self.status)

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(self, *error: object) -> None: ...


class Server:
    """A file system that answers so, in this order; `asked` are the headers of each request."""

    def __init__(self, *answers: Answer | Exception) -> None:
        self.loop, self.kwargs = asyn.get_loop(), {"headers": {"X": "y"}, "proxy": "p"}
        self.asked: list[Mapping[str, Any]] = []
        self._left = list(answers)

    def encode_url(self, url: str) -> str:
        return url

    async def set_session(self) -> Server:
        return self

    def get(self, url: str, headers: Mapping[str, str], **options: Any) -> Answer:
        self.asked.append({**headers, **options, "url": url})
        answer = self._left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For how long was waited, in place of waiting."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(http.asyncio, "sleep", sleep)
    return waited


STAT = Stat(URL, False, 100, 0.0, "tag")


def part(*answers: Answer | Exception, start: int = 10, end: int = 14, stat: Stat = STAT) -> Any:
    (found,) = http.Http(Server(*answers), "https")._read([Piece(stat, start, end)])
    if isinstance(found, BaseException):
        raise found
    return found


def head(*answers: Answer | Exception, most: int = 1 << 30) -> Any:
    (found,) = http.Http(Server(*answers), "https").heads([URL], most)
    if isinstance(found, BaseException):
        raise found
    return found


class TestParts:
    @pytest.mark.parametrize("tag", ["", "tag"])
    def test_the_range_that_was_asked_for(self, tag: str) -> None:
        server = Server(Answer(206, b"abcd", "10-13/100", ETag=tag))
        assert http.Http(server, "https")._read([Piece(STAT, 10, 14)]) == [b"abcd"]
        (asked,) = server.asked
        assert asked["Range"] == "bytes=10-13"
        assert asked["Accept-Encoding"] == "identity"
        assert (asked["X"], asked["proxy"], asked["url"]) == ("y", "p", URL)

    def test_the_whole_file_where_it_is_asked_for(self) -> None:
        assert part(Answer(200, b"abcd"), start=0, end=4, stat=STAT._replace(size=4)) == b"abcd"

    @pytest.mark.parametrize(
        "answer",
        [
            Answer(206, b"abcd", "10-14/100"),
            Answer(206, b"abcd", "9-13/100"),
            Answer(206, b"abcd"),
            Answer(206, b"abcd", "*/100"),
            Answer(200, b"abcd"),
            Answer(200, b"abcd", "10-13/100"),
            Answer(200, b"x" * 100),
            Answer(200, b"abcd", length=None),
            Answer(204, b"abcd", "10-13/100"),
        ],
    )
    def test_other_bytes_are_refused(self, answer: Answer) -> None:
        with pytest.raises(BnstatError, match="sends other bytes than requested; download"):
            part(answer)

    @pytest.mark.parametrize(
        "answer",
        [
            Answer(412),
            Answer(416),
            Answer(206, b"abcd", "10-13/101"),
            Answer(206, b"abcd", "10-13/100", ETag="other"),
            Answer(206, b"abcd", "10-13/100", Last_Modified="other"),
        ],
    )
    def test_a_file_that_is_another_changed(self, answer: Answer) -> None:
        with pytest.raises(ChangedError, match="changed while it was read; try again"):
            part(answer)

    def test_a_file_without_a_tag_may_get_one(self) -> None:
        answer = Answer(206, b"abcd", "10-13/100", ETag="any")
        assert part(answer, stat=STAT._replace(tag="")) == b"abcd"

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (Answer(206, b"abc", "10-13/100", length=None), "sent 3 bytes but announced 4"),
            (Answer(206, b"abcdefg", "10-13/100", length=4), "but announced 4"),
            (Answer(206, b"abcd", "10-13/100", length=5), "sends contradictory lengths"),
            (Answer(206, b"abcd", "10-13/100", url="http://host/a"), "to an insecure address"),
            (Answer(206, b"abcd", "10-13/100", Content_Encoding="gzip"), "compresses the file"),
        ],
    )
    def test_answers_that_contradict_themselves(self, answer: Answer, message: str) -> None:
        with pytest.raises(BnstatError, match=message):
            part(answer)

    def test_an_insecure_address_that_was_asked_for(self) -> None:
        answer = Answer(206, b"abcd", "10-13/100", url="http://host/a")
        assert part(answer, stat=STAT._replace(path="http://host/a")) == b"abcd"

    def test_lengths_need_not_be_told(self) -> None:
        assert part(Answer(206, b"abcd", "10-13/100", length=None)) == b"abcd"
        plain = Answer(206, b"abcd", "10-13/100", Content_Encoding="identity")
        assert part(plain) == b"abcd"

    @pytest.mark.parametrize("status", [400, 403, 404, 501])
    def test_a_failure_is_raised_at_once(self, status: int, waits: list[float]) -> None:
        with pytest.raises(aiohttp.ClientResponseError):
            part(Answer(status))
        assert waits == []


class TestHeads:
    def test_the_beginning_tells_the_rest(self) -> None:
        server = Server(Answer(404))
        assert http.Http(server, "https").heads([URL], 0) == [None]
        assert server.asked[0]["Range"] == "bytes=0-4095"
        date = "Thu, 01 Jan 1970 00:01:00 GMT"
        found = head(Answer(206, b"abc", "0-2/3", Last_Modified=date))
        assert found == (Stat(URL, False, 3, 60.0, date), b"abc", False)
        found = head(Answer(206, b"x" * 4096, "0-4095/9999", ETag="t", Last_Modified="never"))
        assert found == (Stat(URL, False, 9999, 0.0, "t"), b"x" * 4096, False)

    @pytest.mark.parametrize(
        "answer",
        [Answer(404), Answer(410), Answer(200, b"list", url=f"{URL}/", redirected=True)],
    )
    def test_what_is_not_there(self, answer: Answer) -> None:
        assert head(answer) is None

    def test_a_redirect_to_a_file(self) -> None:
        answer = Answer(206, b"abc", "0-2/3", url="https://other/file", redirected=True)
        assert head(answer).data == b"abc"

    def test_an_empty_file(self) -> None:
        assert head(Answer(416)) == (Stat(URL, False, 0, 0.0, ""), b"", True)
        assert head(Answer(200)) == (Stat(URL, False, 0, 0.0, ""), b"", False)

    @pytest.mark.parametrize("length", [-1, None])
    def test_a_server_that_sends_it_whole(self, length: int | None) -> None:
        found = head(Answer(200, b"abcdefg", length=length), most=7)
        assert found == (Stat(URL, False, 7, 0.0, ""), b"abcdefg", True)
        with pytest.raises(BnstatError, match="cannot send a part of a file") as caught:
            head(Answer(200, b"abcdefg", length=length), most=6)
        assert ("(7 bytes)" in str(caught.value)) is (length == -1)

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (Answer(206, b"abc"), "does not say how large the file is"),
            (Answer(206, b"abc", "0-2/*"), "does not say how large the file is"),
            (Answer(206, b"abc", "1-3/9"), "sends another range than requested"),
            (Answer(206, b"abc", "0-4096/9999"), "sends another range than requested"),
            (Answer(206, b"abc", "0-3/3"), "sends another range than requested"),
        ],
    )
    def test_what_cannot_be_a_beginning(self, answer: Answer, message: str) -> None:
        with pytest.raises(BnstatError, match=message):
            head(answer)


class TestAgain:
    def right(self) -> Answer:
        return Answer(206, b"abcd", "10-13/100")

    @pytest.mark.parametrize(
        "passing",
        [
            *map(Answer, (408, 425, 429, 500, 502, 503, 504)),
            aiohttp.ClientPayloadError(),
            aiohttp.ServerDisconnectedError(),
            TimeoutError(),
        ],
    )
    def test_what_passes_is_asked_for_four_times(
        self, passing: Answer | Exception, waits: list[float]
    ) -> None:
        assert part(passing, passing, passing, self.right()) == b"abcd"
        for wait, least in zip(waits, (0.25, 0.5, 1.0), strict=True):
            assert least <= wait <= 1.5 * least
        with pytest.raises((aiohttp.ClientError, TimeoutError)):
            part(passing, passing, passing, passing)
        assert len(waits) == 6

    @pytest.mark.parametrize(
        ("told", "least", "most"), [("3", 3, 3), ("3600", 5, 5), ("soon", 0.25, 0.375), ("", 0, 1)]
    )
    def test_a_server_says_for_how_long(
        self, told: str, least: float, most: float, waits: list[float]
    ) -> None:
        assert part(Answer(503, Retry_After=told), self.right()) == b"abcd"
        (wait,) = waits
        assert least <= wait <= most

    def test_a_server_that_is_not_there_is_not_asked_again(self, waits: list[float]) -> None:
        from types import SimpleNamespace

        key = SimpleNamespace(host="host", port=1, ssl=None, is_ssl=False)
        with pytest.raises(aiohttp.ClientConnectorError):
            part(aiohttp.ClientConnectorError(key, OSError("refused")))
        assert waits == []
