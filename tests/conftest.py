"""Where tests find model files that are not part of the project, and what all tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Folders are tested by several processes, each of which imports TensorFlow; files by one."""
    named = [argument.split("::")[0] for argument in config.option.file_or_dir]
    if named and all(name.endswith(".py") for name in named):
        return 0
    return min(4, len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"real", "written"}.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("wild")


@pytest.fixture(autouse=True)
def _any_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output is as wide as it is, whatever the terminal that runs the tests."""
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
