"""Keras loads the new values from copies of its files."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import bnstat
from tests.builders import keras_models
from tests.builders.mended import NewValues, differing, held, new_values
from tests.builders.oracle import same_bits
from tests.mending.originals import mended


def build(package: Any) -> Any:
    package.utils.set_random_seed(1)
    return keras_models.functional(package)


@pytest.fixture(scope="module")
def network() -> Any:
    return build(keras)


def assert_loaded(model: Any, values: NewValues) -> None:
    """Assert that the layers of a Keras model have all of these values."""
    by_name = {layer.name: layer for layer in keras_models.all_layers(model)}
    for name, roles in values.items():
        for role, array in roles.items():
            variable = getattr(by_name[name.rpartition("/")[2]], role)
            assert same_bits(np.asarray(variable), array), (name, role)


def saved(network: Any, path: Path) -> Path:
    network.save(path)
    return path


def load_weights(package: Any, path: Path) -> Any:
    model = build(package)
    model.load_weights(path)
    return model


@pytest.mark.parametrize(
    ("package", "name", "save", "load"),
    [
        (keras, "m.h5", "save", keras.saving.load_model),
        (keras, "m.weights.h5", "save_weights", partial(load_weights, keras)),
        (tf_keras, "m.h5", "save", tf_keras.models.load_model),
        (tf_keras, "m", "save", tf_keras.models.load_model),
        (tf_keras, "w", "save_weights", partial(load_weights, tf_keras)),
    ],
)
def test_models_and_weights(
    package: Any, name: str, save: str, load: Callable[[Path], Any], tmp_path: Path
) -> None:
    original, copy = tmp_path / name, tmp_path / f"copy-{name}"
    getattr(build(package), save)(original)
    values = mended(original, copy)
    assert_loaded(load(copy), values)
    if name.endswith(".h5"):
        (offsets,) = differing(original, copy).values()
        assert offsets <= held(bnstat.load(original))[name]


def test_a_keras_archive_changes_in_one_member_and_its_checksum(
    network: Any, tmp_path: Path
) -> None:
    original, copy = saved(network, tmp_path / "m.keras"), tmp_path / "c.keras"
    values = mended(original, copy)
    assert_loaded(keras.saving.load_model(copy), values)
    (offsets,) = differing(original, copy).values()
    outside = offsets - held(bnstat.load(original))["m.keras"]
    with zipfile.ZipFile(copy) as archive:
        assert archive.testzip() is None
        info = archive.getinfo("model.weights.h5")
        directory = archive.start_dir
    header = set(range(info.header_offset + 14, info.header_offset + 18))
    entry = {offset for offset in outside if offset >= directory}
    assert outside - entry <= header
    assert len(entry) <= 4


def test_a_compressed_keras_archive(network: Any, tmp_path: Path) -> None:
    plain, original, copy = (tmp_path / f"{name}.keras" for name in "pmc")
    saved(network, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(original, "w") as target:
        for info in reversed(source.infolist()):
            target.writestr(info, source.read(info), zipfile.ZIP_DEFLATED)
    values = mended(original, copy)
    assert_loaded(keras.saving.load_model(copy), values)
    with zipfile.ZipFile(original) as before, zipfile.ZipFile(copy) as after:
        assert after.testzip() is None
        for old, new in zip(before.infolist(), after.infolist(), strict=True):
            for member in ("filename", "date_time", "extra"):
                assert getattr(old, member) == getattr(new, member)
            same = before.read(old) == after.read(new)
            assert same == (old.filename != "model.weights.h5")


def test_sharded_weights(network: Any, tmp_path: Path) -> None:
    original, copy = tmp_path / "a/m.weights.json", tmp_path / "b/m.weights.json"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    network.save_weights(original, max_shard_size=1.5e-6)
    assert len(list(original.parent.glob("*.h5"))) > 1
    values = new_values(bnstat.load(original))
    bnstat.apply(original, values, copy)
    assert original.read_bytes() == copy.read_bytes()
    assert_loaded(load_weights(keras, copy), values)
    shard = next(original.parent.glob("*.h5"))
    with pytest.raises(bnstat.BnstatError, match=r"pass m\.weights\.json instead"):
        bnstat.apply(shard, values, tmp_path / "c.h5")
    with pytest.raises(bnstat.BnstatError, match="needs this name for a shard"):
        bnstat.apply(original, values, tmp_path / "a/other.weights.json")


@pytest.mark.parametrize("writer", ["export", "save"])
def test_keras_3_as_a_saved_model(network: Any, tmp_path: Path, writer: str) -> None:
    original, copy = tmp_path / "m", tmp_path / "c"
    if writer == "export":
        network.export(original, verbose=False)
    else:
        tf.saved_model.save(network, str(original))
    values = mended(original, copy)
    tf.saved_model.load(str(copy))
    changed = differing(original, copy)
    assert set(changed) == {"variables/variables.data-00000-of-00001", "variables/variables.index"}
    reader = tf.train.load_checkpoint(str(copy / "variables/variables"))
    arrays = {
        key: reader.get_tensor(key)
        for key in reader.get_variable_to_shape_map()
        if key.endswith("VARIABLE_VALUE")
    }
    for roles in values.values():
        for array in roles.values():
            keys = [key for key, stored in arrays.items() if np.array_equal(stored, array)]
            assert keys
            if writer == "export":  # saves each variable twice
                assert {key.split("/")[0] for key in keys} == {"variables", "_all_variables"}


STORED: dict[str, dict[str, Any]] = {
    "compressed": {"chunks": True, "compression": "gzip", "shuffle": True},
    "checksummed": {"chunks": True, "fletcher32": True},
    "of lzf": {"chunks": True, "compression": "lzf"},
    "in chunks": {"chunks": True},
    "big-endian": {"dtype": ">f4"},
}


@pytest.mark.parametrize("storage", STORED)
def test_datasets_of_other_layouts(network: Any, tmp_path: Path, storage: str) -> None:
    plain, original, copy = tmp_path / "p.h5", tmp_path / "m.h5", tmp_path / "c.h5"
    saved(network, plain)
    rewrite(plain, original, STORED[storage])
    values = mended(original, copy)
    assert_loaded(keras.saving.load_model(copy), values)
    assert layouts(copy) == layouts(original)


def layouts(path: Path) -> list[tuple[Any, ...]]:
    """Return the name and the storage layout of each dataset of a file."""
    found: list[tuple[Any, ...]] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found.append((name, item.dtype, item.chunks, item.compression, item.fletcher32))

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def rewrite(source: Path, target: Path, layout: dict[str, Any]) -> None:
    """Write an HDF5 file again with another storage layout of its vectors."""
    shutil.copy(source, target)
    with h5py.File(target, "r+") as file:
        vectors = [name for name, *_ in layouts(source) if file[name].ndim == 1]
        for name in vectors:
            data, attributes = file[name][()], dict(file[name].attrs)
            del file[name]
            file.create_dataset(name, data=data, **layout).attrs.update(attributes)


@pytest.mark.parametrize("policy", ["float16", "bfloat16", "float64"])
def test_other_types(tmp_path: Path, policy: str) -> None:
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.BatchNormalization(name="bn", dtype=policy)(inputs))
    original, copy = tmp_path / "m.keras", tmp_path / "c.keras"
    model.save(original)
    values = mended(original, copy)
    loaded = keras.saving.load_model(copy)
    for role, array in values["bn"].items():
        stored = np.asarray(keras.ops.convert_to_numpy(getattr(loaded.layers[1], role)))
        assert stored.tobytes() == array.tobytes(), role


def test_values_from_a_file_of_another_format(network: Any, tmp_path: Path) -> None:
    saved(network, tmp_path / "m.keras")
    other = mended(tmp_path / "m.keras", tmp_path / "other.keras")
    saved(network, tmp_path / "m.h5")
    applied = bnstat.apply(tmp_path / "m.h5", tmp_path / "other.keras", tmp_path / "c.h5")
    assert {change.match for change in applied.changes} <= {"name", "suffix"}
    assert applied.values == str(tmp_path / "other.keras")
    assert applied.moved == sum(array.size for roles in other.values() for array in roles.values())
    assert_loaded(keras.saving.load_model(tmp_path / "c.h5"), other)
