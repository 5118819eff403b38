"""Public Keras files and files of many versions, compared with verified values and h5py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.formats.keras.files import batch_norms, contents_of

WRITERS = {
    "ecg-keras3": ("keras-archive", "Keras 3.14.1"),
    "ecg-weights-h5": ("keras-weights", None),
    "eegnet-h5": ("keras-h5", "tf.keras 2.1.6-tf"),
    "facecls-tinyxception-h5": ("keras-h5", "Keras 2.0.5"),
    "mlperf-tiny-ad01-h5": ("keras-h5", "tf.keras 2.4.0"),
    "mlperf-tiny-resnet8-h5": ("keras-h5", "tf.keras 2.4.0"),
    "mlperf-tiny-streamww-h5": ("keras-h5", "tf.keras 2.14.0"),
    "mlperf-tiny-vww96-h5": ("keras-h5", "tf.keras 2.4.0"),
    "musictagger-cnn-tf-keras1-h5": ("keras-h5", None),
    "musictagger-crnn-theano-keras1-h5": ("keras-h5", None),
    "neg-kepler-keras3": ("keras-archive", "Keras 3.10.0"),
}


def target(folder: Path) -> Path:
    return folder / json.loads((folder / "truth.json").read_text())["target"]


@pytest.mark.parametrize("name", WRITERS)
def test_the_format_and_the_writer_of_a_real_file(real: Path, name: str) -> None:
    source = contents_of(target(real / name)).source
    assert (source.format, source.writer) == WRITERS[name]


# The names of layers in the networks behind `written`, in network order.
FUNCTIONAL = ["batch_normalization", "bn2", "bn3", "bn4", "inner/batch_normalization_1"]
WRAPPED = "time_distributed/batch_normalization_2"
SEVENTH = "sequential/batch_normalization_7"
SUBCLASSED = [f"blk/batch_normalization_{k}" for k in (3, 4, 5, 6)]
WRITTEN = {
    "k2.4.4/m.h5": ["bnA", "inner/batch_normalization", "batch_normalization_1"],
    "k212/m.keras": ["bnA", "inner/batch_normalization"],
    "k215/w.h5": [*FUNCTIONAL, "time_distributed"],
    "k215/sub.h5": [*SUBCLASSED, "blk/custom", SEVENTH],
    "k215/sub.keras": [
        *(f"blk/batch_normalization{end}" for end in ("", "_1", "_2", "_3")),
        *("blk/shared", "seq/batch_normalization"),
    ],
    "k3_2.21_keras3.15/sub.weights.h5": ["blk/custom", *SUBCLASSED, SEVENTH],
    "names_1.15.5/k/m.h5": ["batch_normalization"],
}
KERAS_3 = ("m.h5", "m.keras", "w.weights.h5", "shard.weights.json", "shard_00001.weights.h5")
for _name in ("k215/m.h5", "k215/m.keras", *(f"k3_2.21_keras3.15/{name}" for name in KERAS_3)):
    WRITTEN[_name] = [*FUNCTIONAL, WRAPPED]


@pytest.mark.parametrize("name", WRITTEN)
def test_a_written_file_shows_its_layers_in_order(written: Path, name: str) -> None:
    contents = contents_of(written / name)
    found = batch_norms(contents)
    assert list(found) == WRITTEN[name]
    for layer in found.values():
        if layer.evidence == "config":
            assert (layer.epsilon, layer.momentum) == (0.001, 0.99)
        assert "moving_mean" in layer.roles
        assert "moving_variance" in layer.roles
