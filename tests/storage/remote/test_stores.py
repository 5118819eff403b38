"""Models in stores that can be listed: S3, as moto serves it to boto's client, and memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import bnstat
from bnstat.errors import BnstatError, ChangedError, NotFoundError
from tests.builders.server import Handler, Server
from tests.storage.remote.conftest import DATA
from tests.storage.remote.test_http import same

PLACES = [
    "run",
    "run/",
    "run/model-100",
    "run/model-100.index",
    "run/model-100.data-00000-of-00001",
    "run/model-400.meta",
    "run/checkpoint",
    "saved_model",
    "saved_model/variables",
    "saved_model/saved_model.pb",
]


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the models that ship with the tests are."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        yield "s3://models/digits"
        return
    fsspec = pytest.importorskip("fsspec")
    fs = fsspec.filesystem("memory")
    fs.put(str(DATA), "/models/digits", recursive=True)
    yield "memory://models/digits"
    fs.rm("/models", recursive=True)


@pytest.mark.parametrize("place", PLACES)
def test_a_model_is_read_as_on_disk(store: str, place: str) -> None:
    far, near = bnstat.load(f"{store}/{place}", eager=True), bnstat.load(DATA / place)
    same(far, near)
    assert far.source.checkpoint == near.source.checkpoint
    assert far.source.step == near.source.step


def test_one_of_a_run(store: str) -> None:
    same(bnstat.load(f"{store}/run", step=200), bnstat.load(DATA / "run", step=200))


def test_all_of_a_run(store: str) -> None:
    far, near = list(bnstat.load_all(f"{store}/run")), list(bnstat.load_all(DATA / "run"))
    assert [name for name, _ in far] == [name for name, _ in near]
    for (_, one), (_, other) in zip(far, near, strict=True):
        assert isinstance(one, bnstat.Model)
        assert isinstance(other, bnstat.Model)
        same(one, other)


def test_a_name_nearby_is_offered(store: str) -> None:
    with pytest.raises(NotFoundError, match=r"did you mean .*digits/run/model-100"):
        bnstat.load(f"{store}/run/modl-100")


def test_a_folder_that_is_not_there(store: str) -> None:
    with pytest.raises(NotFoundError):
        bnstat.load(f"{store}/nothing/here")


def test_a_bucket_that_is_not_there(s3: str) -> None:
    with pytest.raises(NotFoundError, match="s3://nobodys/model: "):
        bnstat.load("s3://nobodys/model")


def test_a_whole_bucket(s3: str) -> None:
    with pytest.raises(NotFoundError, match=r"s3://models: contains no model"):
        bnstat.load("s3://models")


def test_an_option_that_the_driver_does_not_take(s3: str) -> None:
    with pytest.raises(BnstatError) as caught:
        bnstat.load("s3://models/digits/run", storage_options={"no_such": "secret"})
    assert "secret" not in str(caught.value)


def test_no_store_at_all() -> None:
    pytest.importorskip("s3fs")
    options = {"endpoint_url": "http://127.0.0.1:9", "key": "somebody", "secret": "secret"}
    with pytest.raises(BnstatError, match=r"s3://models/m: the server cannot be reached"):
        bnstat.load("s3://models/m", storage_options=options)


def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    options = {"endpoint_url": "http://127.0.0.1:9", "skip_instance_cache": True}
    with pytest.raises(BnstatError, match=r"s3://models/m: no credentials were found"):
        bnstat.load("s3://models/m", storage_options=options)


def test_a_store_that_is_always_busy(server: Server) -> None:
    pytest.importorskip("s3fs", reason="the driver for s3:// is not installed")
    server.other = lambda handler: handler.status(503)
    options = {"endpoint_url": server.url, "key": "somebody", "secret": "hardly-a-secret"}
    with pytest.raises(BnstatError, match=r"the server fails \(503\); try again later"):
        bnstat.load("s3://models/m", storage_options=options)
    assert len(server.asked) == 3


def test_a_store_that_is_busy_now_and_then(
    s3: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One answer in three is no answer."""
    from urllib.request import Request, urlopen

    def passed_on(handler: Handler) -> bool:
        if len(server.asked) % 3 == 0:
            return handler.status(503)
        names = ("Range", "If-Match", "Authorization", "x-amz-date", "x-amz-content-sha256")
        heads = {name: handler.headers[name] for name in names if name in handler.headers}
        with urlopen(Request(s3 + handler.path, headers=heads)) as answer:
            data = answer.read()
            handler.send_response(answer.status)
            for name in ("Content-Type", "Content-Range", "ETag"):
                if name in answer.headers:
                    handler.send_header(name, answer.headers[name])
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            # Half of one answer in five is lost on the way.
            handler.wfile.write(data[: len(data) // 2] if len(server.asked) % 5 == 1 else data)
            handler.close_connection = True
        return True

    server.other = passed_on
    options = {"endpoint_url": server.url}
    far = bnstat.load("s3://models/digits/run", eager=True, storage_options=options)
    same(far, bnstat.load(DATA / "run"))
    assert len(server.asked) > 4


def test_a_scheme_that_nobody_knows() -> None:
    with pytest.raises(
        BnstatError, match=r"gopher:// is not a supported scheme; URLs start with s3://"
    ):
        bnstat.load("gopher://host/model")


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    registry = pytest.importorskip("fsspec.registry")
    monkeypatch.setitem(sys.modules, "adlfs", None)
    monkeypatch.delitem(registry._registry, "az", raising=False)
    with pytest.raises(BnstatError, match=r"az:// is not installed; pip install adlfs"):
        bnstat.load("az://container/model")


def test_file_urls_are_local_paths() -> None:
    same(bnstat.load(f"file://{DATA}/run"), bnstat.load(DATA / "run"))


def test_tensorflows_reader_reads_no_url(store: str) -> None:
    with pytest.raises(BnstatError, match="reads local files only"):
        bnstat.load(f"{store}/run", reader="tensorflow")


def test_an_object_that_is_replaced_meanwhile(s3: str) -> None:
    import s3fs

    fs = s3fs.S3FileSystem()
    name = "models/replaced/m.data-00000-of-00001"
    for ending in ("index", "data-00000-of-00001"):
        content = (DATA / f"run/model-100.{ending}").read_bytes()
        fs.pipe_file(f"models/replaced/m.{ending}", content)
    model = bnstat.load("s3://models/replaced/m", values=False)
    fs.pipe_file(name, bytes(fs.size(name)))
    with pytest.raises(ChangedError, match="changed while it was read"):
        model.read()
