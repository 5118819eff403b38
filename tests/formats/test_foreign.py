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


CASES = {
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
    with pytest.raises(UnknownFormatError, match=re.escape(f"is {what}")) as caught:
        bnstat.load(tmp_path / name)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


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
