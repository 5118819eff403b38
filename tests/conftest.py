"""Where tests find model files that are not part of the project."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


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
