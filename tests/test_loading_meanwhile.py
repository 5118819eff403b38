"""`bnstat.load` while a training job saves: it reads once more, or raises `ChangedError`."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnstat
from bnstat.formats.locate import locate
from bnstat.model import ROLES
from tests.builders.bundles import save_norm
from tests.fuzz import handmade

DATA = Path(__file__).parent / "data"


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that schedules steps of a job, one before each time a model is opened."""

    def schedule(*steps: Callable[[], object]) -> None:
        remaining = list(steps)

        def look(path: str, *access: Any) -> Any:
            place = locate(path, *access)

            def open_(*options: Any) -> Any:
                if remaining:
                    remaining.pop(0)()
                return place.default.open(*options)

            return place._replace(default=place.default._replace(open=open_))

        monkeypatch.setattr("bnstat.loading.locate", look)

    return schedule


def replace(folder: Path, old: str, new: str, mean: float) -> None:
    for path in folder.glob(f"{old}.*"):
        path.unlink()
    save_norm(folder, new, mean)


def test_a_checkpoint_that_is_replaced_is_read_again(
    tmp_path: Path, job: Callable[..., None]
) -> None:
    save_norm(tmp_path, "m-1", 1)
    job(lambda: replace(tmp_path, "m-1", "m-2", 2))
    model = bnstat.load(tmp_path)
    assert model.source.checkpoint == "m-2"
    np.testing.assert_array_equal(model["bn"].moving_mean, np.full(3, 2, "f4"))


def test_a_model_is_read_at_most_twice(tmp_path: Path, job: Callable[..., None]) -> None:
    save_norm(tmp_path, "m-1", 1)
    job(
        lambda: replace(tmp_path, "m-1", "m-2", 2),
        lambda: replace(tmp_path, "m-2", "m-3", 3),
    )
    with pytest.raises(bnstat.ChangedError, match="changes faster than it can be read"):
        bnstat.load(tmp_path)


def _folder(path: Path, prefix: str = "") -> dict[str, bytes]:
    files = (each for each in path.rglob("*") if each.is_file())
    return {f"{prefix}{each.relative_to(path)}": each.read_bytes() for each in files}


def _unzipped() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(handmade.keras_archive())) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


_TENSORS = {f"bn/{role}": array for role, array in handmade.values().items()}
_DATA = "variables/variables.data-00000-of-00001"
MODELS = {
    "m.data-00001-of-00002": handmade.bundle(_TENSORS, shards=2),
    _DATA: _folder(DATA / "digits/saved_model"),
    f"1/{_DATA}": _folder(DATA / "digits/saved_model", "1/"),
    "m_00001.weights.h5": handmade.sharded(),
    "model.weights.h5": _unzipped(),
    "m.h5": {"m.h5": handmade.hdf5_files()["legacy.h5"]},
}
"""Name of the half-written file -> the files of a model."""


Torn = tuple[Path, Path, bytes]


@pytest.mark.parametrize("name", MODELS)
class TestOverwrittenInPlace:
    """A job has written half of one file of a model, and the times of other files do not change."""

    @pytest.fixture
    def torn(self, name: str, tmp_path: Path) -> Torn:
        """Return the path of a model, its half-written file, and the file's whole content."""
        for file, content in MODELS[name].items():
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_bytes(content)
        half, content = tmp_path / name, MODELS[name][name]
        # The tensors of a bundle start at offset 0; HDF5 starts with its signature.
        start = 0 if ".data-" in half.name else len(content) // 2
        half.write_bytes(content[:start].ljust(len(content), b"\0"))
        for path in (tmp_path, *tmp_path.rglob("*")):
            os.utime(path, (1000, 1000))
        index = tmp_path / "m.weights.json"
        return index if index.exists() else tmp_path, half, content

    def test_the_model_is_read_again(self, torn: Torn, job: Callable[..., None]) -> None:
        path, half, content = torn
        job(lambda: os.utime(half, (2000, 2000)), lambda: half.write_bytes(content))
        model = bnstat.load(path, eager=True)
        half.write_bytes(content)
        for layer, expected in zip(model, bnstat.load(path), strict=True):
            for role in ROLES:
                np.testing.assert_array_equal(layer.array(role), expected.array(role))

    def test_an_unfinished_job_is_an_error(self, torn: Torn, job: Callable[..., None]) -> None:
        path, half, _ = torn
        job(lambda: os.utime(half, (2000, 2000)))
        with pytest.raises(bnstat.ChangedError, match="try again"):
            bnstat.load(path, eager=True)

    def test_a_file_that_no_job_writes_is_damaged(self, torn: Torn) -> None:
        with pytest.raises(bnstat.DamagedError):
            bnstat.load(torn[0], eager=True)
