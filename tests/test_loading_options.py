"""`bnstat.load` and `bnstat.load_all`: what each option lets in, and leaves unread."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnstat
from bnstat.errors import ChangedError
from bnstat.formats.locate import locate
from bnstat.loading import open_contents
from bnstat.model import ROLES
from tests.builders.bundles import save_norm
from tests.fuzz import handmade

SHADOW = "/ExponentialMovingAverage"


def save(folder: Path, tensors: Mapping[str, np.ndarray], **options: Any) -> None:
    for name, content in handmade.bundle(dict(tensors), **options).items():
        (folder / name).write_bytes(content)


def layer(name: str, end: str = "") -> dict[str, np.ndarray]:
    return {f"{name}/{role}{end}": array for role, array in handmade.values().items()}


def test_layers_that_are_not_asked_for_are_not_read(tmp_path: Path) -> None:
    save(tmp_path, layer("a") | layer("b"))
    data = tmp_path / "m.data-00000-of-00001"
    content = data.read_bytes()
    data.write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))
    with pytest.raises(bnstat.DamagedError):
        bnstat.load(tmp_path, eager=True)
    assert bnstat.load(tmp_path, eager=True, layers=["a"]).keys() == ["a"]
    (whole,) = (model for _, model in bnstat.load_all(tmp_path))
    assert isinstance(whole, bnstat.DamagedError)
    (part,) = (model for _, model in bnstat.load_all(tmp_path, layers=["a"]))
    assert isinstance(part, bnstat.Model)


def test_layers_without_statistics_are_kept(tmp_path: Path) -> None:
    save(tmp_path, {**layer("a"), "conv/BatchNorm/gamma": np.ones(3)})
    for globs in ([], ["a"]):
        model = bnstat.load(tmp_path, layers=globs)
        assert [each.name for each in model.incomplete] == ["conv/BatchNorm"]


def test_shadows_are_let_in_where_they_are_asked_for(tmp_path: Path) -> None:
    save(tmp_path, layer("a") | layer("a", SHADOW))
    for shadows, names in ((False, ["a"]), (True, ["a", f"a{SHADOW}"])):
        assert bnstat.load(tmp_path, include_shadows=shadows).keys() == names
        (model,) = (model for _, model in bnstat.load_all(tmp_path, include_shadows=shadows))
        assert isinstance(model, bnstat.Model)
        assert model.keys() == names
    assert bnstat.load(tmp_path).keys() == ["a"]
    (model,) = (model for _, model in bnstat.load_all(tmp_path))
    assert isinstance(model, bnstat.Model)
    assert model.keys() == ["a"]


def test_checkpoints_are_told_before_any_is_loaded(tmp_path: Path) -> None:
    for step in (1, 20):
        save_norm(tmp_path, f"m-{step}", step)
    models = bnstat.load_all(tmp_path)
    shutil.rmtree(tmp_path)
    assert models.checkpoints == [("m-1", 1), ("m-20", 20)]
    assert len(models) == 2
    assert [type(model) for _, model in models] == [bnstat.NotFoundError] * 2


def test_a_file_alone_is_called_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    path.write_bytes(handmade.keras_archive())
    models = bnstat.load_all(path)
    assert models.checkpoints == []
    assert [name for name, _ in models] == [str(path)]


def test_what_lies_in_a_file_before_it_is_taken_for_batch_norm(tmp_path: Path) -> None:
    for step in (1, 20):
        save_norm(tmp_path, f"m-{step}", step)
    contents = open_contents(str(tmp_path), checkpoint="m-1")
    assert set(contents.variables) == {f"bn/{role}" for role in ROLES}
    assert contents.variables["bn/gamma"].read().tolist() == [1] * 3
    assert open_contents(str(tmp_path)).variables["bn/gamma"].read().tolist() == [20] * 3
    assert open_contents(str(tmp_path), step=1).source.checkpoint == "m-1"


def test_a_configuration_that_a_file_does_not_need(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    path.write_bytes(handmade.keras_archive())
    plain, told = bnstat.load(path), bnstat.load(path, config=path)
    assert told.keys() == plain.keys()
    assert set(told.notes) - set(plain.notes) == {
        f"{path} is not used: the file contains its own layers"
    }


@pytest.mark.parametrize("times", [1, 2])
def test_a_file_that_changes_under_its_reader_is_read_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    save_norm(tmp_path, "m-1", 1)
    left = [ChangedError("m-1", "was replaced while it was read", "try again")] * times

    def look(path: str, *access: Any) -> Any:
        place = locate(path, *access)

        def open_(*how: Any) -> Any:
            if left:
                raise left.pop()
            return place.default.open(*how)

        return place._replace(default=place.default._replace(open=open_))

    monkeypatch.setattr("bnstat.loading.locate", look)
    if times == 1:
        assert bnstat.load(tmp_path).keys() == ["bn"]
    else:
        with pytest.raises(ChangedError, match="changes faster than it can be read"):
            bnstat.load(tmp_path)


def test_tensorflows_reader_is_not_asked_for_what_is_far_away() -> None:
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    for name, content in handmade.bundle(layer("a")).items():
        files.pipe(f"/loading/{name}", content)
    assert bnstat.load("memory://loading").keys() == ["a"]
    with pytest.raises(bnstat.BnstatError, match="TensorFlow's reader reads local files only"):
        bnstat.load("memory://loading", reader="tensorflow")


def test_storage_options_for_a_local_path_are_noted(tmp_path: Path) -> None:
    (tmp_path / "m.h5").write_bytes(handmade.hdf5_files()["legacy.h5"])
    model = bnstat.load(tmp_path / "m.h5", storage_options={"key": "hidden"})
    (note,) = (note for note in model.notes if "storage options" in note)
    assert "hidden" not in note
    ((_, each),) = bnstat.load_all(tmp_path, storage_options={"key": "hidden"})
    assert note in each.notes
    assert not any("storage options" in note for note in bnstat.load(tmp_path / "m.h5").notes)
