"""Keras files that are cut short, damaged, or refer to other files."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest

from bnstat.errors import BnstatError, DamagedError, NotFoundError
from tests.formats.keras.files import batch_norms, contents_of, recognised_by
from tests.formats.keras.small import (
    LAYER,
    VARS,
    WHOLE,
    read_all,
    write_archive,
    write_h5,
    write_weights,
)

WRITERS = pytest.mark.parametrize(
    ("write", "suffix"),
    [(write_weights, ".weights.h5"), (write_h5, ".h5"), (write_archive, ".keras")],
)


@pytest.mark.parametrize("offset", [512, 1024, 2048])
def test_an_archive_with_hdf5_at_an_offset_where_hdf5_files_may_start(
    offset: int, tmp_path: Path
) -> None:
    metadata = b'{"keras_version": "3.0.0"}'
    path = tmp_path / "m.keras"
    for _ in range(2):
        write_archive(path, metadata__json=metadata)
        start = path.read_bytes().index(b"\x89HDF\r\n")
        metadata += b" " * (offset - start)
    assert start == offset
    assert recognised_by(path) == ["keras.archive"]
    assert read_all(path) == WHOLE


@WRITERS
def test_the_undamaged_file_is_read(
    write: Callable[[Path], Path], suffix: str, tmp_path: Path
) -> None:
    assert read_all(write(tmp_path / f"m{suffix}")) == WHOLE


def test_a_configuration_nested_too_deep_is_refused(tmp_path: Path) -> None:
    layers: Any = [LAYER]
    for index in range(100):
        layers = [{"class_name": "Sequential", "config": {"name": f"{index}", "layers": layers}}]
    with pytest.raises(DamagedError, match="nested"):
        contents_of(write_h5(tmp_path / "models.h5", layers))
    deep = b"[" * 100_000 + b"]" * 100_000
    with pytest.raises(DamagedError, match="nested"):
        contents_of(write_archive(tmp_path / "m.keras", config__json=deep))
    path = write_h5(tmp_path / "m.h5")
    with h5py.File(path, "a") as file:
        file.attrs["model_config"] = deep.decode()
    with pytest.raises(DamagedError, match="nested"):
        contents_of(path)


@pytest.mark.parametrize(
    "config",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"class_name": "Sequential", "config": ',
    ],
)
def test_a_configuration_that_is_not_json(config: bytes, tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="JSON"):
        contents_of(write_archive(tmp_path / "m.keras", config__json=config))


@pytest.mark.parametrize(
    "config",
    [
        None,
        [],
        {"class_name": 1, "config": {}},
        {"class_name": "Sequential", "config": {"layers": {"a": 1}}},
        {"class_name": "Sequential", "config": {"layers": [None, 1, {}, {"class_name": []}]}},
        {"class_name": "Sequential", "config": {"layers": [{"class_name": "X", "config": None}]}},
        {"class_name": "Sequential", "config": [{"class_name": "X", "config": {"name": []}}]},
    ],
)
def test_a_configuration_with_wrong_types_is_ignored(config: object, tmp_path: Path) -> None:
    path = write_archive(tmp_path / "m.keras", config__json=json.dumps(config).encode())
    assert read_all(path) == WHOLE


def test_settings_with_wrong_types_are_left_out(tmp_path: Path) -> None:
    settings = {"epsilon": "x", "momentum": 10**400, "axis": [1.5], "trainable": "no", "mode": []}
    layer = {"class_name": "BatchNormalization", "config": LAYER["config"] | settings}
    [sighting] = batch_norms(contents_of(write_h5(tmp_path / "m.h5", [layer]))).values()
    assert sighting.evidence == "config"
    settings = [sighting.epsilon, sighting.momentum, sighting.axis, sighting.trainable]
    assert settings == [None] * 4


def test_a_missing_shard_is_named(written: Path, tmp_path: Path) -> None:
    source = written / "k3_2.21_keras3.15"
    for name in ("shard.weights.json", "shard_00000.weights.h5", "shard_00002.weights.h5"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    with pytest.raises(NotFoundError, match=r"shard_00001\.weights\.h5"):
        contents_of(tmp_path / "shard.weights.json")


@pytest.mark.parametrize(
    "files", ["../secret.h5", "/etc/secret.h5", ["a.h5", ".."], "..\\a.h5", 7, [7], "a\0.h5"]
)
def test_an_index_cannot_lead_out_of_its_folder(files: object, tmp_path: Path) -> None:
    write_weights(tmp_path / "secret.h5")
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "m.weights.json"
    path.write_text(json.dumps({"weight_map": {f"/{VARS}": files, "/y/vars": "z.h5"}}))
    with pytest.raises(BnstatError):
        contents_of(path)


def test_a_member_that_is_missing_from_its_offset(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "m.keras")
    data = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        at = archive.getinfo("model.weights.h5").header_offset
    path.write_bytes(data[:at] + b"XXXX" + data[at + 4 :])
    with pytest.raises(DamagedError, match="the directory of the zip has a wrong offset"):
        contents_of(path)


def test_an_hdf5_file_in_a_tar_is_not_recognised_as_hdf5(tmp_path: Path) -> None:
    import tarfile

    write_weights(tmp_path / "m.weights.h5")
    with tarfile.open(tmp_path / "m.tar", "w") as archive:
        archive.add(tmp_path / "m.weights.h5", "m.weights.h5")
    assert recognised_by(tmp_path / "m.tar") == []
    assert recognised_by(tmp_path / "m.weights.h5") == ["keras.weights"]
