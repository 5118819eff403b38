"""Stores on this machine: a web server, S3, and fsspec's own in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.server import Server, serving

DATA = Path(__file__).parents[2] / "data/digits"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Serves the test's folder."""
    pytest.importorskip("aiohttp", reason="the driver for https:// is not installed")
    with serving(tmp_path) as running:
        yield running


@pytest.fixture
def digits() -> Iterator[Server]:
    """Serves the models that ship with the tests."""
    pytest.importorskip("aiohttp", reason="the driver for https:// is not installed")
    with serving(DATA) as running:
        yield running


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of an S3 server, with one bucket called `models`; the drivers find it there."""
    pytest.importorskip("s3fs", reason="the driver for s3:// is not installed")
    moto = pytest.importorskip("moto.server", reason="no S3 server is installed")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "hardly-a-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        import s3fs

        fs = s3fs.S3FileSystem()
        fs.mkdir("models")
        fs.put(str(DATA), "models/digits", recursive=True)
        yield settings["AWS_ENDPOINT_URL"]
    server.stop()
