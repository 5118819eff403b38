from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.builders import named
from tests.mending.originals import DIGITS


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint of two shards."""
    shards = [
        {f"bn{number}/{role}": array for role, array in named.layer(number).items()}
        for number in range(2)
    ]
    (tmp_path / "in").mkdir()
    return named.save_shards(tmp_path / "in/m", shards)


@pytest.fixture
def saved_model(tmp_path: Path) -> Path:
    shutil.copytree(DIGITS, tmp_path / "sm")
    return tmp_path / "sm"
