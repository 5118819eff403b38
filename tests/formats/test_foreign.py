"""Files that are in none of the formats that bnstat reads are named for what they are."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import re
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import bnstat
from bnstat.errors import BnstatError, UnknownFormatError
from bnstat.formats.foreign import foreign_format
from bnstat.storage.local import LocalFile
from tests.builders.tables import varint


def zipped(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ones(3))
    return stream.getvalue()


def field(number: int, content: bytes) -> bytes:
    """A field of a protocol buffer that is a message or a text."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def named(number: int, text: str) -> bytes:
    return field(number, text.encode())


LAYER = named(1, "conv1") + named(2, "Convolution") + field(7, b"\x2a\x04" + bytes(4))
OLD_LAYER = named(2, "data") + named(3, "conv1") + named(4, "conv1") + b"\x28\x04" + bytes(9)
TENSOR = b"\x08\x80\x04\x08\x03" + named(2, "Float32") + field(3, bytes(6144))
IMAGE = named(1, "image") + field(3, field(4, b"\x08\x20\x10\x20"))
CORE_ML = field(2, field(1, IMAGE) + field(10, named(1, "probabilities")))

MANIFEST = [{"paths": ["group1-shard1of1"], "weights": [{"name": "bn/gamma", "shape": [3]}]}]

CASES = {
    "the manifest of a TensorFlow.js model's weights": json.dumps(MANIFEST).encode(),
    "the manifest of a TensorFlow.js model's weights;": json.dumps(
        [dict(reversed(MANIFEST[0].items()))], indent=2
    ).encode(),
    "a Caffe model": named(1, "LeNet") + field(100, LAYER) * 3,
    "a Caffe model;": field(100, LAYER),
    "a Caffe model; ": named(1, "CaffeNet") + field(2, OLD_LAYER) * 3,
    "a model of Core ML": b"\x08\x06" + CORE_ML,
    "a model of Core ML;": b"\x08\x01" + CORE_ML,
    "a checkpoint of MindSpore": field(1, named(1, "bn1.moving_mean") + field(2, TENSOR)),
    "a .params file of MXNet": (0x112).to_bytes(8, "little") + bytes(8) + b"\2" + bytes(64),
    "an ncnn network": b"7767517\n75 83\nInput            data\n",
    "a .weights file of Darknet": b"\0\0\0\0\2\0\0\0\5\0\0\0" + bytes(64),
    "a Torch7 file": b"\4\0\0\0\1\0\0\0\3\0\0\0V 1\x11\0\0\0nn.Sequential",
    "an .nnp of NNabla": zipped(**{"nnp_version.txt": b"0.1\n", "parameter.protobuf": b""}),
    "a model of Deeplearning4j": zipped(**{"configuration.json": b"{}", "coefficients.bin": b""}),
    "a Python pickle": pickle.dumps({"gamma": [1.0]}),
    "a GGUF model": b"GGUF\x03\0\0\0",
    "a single NumPy array": npy(),
    "a .keras without weights": zipped(**{"config.json": b"{}", "metadata.json": b"{}"}),
    "an office document": zipped(**{"[Content_Types].xml": b"<x/>"}),
    "a Java archive": zipped(**{"META-INF/MANIFEST.MF": b"Manifest"}),
    "an archive of nothing": zipped(),
    "compressed by gzip, and no tar": gzip.compress(b"model " * 100),
    "compressed by bzip2": bz2.compress(b"model"),
    "compressed by xz": lzma.compress(b"model"),
    "the architecture of a Keras model alone": b'{"class_name": "Model", "config": {"layers": []}}',
    "a Jupyter notebook": b'{"cells": [], "nbformat": 4}',
    "JSON, and no model": b'{"epochs": 3}',
    "the architecture of a Keras model as YAML": b"class_name: Model\nconfig:\n  layers: []\n",
    "a web page": b"<!DOCTYPE html><html>",
    "Python source": b'"""A net."""\n\nimport tensorflow as tf\n',
    "a script": b"#!/bin/sh\n",
    "text, and no model": b"epoch 1 loss 0.5\n",
    "a MATLAB": b"MATLAB 5.0 MAT-file, Platform: GLNXA64",
    "a PNG image": b"\x89PNG\r\n\x1a\n",
    "a JPEG image": b"\xff\xd8\xff\xe0\0\x10JFIF",
    "a MessagePack document": b"\x82\xa6params\x81\xa2bn\x81\xa5scale\xc7\x08\x02",
    "empty": b"",
}


@pytest.mark.parametrize("what", CASES)
@pytest.mark.parametrize("name", ["file", "model.h5", "model.bin"])
def test_what_a_file_is(tmp_path: Path, what: str, name: str) -> None:
    (tmp_path / name).write_bytes(CASES[what])
    with pytest.raises(UnknownFormatError, match=re.escape(f"is {what.rstrip()}")) as caught:
        bnstat.load(tmp_path / name)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_what_only_its_name_tells(tmp_path: Path) -> None:
    (tmp_path / "net.mnn").write_bytes(b"\x18\0\0\0\x14\0\x18\0" + bytes(range(256)))
    with pytest.raises(UnknownFormatError, match="is an MNN model, by its name"):
        bnstat.load(tmp_path / "net.mnn")


def test_what_tensorflow_writes_beside_models(tmp_path: Path) -> None:
    with tf.io.TFRecordWriter(str(tmp_path / "data.tfrecord")) as writer:
        writer.write(b"an example")
    with tf.summary.create_file_writer(str(tmp_path / "logs")).as_default():
        tf.summary.write("loss", 0.5, step=1)
    (events,) = (tmp_path / "logs").iterdir()
    for path, what in (
        (tmp_path / "data.tfrecord", "a TFRecord file"),
        (events, "a TensorBoard event file"),
    ):
        with pytest.raises(UnknownFormatError, match=f"is {what}"):
            bnstat.load(path)


def test_the_architecture_that_a_model_gives(tmp_path: Path) -> None:
    net = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])
    for text in (net.to_json(), json.dumps(net.to_json()), net.to_json(indent=2)):
        (tmp_path / "m.json").write_text(text)
        with pytest.raises(UnknownFormatError, match="architecture") as caught:
            bnstat.load(tmp_path / "m.json")
        assert "--config" in caught.value.hint


def test_an_archive_of_a_model_is_not_foreign(tmp_path: Path) -> None:
    (tmp_path / "m.zip").write_bytes(zipped(**{"model/saved_model.pb": b"x"}))
    assert foreign_format(LocalFile(str(tmp_path / "m.zip"))) is None


@pytest.mark.parametrize("what", CASES)
def test_a_damaged_one_is_still_one_line(tmp_path: Path, what: str) -> None:
    random = np.random.default_rng(1)
    whole = CASES[what]
    for _ in range(12 if whole else 0):
        changed = bytearray(whole[: int(random.integers(1, len(whole) + 1))])
        changed[int(random.integers(len(changed)))] ^= 1 << int(random.integers(8))
        (tmp_path / "m").write_bytes(changed)
        with pytest.raises(BnstatError) as caught:
            bnstat.load(tmp_path / "m")
        assert "\n" not in str(caught.value)
