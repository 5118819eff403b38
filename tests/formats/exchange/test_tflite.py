"""TensorFlow Lite files, as TensorFlow writes them."""

from __future__ import annotations

from pathlib import Path

import keras
import pytest
import tensorflow as tf
from click.testing import CliRunner

import bnstat
from bnstat.cli import main


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layers = [keras.Input((4, 4, 2)), keras.layers.Conv2D(3, 1), keras.layers.BatchNormalization()]
    path = tmp_path_factory.mktemp("lite") / "m.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(keras.Sequential(layers)).convert())
    return path


def test_it_says_where_batch_norm_went(lite: Path) -> None:
    model = bnstat.load(lite)
    assert (model.source.format, list(model)) == ("tflite", [])
    (note,) = model.notes
    assert "folds batch norm" in note
    result = CliRunner().invoke(main, ["inspect", str(lite)])
    assert result.exit_code == 1
    assert note in result.stderr
