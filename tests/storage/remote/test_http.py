"""Models on web servers, with and without faults."""

from __future__ import annotations

import gc
import itertools
import threading

import numpy as np
import pytest

import bnstat
from bnstat.errors import BnstatError, ChangedError, NotFoundError
from bnstat.storage.access import Access
from bnstat.storage.files import Entry
from tests.builders.server import Fault, Handler, Server
from tests.fuzz import handmade
from tests.storage.remote.conftest import DATA

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp", reason="the driver for https:// is not installed")

from bnstat.storage import web  # noqa: E402
from bnstat.storage.web import WebFolder, WebStore  # noqa: E402

PLACES = [
    "run/model-100",
    "run/model-100.index",
    "run/model-100.data-00000-of-00001",
    "saved_model",
    "saved_model/",
    "saved_model/variables",
    "saved_model/saved_model.pb",
    "saved_model/variables/variables.index",
]


def same(one: bnstat.Model, other: bnstat.Model) -> None:
    assert one.keys() == other.keys()
    for layer, twin in zip(one, other, strict=True):
        for role in ("gamma", "beta", "moving_mean", "moving_variance"):
            np.testing.assert_array_equal(getattr(layer, role), getattr(twin, role))


@pytest.mark.parametrize("place", PLACES)
def test_a_model_is_read_as_on_disk(digits: Server, place: str) -> None:
    far = bnstat.load(f"{digits.url}/{place}", eager=True)
    same(far, bnstat.load(DATA / place))
    assert far.source.path == f"{digits.url}/{place}"


@pytest.mark.parametrize("name", ["run/model-7.data-00000-of-00001", "run/model-101", ""])
def test_missing_models(name: str, digits: Server) -> None:
    with pytest.raises(NotFoundError, match=r"no such model, .* do not list .*; pass a file's URL"):
        bnstat.load(f"{digits.url}/{name}")


def test_secrets_are_sent_and_never_printed(digits: Server) -> None:
    place = digits.url.replace("://", "://me:secret@") + "/run/model-100.index?sig=secret"
    model = bnstat.load(place, eager=True)
    assert model.source.path == f"{digits.url}/run/model-100.index"
    assert all("sig=secret" in asked.path for asked in digits.asked)
    with pytest.raises(BnstatError) as caught:
        bnstat.load(place.replace("model-100", "model-1"))
    assert "secret" not in str(caught.value)


def fails(status: int, **headers: str) -> Fault:
    return lambda handler: handler.status(status, **headers)


def breaks_off(handler: Handler) -> bool:
    return handler.answer(most=10)


INDEX = "run/model-100.index"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (fails(403), r"access is denied \(403\); check the credentials"),
        (fails(503), r"the server reports an error \(503\)"),
        (fails(302, Location=f"/{INDEX}"), "redirects in a circle"),
        (fails(302, Location="file:///etc/hosts"), "not HTTP"),
        (breaks_off, "the connection broke off"),
    ],
)
def test_a_permanent_failure(fault: Fault, message: str, digits: Server) -> None:
    digits.faults[INDEX] = fault
    with pytest.raises(BnstatError, match=message):
        bnstat.load(f"{digits.url}/{INDEX}")
    assert len(digits.asked) < 20


def test_a_file_that_changes(digits: Server) -> None:
    name = "run/model-100.data-00000-of-00001"
    once, always = iter(["1"]), itertools.count()
    digits.faults[name] = lambda handler: handler.answer(tag=f'"{next(once, "2")}"')
    assert len(bnstat.load(f"{digits.url}/run/model-100", eager=True)) == 3
    digits.faults[name] = lambda handler: handler.answer(tag=f'"{next(always)}"')
    with pytest.raises(ChangedError):
        bnstat.load(f"{digits.url}/run/model-100", eager=True)


def test_small_files_from_a_server_without_ranges(digits: Server) -> None:
    digits.ranges = False
    model = bnstat.load(f"{digits.url}/saved_model/", eager=True)
    same(model, bnstat.load(DATA / "saved_model"))
    assert any("the server sends only whole files" in note for note in model.notes)


def test_large_files_from_a_server_without_ranges(server: Server) -> None:
    with (server.folder / "m.h5").open("wb") as file:
        file.truncate(20_000_000_000)
    server.ranges = False
    with pytest.raises(BnstatError, match=r"the whole file is too large \(20,000,000,000 bytes\)"):
        bnstat.load(f"{server.url}/m.h5")
    assert server.sent < 20_000_000


def test_no_server() -> None:
    with pytest.raises(BnstatError, match="cannot be reached"):
        bnstat.load("http://127.0.0.1:9/model.h5")


def test_the_state_file_lists_a_run(digits: Server) -> None:
    for place in ("run", "run/", "run/checkpoint"):
        model = bnstat.load(f"{digits.url}/{place}", eager=True)
        same(model, bnstat.load(DATA / "run"))
        assert model.source.checkpoint == "model-400"
    names = [name for name, _ in bnstat.load_all(f"{digits.url}/run")]
    assert names == [name for name, _ in bnstat.load_all(DATA / "run")]


def test_shards_are_requested_together(server: Server) -> None:
    tensors = {f"bn/{role}": np.ones(3) for role in ("gamma", "beta", "moving_mean")}
    tensors["bn/moving_variance"] = np.full(3, 2)
    for name, content in handmade.bundle(tensors, shards=4).items():
        (server.folder / name).write_bytes(content)
    server.delay = 0.2
    same(bnstat.load(f"{server.url}/m.index", eager=True), bnstat.load(server.folder / "m"))
    assert server.most_at_once == 4


STARTS = {
    "a part": b"HTTP/1.1 206 \r\nContent-Range: bytes 0-4095/9999\r\nContent-Length: 4096\r\n\r\n",
    "all": b"HTTP/1.1 200 \r\nContent-Length: 9999\r\n\r\n",
    "no length": b"HTTP/1.1 200 \r\n\r\n",
    "a header": b"HTTP/1.1 200 \r\nX-Header: ",
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> WebStore:
    monkeypatch.setattr(web, "_WINDOW", 0.2)
    monkeypatch.setattr(web, "_MIN_BYTES", 1000)
    return WebStore(fsspec.filesystem("https"), Access())


@pytest.mark.parametrize("start", STARTS)
def test_a_server_that_drips_is_given_up(digits, start, impatient, caplog) -> None:
    is_over = threading.Event()

    def drip(handler: Handler) -> bool:
        handler.wfile.write(STARTS[start])
        while not is_over.wait(0.005):
            handler.wfile.write(b"x")
        return True

    digits.other = drip
    url, entry = f"{digits.url}/m", Entry("m", False, 9999)
    file = impatient.file(WebFolder(impatient, digits.url), url, entry)
    for request in (lambda: impatient.heads([url] * 3), lambda: file.read(0, 4096)):
        with pytest.raises(BnstatError, match=r"m: the server sends less than 1,000 bytes in 0\.2"):
            request()
    is_over.set()
    assert len(digits.asked) == 4
    gc.collect()
    assert not caplog.records


def test_a_slow_server_that_sends_enough(digits, impatient, monkeypatch) -> None:
    monkeypatch.setattr(web, "_WINDOW", 0.02)
    monkeypatch.setattr(web, "_MIN_BYTES", 0)
    digits.delay = 0.1
    (head,) = impatient.heads([f"{digits.url}/run/checkpoint"])
    assert head[1] == (DATA / "run/checkpoint").read_bytes()[:4096]
