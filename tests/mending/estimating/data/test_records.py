"""TFRecords: their features as arrays, and damaged files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bnstat.errors import BnstatError
from bnstat.estimate.data.batches import Input
from tests.mending.estimating.data.test_data import ONE, X, all_of, read


def example(**features: Any) -> bytes:
    made = {}
    for name, value in features.items():
        if isinstance(value, bytes):
            made[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        elif isinstance(value, int):
            made[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        else:
            floats = tf.train.FloatList(value=np.ravel(value))
            made[name] = tf.train.Feature(float_list=floats)
    return tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString()


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
    flipped = bytearray(whole)
    flipped[30] ^= 255
    for damaged in (whole[:-5], bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(BnstatError) as error:
            read(path)
        assert "\n" not in str(error.value)


def test_packed_and_in_shards(tmp_path: Path) -> None:
    packed = write(tmp_path / "packed", SAMPLES, "GZIP")
    np.testing.assert_array_equal(all_of(read(packed)), X)
    whole = packed.read_bytes()
    packed.write_bytes(whole[:-20])
    with pytest.raises(BnstatError, match="cannot be unpacked at record"):
        read(packed)
    packed.write_bytes(gzip.compress(gzip.decompress(whole)[:-20]))
    with pytest.raises(BnstatError, match="ends within record 9"):
        read(packed)
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
