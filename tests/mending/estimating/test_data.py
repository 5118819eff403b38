"""Data in memory and in files that fits a model, and errors about data that does not."""

from __future__ import annotations

import gzip
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bnstat.errors import BnstatError
from bnstat.estimate.data import Settings, open_data
from bnstat.estimate.data.batches import Input
from bnstat.estimate.data.stored import Images

ONE = {"x": Input("x:0", "float32", (None, 2, 3))}
X = np.arange(60, dtype=np.float32).reshape(10, 2, 3)


def read(data: Any, inputs: Any = ONE, **options: Any) -> list[Any]:
    return list(open_data(data, inputs, Settings(batch_size=4, **options)))


def all_of(batches: list[Any], name: str = "x") -> np.ndarray:
    return np.concatenate([batch.feeds[name] for batch in batches])


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_an_npz_in_batches_with_the_labels(tmp_path: Path) -> None:
    path = npz(tmp_path / "d.npz", x=X.astype(np.uint8), y=np.arange(10))
    batches = read(path, labels="y")
    assert [batch.size for batch in batches] == [4, 4, 2]
    assert batches[0].feeds["x"].dtype == np.float32
    np.testing.assert_array_equal(all_of(batches), X)
    assert np.concatenate([batch.labels for batch in batches]).tolist() == list(range(10))
    assert [batch.size for batch in read(path, labels="y", samples=5)] == [4, 1]


def test_one_array_is_for_the_only_input_whatever_its_name(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", X)
    for path in (tmp_path / "d.npy", npz(tmp_path / "d.npz", arr_0=X)):
        np.testing.assert_array_equal(all_of(read(path)), X)


def test_labels_of_one_hot_are_classes(tmp_path: Path) -> None:
    path = npz(tmp_path / "d.npz", x=X, y=np.eye(10))
    assert read(path, labels="y")[0].labels.tolist() == [0, 1, 2, 3]


def test_a_fixed_batch_is_kept_to() -> None:
    fixed = {"x": Input("x:0", "float32", (3, 2, 3))}
    assert [batch.size for batch in read(X, fixed)] == [3, 3, 3]
    nothing = {"x": Input("x:0", "float32", (0, 2, 3))}
    assert [batch.size for batch in read(X, nothing)] == [4, 4, 2]
    with pytest.raises(BnstatError, match="the model takes 3 at a time: too few"):
        read(X[:2], fixed)


FUNCTIONS = """
import numpy as np
X = np.arange(60, dtype=np.float32).reshape(10, 2, 3)
def batches():
    yield {"x": X[:7]}
    yield {"x": X[7:]}
def fails():
    yield {"x": X[:7]}
    raise RuntimeError("the disk is full\\nand more")
def ends():
    raise SystemExit(3)
"""


def test_a_function_of_a_file_and_of_a_module(tmp_path, monkeypatch) -> None:
    (tmp_path / "prepare.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    for data in (f"{tmp_path}/prepare.py:batches", "prepare:batches"):
        opened = open_data(data, ONE, Settings(batch_size=4))
        for _ in range(2):
            assert [batch.size for batch in opened] == [4, 4, 2]
        np.testing.assert_array_equal(all_of(list(opened)), X)
    for data, message in {
        "prepare.py:fails": r"\.py:fails: yields no batches: RuntimeError: the disk is full$",
        "prepare.py:ends": r"prepare\.py:ends: SystemExit: 3",
        "prepare.py:none": "no function 'none'",
        "no_such_module:batches": "cannot be imported",
    }.items():
        with pytest.raises(BnstatError, match=message):
            read(data)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def (", "SyntaxError: invalid syntax"),
        ("no_such_name", "NameError: name 'no_such_name' is not defined"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("import no_such_module", "No module named 'no_such_module'"),
    ],
)
def test_a_module_that_fails(code: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(code)
    with pytest.raises(BnstatError, match=rf"cannot be imported: {reason}"):
        read(f"{tmp_path}/failing.py:batches")


def generator() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    yield X[:6], np.arange(6)
    yield X[6:], np.arange(6, 10)


@pytest.mark.parametrize(
    "data",
    [
        X,
        {"x": X},
        (X, np.arange(10)),
        [X[:3], X[3:]],
        generator(),
        generator,
        tf.data.Dataset.from_tensor_slices(X),
        tf.data.Dataset.from_tensor_slices({"x": X}).batch(3),
        tf.data.Dataset.from_tensor_slices((X, np.arange(10))).batch(10),
    ],
    ids=["array", "dict", "pair", "list", "generator", "function", "samples", "named", "pairs"],
)
def test_objects_of_a_python_caller(data: Any) -> None:
    opened = open_data(data, ONE, Settings(batch_size=4))
    for _ in range(2):
        batches = list(opened)
        assert [batch.size for batch in batches] == [4, 4, 2]
        np.testing.assert_array_equal(all_of(batches), X)


def test_a_saved_dataset(tmp_path: Path) -> None:
    samples = tf.data.Dataset.from_tensor_slices({"x": X, "y": np.arange(10)})
    for name, dataset in (("samples", samples), ("batches", samples.batch(3))):
        path = str(tmp_path / name)
        for compression in (None, "GZIP"):
            dataset.save(path, compression)
            batches = read(path, labels="y")
            np.testing.assert_array_equal(all_of(batches), X)
            assert batches[2].labels.tolist() == [8, 9]
    images = {"images": ONE["x"]}
    np.testing.assert_array_equal(all_of(read(path, images, labels="y"), "images"), X)


def test_a_caller_of_graphs_and_sessions(folder: Path) -> None:
    tf.data.Dataset.from_tensor_slices({"x": X}).save(str(folder / "saved"))
    with tf.Graph().as_default(), tf.compat.v1.Session():
        for _ in open_data(folder / "saved", ONE, Settings(batch_size=4)):
            assert not tf.executing_eagerly()
        inputs = {"x": Input("x:0", "float32", (None, 4, 6, 4))}
        np.testing.assert_array_equal(all_of(read(folder, inputs)), IMAGES)


def test_arrays_that_are_not_needed_are_not_read(tmp_path: Path) -> None:
    others = {"classes": np.arange(3), "epoch": np.float32(7), "made": np.array([{}], object)}
    np.testing.assert_array_equal(all_of(read(npz(tmp_path / "d.npz", x=X, **others))), X)
    np.testing.assert_array_equal(all_of(read({"x": X, "classes": np.arange(3)})), X)


TWO = {**ONE, "z": Input("z:0", "int32", (None,))}


@pytest.mark.parametrize(
    ("arrays", "inputs", "message"),
    [
        (
            {"w": X, "y": X[:, 0, 0]},
            ONE,
            "no array named 'x'; the model takes x; it has w, y: if y holds the labels, pass "
            "--labels y; otherwise rename the input array to x",
        ),
        ({"w": X, "y": X}, ONE, "it has w, y: if one of them holds the labels, pass --labels NAME"),
        ({"x": X}, TWO, "no array named 'z'; the model takes x, z; it has x"),
        ({"x": X[:, :, :2]}, ONE, r"'x' have the shape \[2, 2\], but the model takes \[2, 3\]"),
        ({"x": X[:, 0]}, ONE, r"samples for 'x' have the shape \[3\]"),
        ({"x": np.array(["a", "b"])}, {"x": Input("x", "float32", None)}, "takes float32"),
        ({"x": X, "z": np.linspace(0, 1, 10)}, TWO, "float64, but the model takes int32"),
        ({"x": X, "z": np.full(10, 2**40)}, TWO, "int64, but the model takes int32"),
        ({"x": np.where(X == 7, np.nan, X)}, ONE, "x: 1 of .* values are NaN or infinite"),
        ({"x": np.full(X.shape, 1e40)}, ONE, "x: 24 of 24 .* infinite after conversion to float32"),
        ({"x": X.astype("V4")}, ONE, r"'x' have the dtype \|V4, but the model takes float32"),
        ({"x": X[:1]}, ONE, "has 1 sample: too few"),
        ({"x": X[:0]}, ONE, "has no sample: too few"),
        ({"x": X, "z": np.arange(3)}, TWO, "differ in length: x 10, z 3"),
        ({}, ONE, "contains no arrays"),
        ({"x": np.float32(1)}, ONE, "a scalar array has no sample axis"),
    ],
)
def test_data_that_does_not_fit(tmp_path, arrays, inputs, message) -> None:
    with pytest.raises(BnstatError, match=message):
        read(npz(tmp_path / "d.npz", **arrays), inputs)


def test_nan_far_into_a_file_is_found_before_the_run() -> None:
    x = np.zeros((100, 2, 3), np.float32)
    x[99] = np.nan
    with pytest.raises(BnstatError, match="NaN"):
        open_data(x, ONE, Settings(batch_size=4))
    assert sum(batch.size for batch in open_data(x, ONE, Settings(batch_size=4, samples=98))) == 98


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.txt", b"some words", "not in a data format that bnstat reads"),
        ("", None, "not in a data format that bnstat reads"),
        ("d.npz", b"some words", r"name of an \.npz or \.npy file, but not the contents"),
        ("d.npz", b"PK\x03\x04 cut short", "NumPy cannot read it"),
        ("nowhere/d.npz", None, "nowhere/d.npz: does not exist"),
    ],
)
def test_unknown_and_damaged_files(name, content, message, tmp_path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BnstatError, match=message):
        read(tmp_path / name)


THREE = {"v": X, "w": X, "y": np.arange(10)}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (7, "not a type of data that bnstat reads"),
        ({"x": np.float32(1)}, "a scalar array has no sample axis"),
        ([{"x": X, "epoch": np.float32(1)}], "a scalar array has no sample axis"),
        (THREE, r"it has v, w, y: rename the input array to x$"),
        ({"x": X}, "no array 'y' for --labels; it has x"),
        ({"x": X, "y": np.array(list("aabbccddee"))}, "dtype <U1, which is not numeric; pass the"),
        ([X, X[:, :, :2]], "its batches differ in the names of arrays"),
    ],
)
def test_objects_that_do_not_fit(data: Any, message: str) -> None:
    with pytest.raises(BnstatError, match=message):
        read(data, labels="y" if "y'" in message or isinstance(data, dict) else None)


def test_arrays_of_objects_and_arrays_larger_than_they_can_be(tmp_path, monkeypatch) -> None:
    for name, length in (("few.npz", 10**6), ("many.npz", 10**13)):
        with zipfile.ZipFile(tmp_path / name, "w") as archive, archive.open("x.npy", "w") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (length, 2, 3)}
            np.lib.format.write_array_header_1_0(file, header)
            file.write(bytes(100))
        with pytest.raises(BnstatError, match="NumPy cannot read it"):
            read(tmp_path / name)
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    with pytest.raises(BnstatError, match="NumPy cannot read it"):
        read(tmp_path / "objects.npz")
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros((10_000, 2, 3), np.float32))
    assert (tmp_path / "bomb.npz").stat().st_size < 2000
    monkeypatch.setattr(os, "sysconf", lambda name: 400)
    with pytest.raises(BnstatError, match=r"unpacks to 0.00024 GB, more than this machine's"):
        read(tmp_path / "bomb.npz")


def example(**features: Any) -> bytes:
    made = {}
    for name, value in features.items():
        kind = {bytes: "bytes_list", int: "int64_list", np.ndarray: "float_list"}[type(value)]
        values = value.ravel() if isinstance(value, np.ndarray) else [value]
        made[name] = tf.train.Feature(**{kind: {"value": values}})
    return tf.train.Example(features={"feature": made}).SerializeToString()


SAMPLES = [example(x=sample, y=number) for number, sample in enumerate(X)]


def write(path: Path, examples: list[bytes], compression: str = "") -> Path:
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for each in examples:
            writer.write(each)
    return path


def test_a_record_file(tmp_path: Path) -> None:
    path = write(tmp_path / "d.tfrecord", SAMPLES)
    batches = read(path, labels="y")
    np.testing.assert_array_equal(all_of(batches), X)
    assert batches[1].labels.tolist() == [4, 5, 6, 7]
    with pytest.raises(BnstatError, match="no feature 'z'; its features are x, y"):
        read(path, {"z": ONE["x"]})
    wide = {"x": Input("x:0", "float32", (None, 4))}
    with pytest.raises(BnstatError, match="'x' has 6 values"):
        read(path, wide)


def test_a_damaged_record_file(tmp_path: Path) -> None:
    path = write(tmp_path / "d.tfrecord", SAMPLES)
    whole = path.read_bytes()
    flipped = whole[:30] + bytes([whole[30] ^ 255]) + whole[31:]
    for damaged, message in (
        (whole[:-5], "ends within record 9"),
        (flipped, "0 has a wrong checksum"),
        (gzip.compress(whole)[:-20], "cannot be unpacked at record"),
        (gzip.compress(whole[:-20]), "ends within record 9"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(BnstatError, match=message):
            read(path)


def test_packed_and_in_shards(tmp_path: Path) -> None:
    packed = write(tmp_path / "packed", SAMPLES, "GZIP")
    np.testing.assert_array_equal(all_of(read(packed)), X)
    (tmp_path / "shards").mkdir()
    for place, part in ((10, SAMPLES[6:]), (9, SAMPLES[:6])):
        write(tmp_path / f"shards/train-{place}-of-2", part)
    (tmp_path / "shards/notes.txt").write_text("no record")
    np.testing.assert_array_equal(all_of(read(tmp_path / "shards")), X)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_bytes_are_numbers_or_images(tmp_path: Path, dtype: str) -> None:
    images = np.random.default_rng(2).integers(0, 256, (5, 4, 6, 3)).astype(np.uint8)
    inputs = {"x": Input("x:0", dtype, (None, 4, 6, 3))}
    for encode in (
        lambda image: image.tobytes(),
        lambda image: image.astype(dtype).tobytes(),
        lambda image: tf.io.encode_png(image).numpy(),
    ):
        path = write(tmp_path / "d", [example(x=encode(image)) for image in images])
        array = all_of(read(path, inputs))
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, images)
    write(tmp_path / "d", [example(x=b"1234567")])
    wanted = rf"has 7 bytes, but the model takes \[4, 6, 3\] of {dtype}; decode it in a Python"
    with pytest.raises(BnstatError, match=wanted):
        read(tmp_path / "d", inputs)


def test_a_model_that_parses_examples_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "d", SAMPLES)
    serialized = {"examples": Input("e:0", "string", (None,))}
    assert [bytes(each) for each in all_of(read(path, serialized), "examples")] == SAMPLES
    named = {"x": Input("e:0", "string", (None,))}
    path = write(tmp_path / "d", [example(x=b"one"), example(x=b"two")])
    assert all_of(read(path, named)).tolist() == [b"one", b"two"]


IMAGES = np.random.default_rng(1).integers(0, 256, (3, 4, 6, 4)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images with alpha, and what file managers and notebooks leave beside them."""
    for number, image in enumerate(IMAGES):
        (tmp_path / f"{number}.png").write_bytes(tf.io.encode_png(image).numpy())
    (tmp_path / "._0.png").write_bytes(b"no image")
    (tmp_path / ".checkpoints").mkdir()
    (tmp_path / ".checkpoints/0.png").write_bytes(b"no image")
    return tmp_path


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((4, 6, 4), "float32", IMAGES),
        ((4, 6, 3), "float16", IMAGES[..., :3]),
        ((4, 6, 3), "uint8", IMAGES[..., :3]),
        ((3, 4, 6), "float32", IMAGES[..., :3].transpose(0, 3, 1, 2)),
        ((None, 4, 6), "float32", None),
        ((4, 6, 2), "float32", None),
        ((24,), "float32", None),
    ],
)
def test_as_the_model_takes_them(folder: Path, shape: Any, dtype: str, expected: Any) -> None:
    inputs = {"x": Input("x:0", dtype, (None, *shape))}
    if expected is None:
        with pytest.raises(BnstatError, match="images, but the model does not take images"):
            read(folder, inputs)
    else:
        array = all_of(read(folder, inputs))
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, expected)


def test_sizes_and_scales(folder: Path) -> None:
    inputs = {"x": Input("x:0", "uint8", (None, 2, 3, 3))}
    resized = tf.image.resize(IMAGES[..., :3].astype(np.float32), (2, 3)).numpy()
    np.testing.assert_array_equal(all_of(read(folder, inputs)), np.rint(resized))
    brighter = all_of(read(folder, inputs, images=Images(scale=2)))
    np.testing.assert_array_equal(brighter, np.rint(np.minimum(resized * 2, 255)))
    any_size = {"x": Input("x:0", "float32", (None, None, None, 3))}
    smaller = all_of(read(folder, any_size, images=Images(size=(2, 3), scale=1 / 50)))
    np.testing.assert_allclose(smaller, resized / 50, rtol=1e-6)
    with pytest.raises(BnstatError, match="pass --image-size"):
        read(folder, any_size)
    (folder / "below").mkdir()
    (folder / "below/bad.png").write_bytes(b"no image")
    with pytest.raises(BnstatError, match=r"bad\.png: is not an image"):
        read(folder, inputs)


def test_a_model_that_decodes_them_itself(folder: Path) -> None:
    inputs = {"x": Input("x:0", "string", (None,))}
    for number, data in enumerate(all_of(read(folder, inputs))):
        assert data == (folder / f"{number}.png").read_bytes()
