"""An S3 server on this machine, with the models that ship with the tests in a bucket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "data/digits"


@contextmanager
def bucket() -> Iterator[str]:
    """Run Moto's server with the bucket `models`, direct S3 to it, and yield its address."""
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

        fs = s3fs.S3FileSystem(skip_instance_cache=True)
        s3fs.S3FileSystem.clear_instance_cache()
        fs.makedirs("models", exist_ok=True)
        # With slashes, because moto keeps earlier files.
        fs.put(f"{DATA}/", "models/digits/", recursive=True)
        yield settings["AWS_ENDPOINT_URL"]
    server.stop()
