"""Models in Azure's blobs: fsspec's driver against Azurite, where it is installed (`npm`)."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest

import bnstat
from bnstat.errors import BnstatError, NotFoundError
from bnstat.scanning.scan import ScanOptions
from bnstat.storage.access import Access
from bnstat.storage.find import find
from tests.scanning.stores import scanned
from tests.storage.remote.conftest import DATA
from tests.storage.remote.test_http import same

KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The key that Azurite's documentation gives to everybody."""


@pytest.fixture(scope="module")
def azure() -> Iterator[dict[str, str]]:
    """The options for a store with the models that ship with the tests in `models`."""
    adlfs = pytest.importorskip("adlfs", reason="the driver for az:// is not installed")
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("no server of Azure's blobs is installed (azurite-blob)")
    flags = ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--blobPort=0"]
    with subprocess.Popen([program, *flags], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        lines = iter(server.stdout.readline, "")
        address = next(
            match[0]
            for line in lines
            if "listens on" in line and (match := re.search(r"http://\S+:\d+", line))
        )
        parts = {
            "DefaultEndpointsProtocol": "http",
            "AccountName": "devstoreaccount1",
            "AccountKey": KEY,
            "BlobEndpoint": f"{address}/devstoreaccount1",
        }
        options = {"connection_string": ";".join("=".join(part) for part in parts.items())}
        fs = adlfs.AzureBlobFileSystem(**options)
        fs.mkdir("models")
        for path in DATA.rglob("*"):
            if path.is_file():
                fs.pipe_file(
                    f"models/digits/{path.relative_to(DATA).as_posix()}", path.read_bytes()
                )
        yield options
        server.terminate()


@pytest.mark.parametrize(
    "place",
    ["run", "run/model-100", "run/model-100.index", "saved_model", "saved_model/variables"],
)
def test_a_model_is_read_as_on_disk(azure: dict[str, str], place: str) -> None:
    far = bnstat.load(f"az://models/digits/{place}", eager=True, storage_options=azure)
    same(far, bnstat.load(DATA / place))
    assert far.source.path == f"az://models/digits/{place}"


def test_what_is_not_there(azure: dict[str, str]) -> None:
    for url in ("az://models/nothing/here", "az://nobodys/model"):
        with pytest.raises(NotFoundError, match=url):
            bnstat.load(url, storage_options=azure)


def test_a_wrong_key(azure: dict[str, str]) -> None:
    wrong = {name: value.replace("Eby8", "Abcd") for name, value in azure.items()}
    with pytest.raises(BnstatError, match=r"access is denied \(403\)") as caught:
        bnstat.load("az://models/digits/run", storage_options=wrong)
    assert "Abcd" not in str(caught.value)


def test_a_scan(azure: dict[str, str]) -> None:
    far = scanned("az://models/digits", options=ScanOptions(storage_options=azure))
    assert [record.layers for record in far] == [record.layers for record in scanned(DATA)]


def test_a_blob_that_is_replaced(azure: dict[str, str]) -> None:
    import adlfs

    fs = adlfs.AzureBlobFileSystem(**azure)
    fs.pipe_file("models/replaced/a", bytes(200_000))
    folder = find("az://models/replaced", Access(azure)).folder
    assert folder is not None
    file = folder.file("a")
    assert file is not None
    assert file.read(0, 10) == bytes(10)
    fs.pipe_file("models/replaced/a", b"1" * 200_000, overwrite=True)
    with pytest.raises(BnstatError, match="changed while it was read"):
        file.read(100_000, 10)
