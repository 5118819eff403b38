"""Keras files that are cut short, damaged or made to do harm."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from bnstat.errors import BnstatError, DamagedError, NotFoundError, UnsupportedError
from bnstat.formats.hdf5.file import Hdf5
from bnstat.model import ROLES
from bnstat.storage.local import LocalFile
from tests.formats.keras.files import batch_norms, contents_of, recognised_by

VARS = "layers/batch_normalization/vars"
LAYER = {
    "class_name": "BatchNormalization",
    "config": {"name": "bn", "scale": True, "center": True, "epsilon": 0.5, "momentum": 0.9},
}


def write_weights(path: Path, change: Callable[[h5py.File], None] = lambda _: None) -> Path:
    """A `.weights.h5` with one batch norm of three channels."""
    with h5py.File(path, "w") as file:
        holder = file.create_group(VARS)
        holder.attrs["name"] = "bn"
        for index in range(4):
            holder[str(index)] = np.full(3, index, np.float32)
        change(file)
    return path


def write_h5(path: Path, layers: object = (LAYER,), **attributes: object) -> Path:
    """A whole model in Keras's older HDF5, with one batch norm of three channels."""
    with h5py.File(path, "w") as file:
        config = {"class_name": "Sequential", "config": {"name": "net", "layers": layers}}
        file.attrs["model_config"] = json.dumps(config)
        for name, value in attributes.items():
            file.attrs[name] = value
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = ["bn"]
        for index, label in enumerate(("gamma", "beta", "moving_mean", "moving_variance")):
            group[f"bn/bn/{label}:0"] = np.full(3, index, np.float32)
    return path


def write_archive(path: Path, **members: bytes) -> Path:
    """A `.keras` with one batch norm; `members` replace its files."""
    weights = write_weights(path.with_suffix(".h5")).read_bytes()
    config = json.dumps({"class_name": "Sequential", "config": {"layers": [LAYER]}})
    held = {
        "metadata.json": b'{"keras_version": "3.0.0"}',
        "config.json": config.encode(),
        "model.weights.h5": weights,
    } | {name.replace("__", "."): data for name, data in members.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in held.items():
            archive.writestr(name, data)
    return path


def read_all(path: Path) -> dict[str, list[Any]]:
    """Every array of every batch-norm layer."""
    contents = contents_of(path)
    return {
        name: [
            contents.variables[layer.roles[role]].read().tolist()
            for role in ROLES
            if role in layer.roles
        ]
        for name, layer in batch_norms(contents).items()
    }


WHOLE = {"bn": [[float(index)] * 3 for index in range(4)]}
WRITERS = pytest.mark.parametrize(
    ("write", "suffix"),
    [(write_weights, ".weights.h5"), (write_h5, ".h5"), (write_archive, ".keras")],
)


@WRITERS
def test_the_undamaged_file_is_read(
    write: Callable[[Path], Path], suffix: str, tmp_path: Path
) -> None:
    assert read_all(write(tmp_path / f"m{suffix}")) == WHOLE


@WRITERS
def test_cut_short_at_any_length(
    write: Callable[[Path], Path], suffix: str, tmp_path: Path
) -> None:
    path = write(tmp_path / f"m{suffix}")
    data = path.read_bytes()
    cut = tmp_path / f"cut{suffix}"
    for length in range(64, len(data), 97):
        cut.write_bytes(data[:length])
        with pytest.raises(DamagedError):
            contents_of(cut)


@WRITERS
def test_any_byte_may_be_wrong(write: Callable[[Path], Path], suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"m{suffix}")
    data = path.read_bytes()
    wrong = tmp_path / f"wrong{suffix}"
    rng = random.Random(0)
    filled = [at for at, byte in enumerate(data) if byte]
    for _ in range(300):
        damaged = bytearray(data)
        for at in rng.sample(filled, rng.choice((1, 1, 4))):
            damaged[at] = rng.choice((0, 1, 0x7F, 0xFF, damaged[at] ^ 1 << rng.randrange(8)))
        wrong.write_bytes(damaged)
        began = time.process_time()
        with suppress(BnstatError):
            if recognised_by(wrong):
                read_all(wrong)
        assert time.process_time() - began < 5


def test_a_group_within_itself_ends(tmp_path: Path) -> None:
    def tie(file: h5py.File) -> None:
        file["layers/again"] = file["layers"]
        file["layers/batch_normalization/up"] = file["/"]

    path = write_weights(tmp_path / "m.weights.h5", tie)
    assert read_all(path) == WHOLE


def test_many_links_to_one_group_are_one(tmp_path: Path) -> None:
    def fan(file: h5py.File) -> None:
        inner = file.create_group("x")
        for _ in range(40):
            outer = file.create_group(None)
            outer["left"], outer["right"] = inner, inner
            inner = outer
        file["fan"] = inner

    path = write_weights(tmp_path / "m.weights.h5", fan)
    assert read_all(path) == WHOLE


def test_groups_nested_too_deep_are_refused(tmp_path: Path) -> None:
    def nest(file: h5py.File) -> None:
        group: Any = file
        for _ in range(2000):
            group = group.create_group("g")

    with pytest.raises(DamagedError, match="nested"):
        contents_of(write_weights(tmp_path / "m.weights.h5", nest))


def test_links_are_not_followed(tmp_path: Path) -> None:
    secret = write_weights(tmp_path / "secret.h5")

    def link(file: h5py.File) -> None:
        file[f"layers/batch_normalization_1/{VARS.rpartition('/')[2]}"] = h5py.ExternalLink(
            secret.name, VARS
        )
        file["layers/batch_normalization_2"] = h5py.SoftLink("/layers/batch_normalization")

    contents = contents_of(write_weights(tmp_path / "m.weights.h5", link))
    assert list(contents.variables) == [f"{VARS}/{index}" for index in range(4)]


def test_data_outside_of_the_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(12))
    other = write_weights(tmp_path / "other.h5")
    layout = h5py.VirtualLayout((3,), np.float32)
    layout[:] = h5py.VirtualSource(other.name, f"{VARS}/0", (3,))

    def refer(file: h5py.File) -> None:
        del file[f"{VARS}/0"], file[f"{VARS}/1"]
        file.create_virtual_dataset(f"{VARS}/0", layout)
        outside = [(str(tmp_path / "secret"), 0, 12)]
        file.create_dataset(f"{VARS}/1", (3,), np.float32, external=outside)

    contents = contents_of(write_weights(tmp_path / "m.weights.h5", refer))
    for index in (0, 1):
        with pytest.raises(UnsupportedError, match="outside of the file"):
            contents.variables[f"{VARS}/{index}"].read()


@pytest.mark.parametrize(
    "dataset",
    [
        {"shape": (1 << 40,), "dtype": "f4", "chunks": (1 << 20,)},
        {"shape": (1 << 40,), "dtype": "f4", "chunks": (1 << 20,), "compression": "gzip"},
        {"shape": (3,), "maxshape": (None,), "dtype": "f4", "chunks": (1 << 28,)},
    ],
    ids=["unwritten", "compressed", "one vast chunk"],
)
def test_what_claims_more_than_it_holds_is_refused(dataset: dict[str, Any], tmp_path: Path) -> None:
    path = write_weights(
        tmp_path / "m.weights.h5", lambda file: file.create_dataset("x/vars/0", **dataset)
    )
    variable = contents_of(path).variables["x/vars/0"]
    assert variable.shape == dataset["shape"]
    tracemalloc.start()
    with pytest.raises(DamagedError, match="claims"):
        variable.read()
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_a_compressed_array_of_nothing_but_zeros_is_bounded(tmp_path: Path) -> None:
    zeros = np.zeros(100_000_000, np.uint8)
    path = write_weights(
        tmp_path / "m.weights.h5",
        lambda file: file.create_dataset(
            "x/vars/0", data=zeros, chunks=(10_000_000,), compression="gzip"
        ),
    )
    with pytest.raises(DamagedError, match="claims"):
        contents_of(path).variables["x/vars/0"].read()


def test_what_is_not_numbers_is_refused(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file["x/vars/0"] = ["text"]
        file["x/vars/1"] = np.array([b"bytes"])
        file.create_dataset("x/vars/2", (1,), h5py.ref_dtype)
        file["x/vars/3"] = np.zeros(2, [("a", "f4"), ("b", "i4")])
        file["x/vars/4"] = h5py.Empty("f4")

    contents = contents_of(write_weights(tmp_path / "m.weights.h5", fill))
    assert "x/vars/4" not in contents.variables
    for index in range(4):
        with pytest.raises(UnsupportedError, match="not numbers"):
            contents.variables[f"x/vars/{index}"].read()


def test_big_endian_numbers_come_in_the_machines_order(tmp_path: Path) -> None:
    values = np.array([1.5, -2.25], ">f4")
    path = write_weights(
        tmp_path / "m.weights.h5", lambda file: file.create_dataset("x/vars/0", data=values)
    )
    variable = contents_of(path).variables["x/vars/0"]
    assert variable.dtype == "float32"
    assert variable.read().dtype == np.dtype("float32")
    assert variable.read().tolist() == values.tolist()


def test_texts_are_read_as_h5py_reads_them(tmp_path: Path) -> None:
    held: dict[str, object] = {
        "text": "é" * 100,
        "empty": "",
        "list": ["x", "", "yy"],
        "fixed": np.array([b"ab", b"c"]),
        "number": 3,
        "none": np.zeros(0),
    }
    expected = {
        "text": ["é" * 100],
        "empty": [""],
        "list": ["x", "", "yy"],
        "fixed": ["ab", "c"],
        "number": None,
        "none": [],
    }
    for version, block in (("earliest", 0), ("earliest", 1024), ("v108", 0), ("latest", 512)):
        path = tmp_path / f"{version}{block}.h5"
        with h5py.File(path, "w", libver=version, userblock_size=block) as file:
            group = file.create_group("a/b")
            for name, value in held.items():
                file.attrs[name] = group.attrs[name] = value
        store = Hdf5(LocalFile(path))
        for place in ("", "a/b"):
            assert {name: store.texts(place, name) for name in held} == expected
            assert store.texts(place, "missing") is None


def test_lists_that_keras_splits_are_joined(tmp_path: Path) -> None:
    names = [f"layer_{index:05}" for index in range(5000)]
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        for index, part in enumerate(np.array_split(np.array(names, "S"), 3)):
            file.attrs[f"layer_names{index}"] = part
    assert Hdf5(LocalFile(path)).texts("", "layer_names") == names
    assert recognised_by(path) == ["keras.h5"]


def test_an_empty_entry_in_the_heap_of_texts_ends_it(tmp_path: Path) -> None:
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


def test_one_text_that_many_elements_share_is_refused(tmp_path: Path) -> None:
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
def test_a_configuration_that_is_no_json_is_damage(config: bytes, tmp_path: Path) -> None:
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
def test_a_configuration_of_no_sense_tells_nothing(config: object, tmp_path: Path) -> None:
    path = write_archive(tmp_path / "m.keras", config__json=json.dumps(config).encode())
    assert read_all(path) == WHOLE


def test_settings_of_no_sense_are_left_out(tmp_path: Path) -> None:
    settings = {"epsilon": "x", "momentum": 10**400, "axis": [1.5], "trainable": "no", "mode": []}
    layer = {"class_name": "BatchNormalization", "config": LAYER["config"] | settings}
    [found] = batch_norms(contents_of(write_h5(tmp_path / "m.h5", [layer]))).values()
    assert found.evidence == "config"
    assert [found.epsilon, found.momentum, found.axis, found.trainable] == [None] * 4


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


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.npz", b"\x80\x04")
    with pytest.raises(UnsupportedError, match="pickle"):
        contents_of(path)


def test_a_member_that_is_not_where_the_archive_says(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "m.keras")
    data = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        at = archive.getinfo("model.weights.h5").header_offset
    path.write_bytes(data[:at] + b"XXXX" + data[at + 4 :])
    with pytest.raises(DamagedError, match="has no model"):
        contents_of(path)


def test_an_hdf5_file_in_a_tar_is_the_archives_matter(tmp_path: Path) -> None:
    import tarfile

    write_weights(tmp_path / "m.weights.h5")
    with tarfile.open(tmp_path / "m.tar", "w") as archive:
        archive.add(tmp_path / "m.weights.h5", "m.weights.h5")
    assert recognised_by(tmp_path / "m.tar") == []
    assert recognised_by(tmp_path / "m.weights.h5") == ["keras.weights"]
