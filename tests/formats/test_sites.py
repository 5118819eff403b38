"""What formats say of the files and folders that are theirs."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

import bnstat
from bnstat.formats import locate as locating
from bnstat.formats.contents import Contents
from bnstat.formats.detection import (
    Format,
    ModelSet,
    StoredModel,
    formats,
    sorted_by_age,
    unnamed,
)
from bnstat.formats.locate import locate
from bnstat.model import Source
from bnstat.storage.files import File, Folder
from tests.builders import named


def norm(mean: float) -> keras.Sequential:
    """A model of one layer with that moving mean."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization(name="bn")])
    model.layers[0].moving_mean.assign(np.full(3, mean, np.float32))
    return model


def test_sharded_weights_are_one_model(tmp_path: Path) -> None:
    for step in (1, 2):
        norm(step).save_weights(tmp_path / f"w-{step}.weights.json", max_shard_size=2.5e-8)
    assert len(list(tmp_path.iterdir())) > 4
    place = locate(str(tmp_path))
    assert [(model.name, model.step) for model in place.models] == [
        ("w-1.weights.json", 1),
        ("w-2.weights.json", 2),
    ]
    for path in (tmp_path, tmp_path / "w-2.weights.json", tmp_path / "w-2_00001.weights.h5"):
        (layer,) = bnstat.load(path)
        assert layer.moving_mean is not None
        assert layer.moving_mean.tolist() == [2, 2, 2]


def test_numbered_folders_of_any_format(tmp_path: Path) -> None:
    for number in (9, 10):
        (tmp_path / str(number)).mkdir()
        norm(number).save(tmp_path / str(number), zipped=False)
    assert [model.name for model in locate(str(tmp_path)).models] == ["9", "10"]
    (layer,) = bnstat.load(tmp_path, step=9)
    assert layer.moving_mean is not None
    assert layer.moving_mean.tolist() == [9, 9, 9]


class Toy(Format):
    """Models in pairs of files: `NAME.toy` and `NAME.more`, told by the first three bytes."""

    beside = ("toys.log",)

    def model_in_file(self, folder: Folder, file: File) -> StoredModel | None:
        return self._found(folder, file.name) if file.head(3) == b"TOY" else None

    def model_at_prefix(self, folder: Folder, prefix: str) -> StoredModel | None:
        return self._found(folder, prefix) if folder.file(f"{prefix}.toy") else None

    def model_of_folder(self, folder: Folder) -> StoredModel | None:
        return unnamed(self._open) if folder.file("one.toybox") else None

    def models_within(self, folder: Folder) -> ModelSet | None:
        names = [name for name in folder.names() if name.endswith(".toy")]
        return sorted_by_age([self._found(folder, name) for name in names], "b") if names else None

    def owner(self, folder: Folder, file: File) -> ModelSet | Folder | None:
        return folder if file.name == "toys" else None

    def display_name(self, name: str) -> str:
        return name.split(".")[0]

    def _found(self, folder: Folder, name: str) -> StoredModel:
        return StoredModel(name.split(".")[0], None, folder.modified(name), self._open)

    @staticmethod
    def _open(source: Source, reading: object) -> Contents:
        return Contents(source, {})


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(locating, "formats", lambda: [*formats(), Toy()])
    for name in ("a.toy", "a.more", "b.toy", "b.more"):
        (tmp_path / name).write_bytes(b"TOY")
    (tmp_path / "toys").touch()
    (tmp_path / "above/7").mkdir(parents=True)
    (tmp_path / "above/7/one.toybox").touch()
    return tmp_path


def test_a_format_is_found_by_what_it_says(toys: Path) -> None:
    for path in ("", "toys"):
        place = locate(f"{toys}/{path}")
        assert {model.name for model in place.models} == {"a", "b"}
        assert place.default.name == "b"
    assert locate(f"{toys}/a").default.name == "a"
    assert locate(f"{toys}/a.more").default.name is None
    assert locate(f"{toys}/above/7").default.name is None
    assert [(model.name, model.step) for model in locate(f"{toys}/above").models] == [("7", 7)]
    (toys / "abc.toy").touch()
    with pytest.raises(bnstat.BnstatError, match=r"did you mean .*/abc\?"):
        locate(f"{toys}/abd")


def test_files_of_one_name_are_one_model_and_those_beside_none(toys: Path) -> None:
    (toys / "toys.log").write_bytes(b"TOY")
    for name in ("a.toy", "b.toy", "toys"):
        (toys / name).rename(toys / f"{name}.bak")
    place = locate(str(toys))
    assert [model.name for model in place.models] == ["a", "b"]


def test_a_folder_below_is_pointed_out(toys: Path) -> None:
    (toys / "outer/inner").mkdir(parents=True)
    (toys / "outer/inner/one.toybox").touch()
    with pytest.raises(bnstat.BnstatError, match=r"there are models in .*outer/inner"):
        locate(f"{toys}/outer")


def test_checkpoints_come_before_single_files(tmp_path: Path) -> None:
    norm(1).save(tmp_path / "m.keras")
    named.save(tmp_path / "m-3", {"bn/moving_mean": [0.0], "bn/moving_variance": [1.0]})
    assert [model.name for model in locate(str(tmp_path)).models] == ["m-3"]
    assert locate(f"{tmp_path}/m.keras").default.name is None
