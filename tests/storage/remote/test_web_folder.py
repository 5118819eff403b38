"""A web server's folders: which names are requested, how often, and under which URLs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bnstat.errors import BnstatError, NotFoundError
from bnstat.storage.access import Access
from bnstat.storage.files import Entry

pytest.importorskip("aiohttp", reason="the driver for https:// is not installed")

from bnstat.storage.web import Head, WebFolder, WebStore


class Server(WebStore):
    """Files by URL; `asked` are the names of each request."""

    def __init__(self, files: dict[str, bytes], sends_ranges: bool = True) -> None:
        super().__init__(None, Access())
        self.files, self.sends_ranges = files, sends_ranges
        self.asked: list[list[str]] = []

    def heads(self, paths: Sequence[str]) -> list[Head | BaseException | None]:
        self.asked.append(list(paths))
        return [
            (Entry("", False, len(data), modified=7.0), data[:4096] if self.sends_ranges else data)
            if (data := self.files.get(path)) is not None
            else TimeoutError()
            if "slow" in path
            else None
            for path in paths
        ]


@pytest.mark.parametrize(
    ("url", "path", "name", "is_plain"),
    [
        ("https://host/a/b", "https://host/a/b", "b", False),
        ("https://host/a/b/?q=1#part", "https://host/a/b", "b", True),
        ("https://me:word@host/a?q=word", "https://host/a", "a", False),
        ("https://host", "https://host", "", True),
        ("https://host/", "https://host", "", True),
    ],
)
def test_parts_of_urls(url: str, path: str, name: str, is_plain: bool) -> None:
    web_folder = WebFolder(Server({}), url)
    assert (web_folder.path, web_folder.name, web_folder.is_plain) == (path, name, is_plain)


def test_up_and_down() -> None:
    top = WebFolder(Server({"https://host/a/b/c?q=1": b"x"}), "https://host/a?q=1")
    below, root = top.folder("b"), top.parent()
    assert (below.path, below.file("c") is not None) == ("https://host/a/b", True)
    assert (root.path, root.parent()) == ("https://host", None)
    assert root.folder("a").path == "https://host/a"


def test_each_name_is_requested_once_and_many_together() -> None:
    server = Server({"https://host/m/a.index": b"1", "https://host/m/b%20c": b"22"})
    top = WebFolder(server, "https://host/m")
    top.expect(["a.index", "none", "b c"])
    assert server.asked == [[f"https://host/m/{name}" for name in ("a.index", "none", "b%20c")]]
    for _ in range(2):
        file = top.file("b c")
        assert (file.name, file.size, file.read()) == ("b c", 2, b"22")
        assert top.file("none") is None
    assert len(server.asked) == 1
    assert top.matching("") == ["a.index", "b c"]
    assert top.matching("a", ".index") == ["a.index"]
    assert top.matching("a", ".data") == []
    assert [top.modified(name) for name in ("b c", "none", "other")] == [7.0, 0.0, 0.0]
    with pytest.raises(NotFoundError, match="web servers do not list their files"):
        top.names()


def test_files_that_a_file_names_are_requested_together() -> None:
    server = Server({f"https://host/m/{name}": b"x" for name in ("index", "a", "b")})
    top = WebFolder(server, "https://host/m")
    index = top.file("index")
    index.expect(["a", "../a", "b", "none"])
    assert index.part("b") is not None
    assert server.asked[1:] == [[f"https://host/m/{name}" for name in ("a", "b", "none")]]
    index.expect(map(str, range(5000)))
    assert len(server.asked[-1]) == 1000


@pytest.mark.parametrize(
    "name", ["..", "../a", "a/../b", "", "a//b", "./a", "a\\..\\b", "/etc/passwd", "http://other/x"]
)
def test_names_that_lead_out(name: str) -> None:
    server = Server({})
    assert WebFolder(server, "https://host/m").file(name) is None
    assert server.asked == []


def test_errors_name_the_url() -> None:
    with pytest.raises(BnstatError, match="not a valid URL"):
        WebFolder(Server({}), "https:///a")
    with pytest.raises(BnstatError, match="https://host/m/slow: the server does not answer"):
        WebFolder(Server({}), "https://host/m?q=word").file("slow")


@pytest.mark.parametrize(
    ("size", "sends_ranges", "is_noted"),
    [(4097, False, True), (4096, False, False), (4097, True, False)],
)
def test_a_note_on_servers_without_ranges(size: int, sends_ranges: bool, is_noted: bool) -> None:
    server = Server({"https://host/m/x": bytes(size)}, sends_ranges)
    assert WebFolder(server, "https://host/m").file("x") is not None
    notes = ["https://host/m/x: the server sends only whole files"] if is_noted else []
    assert server.access.notes == notes
    assert server.access.left == 256_000_000 - (4096 if sends_ranges else size)
