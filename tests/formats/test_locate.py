"""From a path to the models there."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import bnstat
from bnstat.errors import BnstatError, DamagedError, NotFoundError
from bnstat.formats.detection import step_of
from bnstat.formats.locate import locate
from tests.builders import named
from tests.builders.oracle import assert_layers

ROLES = ("gamma", "beta", "moving_mean", "moving_variance")


def save(prefix: Path, mean: float = 0.0) -> Path:
    arrays = {f"bn/{role}": np.full(3, mean, np.float32) for role in ROLES}
    return named.save(prefix, arrays)


def mean_of(path: Path | str, **options: Any) -> float:
    array = bnstat.load(path, **options)["bn"].moving_mean
    assert array is not None
    return float(array[0])


@pytest.mark.parametrize("prefix", ["m", "m.ckpt-12", "best.pth.tar", "a b", "\u00e4", ".hid", ""])
def test_a_checkpoint_by_its_prefix_and_its_files(tmp_path: Path, prefix: str) -> None:
    saved = save(tmp_path / "saved", 5)
    for ending in (".index", ".data-00000-of-00001"):
        Path(f"{saved}{ending}").rename(tmp_path / f"{prefix}{ending}")
    (tmp_path / f"{prefix}.meta").write_bytes(b"")
    names = [".index", ".data-00000-of-00001", ".meta", *([""] if prefix else [])]
    for name in names:
        assert mean_of(tmp_path / f"{prefix}{name}") == 5
    assert mean_of(tmp_path) == 5


def test_the_state_file_names_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path / f"m-{step}", step)
    assert mean_of(tmp_path) == 3
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "m-2"\n')
    assert mean_of(tmp_path) == 2
    assert mean_of(tmp_path / "checkpoint") == 2
    model = bnstat.load(tmp_path)
    assert (model.source.checkpoint, model.source.step) == ("m-2", 2)
    assert mean_of(tmp_path, checkpoint="m-1") == 1
    assert mean_of(tmp_path, step=3) == 3


@pytest.mark.parametrize(
    ("state", "newest"),
    [
        *((f'model_checkpoint_path: "{path}m-2"\r\n', 2)
          for path in ("/gone/run/", "../other/", "./", "C:\\\\run\\\\")),
        *((stale, 10) for stale in ('model_checkpoint_path: "m-99"', "", "model_", "\udcff")),
    ],
)  # fmt: skip
def test_the_state_file_of_a_moved_folder(tmp_path: Path, state: str, newest: int) -> None:
    for step in (2, 10):
        save(tmp_path / f"m-{step}", step)
    (tmp_path / "checkpoint").write_bytes(state.encode("utf-8", "surrogateescape"))
    assert mean_of(tmp_path) == newest


def test_checkpoints_that_a_manager_keeps(tmp_path: Path) -> None:
    value = tf.Variable([1.0, 2.0])
    norm = tf.train.Checkpoint(**dict.fromkeys(ROLES[:2], value))
    norm.moving_mean, norm.moving_variance = tf.Variable([1.0, 2.0]), tf.Variable([3.0, 4.0])
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(bn=norm), str(tmp_path), max_to_keep=2)
    for _ in range(4):
        norm.moving_mean.assign_add([1.0, 1.0])
        manager.save()
    assert [model.name for model in locate(str(tmp_path)).models] == ["ckpt-3", "ckpt-4"]
    assert mean_of(tmp_path) == 5
    assert mean_of(tmp_path, checkpoint="ckpt-3") == 4


def test_checkpoints_without_steps_are_sorted_by_time(tmp_path: Path) -> None:
    for age, name in enumerate(["c", "a", "b"]):
        save(tmp_path / name, age)
        os.utime(tmp_path / f"{name}.index", (1000 - age, 1000 - age))
    assert [model.name for model in locate(str(tmp_path)).models] == ["b", "a", "c"]
    assert mean_of(tmp_path) == 0


def test_temporary_and_other_files_beside_a_checkpoint(tmp_path: Path) -> None:
    save(tmp_path / "m-1", 1)
    (tmp_path / "m-2.data-00000-of-00001.tempstate123").write_bytes(b"")
    (tmp_path / "m-2_temp").mkdir()
    (tmp_path / "events.out.tfevents.1").write_bytes(b"x")
    (tmp_path / "graph.pbtxt").write_text("node {}")
    assert mean_of(tmp_path) == 1


@pytest.mark.parametrize(
    ("name", "step"),
    [("m-12", 12), ("model.ckpt-7", 7), ("w-3.weights.h5", 3), ("w-3.keras", 3), ("m", None),
     ("m-1a", None), ("m-1.5", None), ("12", None), ("m-007", 7)],
)  # fmt: skip
def test_the_step_in_a_name(name: str, step: int | None) -> None:
    assert step_of(name) == step


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (["resnet-50.npz"], [None]),
        (["version-slim-320.npz", "other.npz"], [None, None]),
        (["resnet-50.npz", "vgg-16.npz"], [None, None]),
        (["m-50-7.npz", "m-50-60.npz", "m-7-7.npz"], [7, 60, None]),
        (["m-9.npz", "m-10.npz", "best.npz"], [9, 10, None]),
        (["m-9.npz", "m-9.bn.npz"], [None, None]),
    ],
)
def test_numbers_that_are_steps(tmp_path: Path, names: list[str], steps: list[int | None]) -> None:
    for name in names:
        np.savez(tmp_path / name, **{f"bn/{role}": np.ones(2) for role in ROLES})
    for name, step in zip(names, steps, strict=True):
        assert bnstat.load(tmp_path / name).source.step == step
    by_name = {name: model.source.step for name, model in bnstat.load_all(tmp_path)}
    if len(names) > 1:
        assert by_name == dict(zip(names, steps, strict=True))
    for step in {60, 10} & {*steps}:
        assert bnstat.load(tmp_path, step=step).source.step == step


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing/m", "no such path; .*nothing does not exist"),
        ("modle", "no such file, folder or checkpoint; did you mean .*model"),
        ("zzz", "no such file, folder or checkpoint$"),
        ("empty", "contains no model; bnstat reads SavedModel, checkpoint"),
        ("above", "contains no model; there are models in .*run"),
        ("listed", r"contains no model; its list of checkpoints names m-1, m-2: their files are"),
        ("listed/checkpoint", r"names m-1, m-2: their files are not here"),
        ("orphan", r"orphan\.index: the checkpoint's index file is missing"),
        ("orphan.data-00000-of-00001", r"orphan\.index: the checkpoint's index file is missing"),
        ("x" * 5000, "no such"),
        ("a\0b", "no such|cannot be opened"),
        ("model/m", "no such"),
    ],
)
def test_paths_without_a_model(tmp_path: Path, path: str, message: str) -> None:
    save(tmp_path / "model")
    (tmp_path / "empty").mkdir()
    (tmp_path / "listed").mkdir()
    state = 'model_checkpoint_path: "m-2"\nall_model_checkpoint_paths: "/runs/m-1"\n'
    (tmp_path / "listed/checkpoint").write_text(state)
    (tmp_path / "above/run").mkdir(parents=True)
    save(tmp_path / "above/run/m")
    (tmp_path / "orphan.data-00000-of-00001").write_bytes(b"x")
    with pytest.raises(BnstatError, match=message) as caught:
        bnstat.load(f"{tmp_path}/{path}")
    assert "\n" not in str(caught.value)


def test_pipes_and_pointers(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BnstatError, match="neither a file nor a folder"):
        bnstat.load(tmp_path / "pipe")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/model.h5").write_text(pointer)
    for path in ("folder", "folder/model.h5"):
        with pytest.raises(DamagedError, match="git-lfs pointer"):
            bnstat.load(tmp_path / path)


def test_a_renamed_index_is_named_in_the_error(tmp_path: Path) -> None:
    prefix = save(tmp_path / "m", 4)
    index = Path(f"{prefix}.index").rename(tmp_path / "model.h5")
    with pytest.raises(BnstatError, match=r"model\.h5: is the index of a checkpoint"):
        bnstat.load(index)


def test_a_copy_of_the_index_beside_the_index(tmp_path: Path) -> None:
    """In TensorFlow, `m` is the prefix of the checkpoint, although a file has this name."""
    prefix = save(tmp_path / "m", 4)
    Path(prefix).write_bytes(Path(f"{prefix}.index").read_bytes())
    assert mean_of(prefix) == 4


def test_a_version_1_checkpoint_of_any_name(tmp_path: Path) -> None:
    arrays = named.layer(1)
    parts = [(f"bn/{role}", "", array) for role, array in arrays.items()]
    model = bnstat.load(named.save_v1(tmp_path / "weights.h5", parts))
    assert model.source.format == "tf1-checkpoint-v1"
    assert_layers(model, {"bn": arrays})


def test_links(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    save(tmp_path / "run/m-1", 1)
    (tmp_path / "latest").symlink_to("run")
    assert mean_of(tmp_path / "latest") == 1
    assert mean_of(tmp_path / "latest/m-1") == 1
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(BnstatError):
        bnstat.load(tmp_path / "round")


def test_options_that_choose_from_a_single_model(tmp_path: Path) -> None:
    prefix = save(tmp_path / "m-3", 3)
    assert mean_of(prefix, step=3) == 3
    for options in ({"step": 4}, {"checkpoint": "x"}):
        with pytest.raises(NotFoundError, match="has no"):
            bnstat.load(prefix, **options)


def norm(mean: float) -> keras.Sequential:
    """Return a model of one layer with a moving mean."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization(name="bn")])
    model.layers[0].moving_mean.assign(np.full(3, mean, np.float32))
    return model


def test_sharded_weights_are_one_model(tmp_path: Path) -> None:
    for step in (1, 2):
        norm(step).save_weights(tmp_path / f"w-{step}.weights.json", max_shard_size=2.5e-8)
    assert len(list(tmp_path.iterdir())) > 4
    steps = {model.name: model.step for model in locate(str(tmp_path)).models}
    assert steps == {"w-1.weights.json": 1, "w-2.weights.json": 2}
    for path in (tmp_path, tmp_path / "w-2.weights.json", tmp_path / "w-2_00001.weights.h5"):
        assert mean_of(path) == 2


def test_numbered_folders_of_any_format(tmp_path: Path) -> None:
    for number in (9, 10, 2):
        (tmp_path / str(number)).mkdir()
        norm(number).save(tmp_path / str(number), zipped=False)
    for name in ("11", "assets"):
        (tmp_path / name).mkdir()
    for choice, version in (({}, 10), ({"checkpoint": "2"}, 2), ({"step": 9}, 9)):
        source = bnstat.load(tmp_path, **choice).source
        assert (source.checkpoint, source.step) == (str(version), version)
        assert mean_of(tmp_path, **choice) == version
    with pytest.raises(NotFoundError, match="no checkpoint 3; there are: 2, 9, 10"):
        bnstat.load(tmp_path, checkpoint="3")


def test_checkpoints_come_before_single_files(tmp_path: Path) -> None:
    norm(1).save(tmp_path / "m.keras")
    named.save(tmp_path / "m-3", {"bn/moving_mean": [0.0], "bn/moving_variance": [1.0]})
    assert [model.name for model in locate(str(tmp_path)).models] == ["m-3"]
    assert locate(f"{tmp_path}/m.keras").default.name is None


@pytest.mark.parametrize("kind", ["hdf5", "npz", "pickle"])
def test_arrays_beside_a_model_are_data(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "data"
    arrays = {f"stranger/{role}": np.ones(2) for role in ROLES}
    if kind == "hdf5":
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    elif kind == "npz":
        with path.open("wb") as stream:
            np.savez(stream, **arrays)
    else:
        path.write_bytes(pickle.dumps(arrays))
    model = bnstat.load(tmp_path)
    assert (model.source.format, model.keys()) == (kind, ["stranger"])
    norm(1).save(tmp_path / "m.keras")
    assert bnstat.load(tmp_path).keys() == ["bn"]
