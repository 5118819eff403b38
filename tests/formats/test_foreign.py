"""Files that are often passed as a model, but are not one, have their own error message."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

import bnstat
from bnstat.errors import BnstatError, UnknownFormatError
from bnstat.formats.detection import refuse_foreign
from bnstat.formats.protobuf.wire import field
from bnstat.storage.local import LocalFile


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ones(3))
    return stream.getvalue()


def hdf5() -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file.create_group("data")
    return stream.getvalue()


IMAGE = field(1, b"image") + field(3, field(4, b"\x08\x20\x10\x20"))
CORE_ML = field(2, field(1, IMAGE) + field(10, field(1, b"probabilities")))

RANDOM = np.random.default_rng(0).bytes(4000)
NAMES = ["file", "file.h5", "file.keras", "file.pb", "file.index", "saved_model.pb"]

CASES = [
    ("empty", b""),
    ("a single NumPy array", npy()),
    ("compressed by bzip2", bz2.compress(b"model")),
    ("compressed by bzip2, xz", lzma.compress(b"model")),
    ("compressed by gzip, but not a tar archive", gzip.compress(b"model " * 100, mtime=0)),
    ("a web page", b"<!DOCTYPE html><html>"),
    ("a Core ML model", b"\x08\x06" + CORE_ML),
    ("a Core ML model", b"\x08\x01" + CORE_ML),
    ("an HDF5 file without arrays", hdf5()),
    ("the architecture of a Keras model", b'{"class_name": "Model", "config": {"layers": []}}'),
]


@pytest.mark.parametrize(("what", "content"), CASES)
@pytest.mark.parametrize("name", ["file", "model.h5", "model.bin"])
def test_files_with_their_own_message(tmp_path: Path, what: str, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnknownFormatError, match=re.escape(f"is {what}")) as caught:
        bnstat.load(tmp_path / name)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"\x80\x02}q\x00", b"#!/bin/sh\n", b"some text " * 40, b"\xfe" * 400, RANDOM],
    ids=["pickle", "script", "text", "binary", "random"],
)
@pytest.mark.parametrize("name", NAMES)
def test_other_files(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    message = "is not in a format that bnstat knows; bnstat reads" if name == "file" else "."
    with pytest.raises(BnstatError, match=message):
        bnstat.load(tmp_path / name)


def test_the_architecture_as_keras_writes_it(tmp_path: Path) -> None:
    net = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])
    for text in (net.to_json(), json.dumps(net.to_json()), net.to_json(indent=2)):
        (tmp_path / "m.json").write_text(text)
        with pytest.raises(UnknownFormatError, match="architecture") as caught:
            bnstat.load(tmp_path / "m.json")
        assert "--config" in caught.value.hint


def test_an_archive_of_a_model_is_not_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("model/saved_model.pb", b"x")
    refuse_foreign(LocalFile(str(tmp_path / "m.zip")))
