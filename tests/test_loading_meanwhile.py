"""`bnstat.load` while a training job saves: the model is read again, or it says that it changes."""

from __future__ import annotations

import io
import os
import shutil
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
    """Lets a job do something each time after it was looked where the model lies, and when."""

    def let(*steps: Callable[[], object]) -> None:
        left = list(steps)

        def look(path: str, *access: Any) -> Any:
            place = locate(path, *access)

            def open_(*how: Any) -> Any:
                if left:
                    left.pop(0)()
                return place.default.open(*how)

            return place._replace(default=place.default._replace(open=open_))

        monkeypatch.setattr("bnstat.loading.locate", look)

    return let


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


def test_a_folder_that_changes_faster_than_it_is_read(
    tmp_path: Path, job: Callable[..., None]
) -> None:
    save_norm(tmp_path, "m-1", 1)
    job(
        lambda: replace(tmp_path, "m-1", "m-2", 2),
        lambda: replace(tmp_path, "m-2", "m-3", 3),
    )
    with pytest.raises(bnstat.ChangedError, match="changes faster than it can be read"):
        bnstat.load(tmp_path)


def _bundle(folder: Path) -> Path:
    tensors = {f"bn/{role}": array for role, array in handmade.values().items()}
    for name, content in handmade.bundle(tensors, shards=2).items():
        (folder / name).write_bytes(content)
    return folder / "m.data-00001-of-00002"


def _saved_model(folder: Path) -> Path:
    shutil.copytree(DATA / "digits/saved_model", folder, dirs_exist_ok=True)
    return folder / "variables/variables.data-00000-of-00001"


def _numbered(folder: Path) -> Path:
    return _saved_model(folder / "1")


def _shards(folder: Path) -> Path:
    for name, content in handmade.sharded().items():
        (folder / name).write_bytes(content)
    return folder / "m_00001.weights.h5"


def _single_file(folder: Path) -> Path:
    path = folder / "m.h5"
    path.write_bytes(handmade.hdf5_files()["legacy.h5"])
    return path


def _unzipped(folder: Path) -> Path:
    with zipfile.ZipFile(io.BytesIO(handmade.keras_archive())) as archive:
        archive.extractall(folder)
    return folder / "model.weights.h5"


Torn = tuple[Path, Path, bytes]


@pytest.mark.parametrize(
    "build", [_bundle, _saved_model, _numbered, _shards, _unzipped, _single_file]
)
class TestOverwrittenInPlace:
    """A job is within one of a model's files; no other file's time tells of that."""

    @pytest.fixture
    def torn(self, build: Callable[[Path], Path], tmp_path: Path) -> Torn:
        """A model, its file that is half written, and what is being written."""
        half = build(tmp_path)
        content = half.read_bytes()
        # A bundle's tensors begin at once; HDF5 begins with what tells that it is HDF5.
        start = 0 if ".data-" in half.name else len(content) // 2
        half.write_bytes(content[:start].ljust(len(content), b"\0"))
        for path in (tmp_path, *tmp_path.rglob("*")):
            os.utime(path, (1000, 1000))
        index = tmp_path / "m.weights.json"
        return index if index.exists() else tmp_path, half, content

    def test_it_is_read_again(self, torn: Torn, job: Callable[..., None]) -> None:
        path, half, content = torn
        job(lambda: os.utime(half, (2000, 2000)), lambda: half.write_bytes(content))
        model = bnstat.load(path, eager=True)
        half.write_bytes(content)
        for layer, expected in zip(model, bnstat.load(path), strict=True):
            for role in ROLES:
                np.testing.assert_array_equal(layer.array(role), expected.array(role))

    def test_the_job_goes_on(self, torn: Torn, job: Callable[..., None]) -> None:
        path, half, _ = torn
        job(lambda: os.utime(half, (2000, 2000)))
        with pytest.raises(bnstat.ChangedError, match="try again"):
            bnstat.load(path, eager=True)

    def test_there_is_no_job(self, torn: Torn) -> None:
        with pytest.raises(bnstat.DamagedError):
            bnstat.load(torn[0], eager=True)
