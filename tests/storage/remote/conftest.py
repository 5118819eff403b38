"""Stores on this machine: a web server, S3, and fsspec's own in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.bucket import DATA
from tests.builders.server import Server, serving


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
