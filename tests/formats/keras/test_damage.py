"""Damaged Keras files, with cycles, excessive claims, unexpected types or outside references."""

from __future__ import annotations

import json
import re
import struct
import tarfile
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from bnstat.errors import BnstatError, DamagedError, NotFoundError, UnsupportedError
from bnstat.formats.hdf5.file import Hdf5
from bnstat.formats.keras.config import endings
from bnstat.storage.local import LocalFile
from tests.formats.keras.files import (
    VARS,
    WHOLE,
    batch_norms,
    contents_of,
    model,
    norm,
    read_all,
    recognised_by,
    write_archive,
    write_h5,
    write_weights,
)
from tests.fuzz import handmade


@pytest.mark.parametrize("offset", [512, 1024, 2048])
def test_an_archive_with_hdf5_at_an_offset_where_hdf5_files_may_start(offset, tmp_path):
    metadata = b'{"keras_version": "3.0.0"}'
    path = tmp_path / "m.keras"
    for _ in range(2):
        write_archive(path, metadata__json=metadata)
        start = path.read_bytes().index(b"\x89HDF\r\n")
        metadata += b" " * (offset - start)
    assert start == offset
    assert recognised_by(path) == ["keras.v3"]
    assert read_all(path) == WHOLE


def test_a_configuration_nested_too_deep_is_refused(tmp_path: Path) -> None:
    models = norm()
    for index in range(100):
        models = model(models, name=f"{index}")
    deep = "[" * 100_000 + "]" * 100_000
    for path in (
        write_h5(tmp_path / "models.h5", models),
        write_h5(tmp_path / "deep.h5", deep),
        write_archive(tmp_path / "m.keras", config__json=deep.encode()),
    ):
        with pytest.raises(DamagedError, match="nested"):
            contents_of(path)


def test_long_names_of_models_are_not_repeated_for_every_layer(tmp_path: Path) -> None:
    name = "a/" * 2000 + "m"
    config = model(model(*(norm(f"{index}") for index in range(20)), name=name))
    with pytest.raises(DamagedError, match="names are too long"):
        contents_of(write_h5(tmp_path / "m.h5", config))

    def fill(file: Any) -> None:
        for path in ("layers", *(f"layers/outer/{index}" for index in range(200))):
            handmade.numbered(file, f"{path}/vars")
        file["layers/vars"].attrs["name"] = "b" * 50_000

    found = contents_of(write_weights(tmp_path / "m.weights.h5", fill)).layers
    assert len(found) == 202
    assert sum(len(layer.name) for layer in found) < 1_000_000


def test_one_name_with_very_many_parts(tmp_path: Path) -> None:
    assert len([*endings("a/" * 20_000)]) < 100
    write_weights(
        tmp_path / "m.weights.h5", lambda file: handmade.numbered(file, "a\\" * 3000 + "/vars")
    )
    with pytest.raises(DamagedError, match="nested deeper"):
        contents_of(tmp_path / "m.weights.h5")


@pytest.mark.parametrize("config", [b"", b"{", b"\xff\xfe", b'{"class_name": "X", "config": '])
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
    path = write_h5(tmp_path / "m.h5", model(norm(**settings)))
    [found] = batch_norms(contents_of(path)).values()
    assert found.evidence == "config"
    assert found.epsilon is found.momentum is found.axis is found.trainable is None


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


def test_an_hdf5_file_in_a_tar_is_not_recognised_as_hdf5(tmp_path: Path) -> None:
    write_weights(tmp_path / "m.weights.h5")
    with tarfile.open(tmp_path / "m.tar", "w") as archive:
        archive.add(tmp_path / "m.weights.h5", "m.weights.h5")
    assert recognised_by(tmp_path / "m.tar") == []
    assert recognised_by(tmp_path / "m.weights.h5") == ["keras.weights"]


@pytest.mark.parametrize("is_written", [False, True])
def test_one_vast_chunk(is_written: bool, tmp_path: Path) -> None:
    """A chunk that was never written is cheap; one that was written is not decompressed."""
    options: dict[str, Any] = {"chunks": (1 << 28,), "maxshape": (None,), "compression": "gzip"}

    def write(file: Any) -> None:
        dataset = file.create_dataset("x/vars/0", (3,), "f4", **options)
        if is_written:
            dataset.id.write_direct_chunk((0,), zlib.compress(bytes(128 << 20)))

    variable = contents_of(write_weights(tmp_path / "m.weights.h5", write)).variables["x/vars/0"]
    tracemalloc.start()
    if is_written:
        with pytest.raises(DamagedError, match="claims"):
            variable.read()
    else:
        assert variable.read().tolist() == [0, 0, 0]
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_what_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(12))
    other = write_weights(tmp_path / "other.h5")
    layout = h5py.VirtualLayout((3,), np.float32)
    layout[:] = h5py.VirtualSource(other.name, f"{VARS}/0", (3,))

    def fill(file: h5py.File) -> None:
        file["x/vars/0"] = ["text"]
        file["x/vars/1"] = np.array([b"bytes"])
        file.create_dataset("x/vars/2", (1,), h5py.ref_dtype)
        file["x/vars/3"] = np.zeros(2, [("a", "f4"), ("b", "i4")])
        file["x/vars/4"] = h5py.Empty("f4")
        file["x/vars/5"] = h5py.ExternalLink(other.name, f"{VARS}/0")
        file["x/vars/6"] = h5py.SoftLink(f"/{VARS}/0")
        file.create_virtual_dataset("y/vars/0", layout)
        outside = [(str(tmp_path / "secret"), 0, 12)]
        file.create_dataset("y/vars/1", (3,), np.float32, external=outside)

    variables = contents_of(write_weights(tmp_path / "m.weights.h5", fill)).variables
    texts, outside = ([key for key in variables if key.startswith(name)] for name in "xy")
    assert (len(texts), len(outside), len(variables)) == (4, 2, 10)
    for keys, message in ((texts, "not numbers"), (outside, "outside of the file")):
        for key in keys:
            with pytest.raises(UnsupportedError, match=message):
                variables[key].read()


def test_lists_that_keras_splits(tmp_path: Path) -> None:
    names = [f"layer_{index:05}" for index in range(5000)]
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        for index, part in enumerate(np.array_split(np.array(names, "S"), 3)):
            file.attrs[f"layer_names{index}"] = part
    assert Hdf5(LocalFile(path)).texts("", "layer_names") == names
    assert recognised_by(path) == ["keras.h5"]


def test_an_empty_entry_ends_the_heap_of_texts(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "m.h5")
    data = bytearray(path.read_bytes())
    # The entry that ends a heap gives the size of the rest; the HDF5 library steps by it.
    heap = data.index(b"GCOL")
    at = heap + 16
    while int.from_bytes(data[at : at + 2], "little"):
        size = int.from_bytes(data[at + 8 : at + 16], "little")
        at += 16 + size + -size % 8
    data[at + 8 : at + 16] = bytes(8)
    path.write_bytes(data)
    assert read_all(path) == WHOLE


def test_a_text_that_many_elements_share(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "m.h5", names=["x" * 40_000, *["x"] * 2000])
    data = path.read_bytes()
    heaps = [match.start() for match in re.finditer(b"GCOL", data)]
    # Every element is a length, a heap's address and an entry's number. Make all the first.
    elements = [data.find(struct.pack("<IQI", 40_000, heap, 1)) for heap in heaps]
    at = max(elements)
    assert at > 0
    path.write_bytes(data[:at] + data[at : at + 16] * 2001 + data[at + 16 * 2001 :])
    with pytest.raises(DamagedError, match="overlap"):
        Hdf5(LocalFile(path)).texts("", "names")
