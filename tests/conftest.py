"""Fixtures of all tests, such as model files that are not part of the project."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

# A property test does not fail because the machine is slow.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Use several processes for folders, and one for files; each process imports TensorFlow."""
    named = [argument.split("::")[0] for argument in config.option.file_or_dir]
    if named and all(name.endswith(".py") for name in named):
        return 0
    return min(4, len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & {"real", "written"}:
            item.add_marker("wild")
        if fixtures & {"browser", "s3"}:
            item.add_marker("slow")


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that builds a folder once for all processes of the session.

    Call it with a name and a function that writes into a given folder.
    """
    base = tmp_path_factory.getbasetemp()
    root = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base

    def build(name: str, write: Callable[[Path], object]) -> Path:
        folder = root / f"built-{name}"
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                unfinished = Path(f"{folder}.unfinished")
                unfinished.mkdir()
                write(unfinished)
                unfinished.rename(folder)
        return folder

    return build


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Return the address of an S3 server with one bucket, `models`."""
    from tests.builders.bucket import bucket

    with bucket() as address:
        yield address


@pytest.fixture(autouse=True)
def _any_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the width of output independent of the terminal that runs the tests."""
    monkeypatch.delenv("COLUMNS", raising=False)


def _folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{name} model files are not on this machine")
    return folder


@pytest.fixture(scope="session")
def real() -> Path:
    """Model files from the wild, each with a hand-checked `truth.json`."""
    return _folder("real")


@pytest.fixture(scope="session")
def written() -> Path:
    """Small files that many versions of TensorFlow and Keras wrote."""
    return _folder("written")


@pytest.fixture
def s3_requests(s3: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The requests to S3: operation and key."""
    import s3fs

    log: list[tuple[str, str]] = []
    plain, plain_pages = s3fs.S3FileSystem._call_s3, s3fs.S3FileSystem._iterdir

    async def counted(self, method, *rest, **more):  # type: ignore[no-untyped-def]
        log.append((method, more.get("Key", "")))
        return await plain(self, method, *rest, **more)

    def pages(self, bucket, *rest, **more):  # type: ignore[no-untyped-def]
        log.append(("list", str(rest)))
        return plain_pages(self, bucket, *rest, **more)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    monkeypatch.setattr(s3fs.S3FileSystem, "_iterdir", pages)
    return log
