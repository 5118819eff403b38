"""The callback with Keras and tf-keras."""

from __future__ import annotations

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from bnstat.keras import Watch
from tests.terminal import ROOT


@pytest.fixture(params=[keras, tf_keras], ids=lambda library: library.__name__)
def library(request):
    return request.param


def network(library, momentum=0.5):
    norm = library.layers.BatchNormalization(name="bn", momentum=momentum)
    dense = library.layers.Dense
    model = library.Sequential([library.Input((4,)), dense(8), norm, dense(1)])
    model.compile("sgd", "mse")
    return model


def train(model, watch, bad=False, **options):
    random = np.random.default_rng(0)
    x = random.normal(size=(64, 4)).astype("float32")
    if bad:
        x[0, 0] = np.nan
    options = {"epochs": 4, "verbose": 0, **options}
    return model.fit(x, x[:, :1], batch_size=16, callbacks=[watch], **options)


def assert_tracked(model, watch):
    """Check that the history has a value per epoch, and the model's values at its end."""
    stored = np.asarray(model.get_layer("bn").get_weights()[2], np.float64)
    means = watch.history.tracks["bn", "moving_mean"].mean
    assert means[-1] == pytest.approx(stored.mean(), rel=1e-12)
    assert len(set(means)) == 4


def test_the_history_has_the_values_of_the_layer(library, capsys):
    model = network(library)
    watch = Watch()
    train(model, watch)
    names = [checkpoint.name for checkpoint in watch.history.checkpoints]
    assert names == ["epoch 1", "epoch 2", "epoch 3", "epoch 4"]
    assert [checkpoint.step for checkpoint in watch.history.checkpoints] == [4, 8, 12, 16]
    assert_tracked(model, watch)
    assert capsys.readouterr().err == ""
    assert watch.stopped_by is None


def test_every_second_epoch(library):
    watch = Watch(every=2)
    train(network(library), watch)
    assert [checkpoint.name for checkpoint in watch.history.checkpoints] == ["epoch 2", "epoch 4"]


def test_an_error_stops_each_training(library, capsys):
    model, watch = network(library), Watch(fail_on="error")
    for _ in range(2):
        history = train(model, watch, bad=True)
        assert len(history.epoch) == 1
        assert watch.stopped_by in watch.findings
        assert watch.stopped_by.severity == "error"
    err = capsys.readouterr().err
    assert "bnstat: epoch 1: error BN004 not-finite: bn: " in err
    assert "bnstat: training stops after epoch 1 because of fail_on='error': error BN004 " in err


def test_without_fail_on_the_training_continues(library, capfd):
    history = train(network(library), Watch(), bad=True, verbose=1)
    assert len(history.epoch) == 4
    err = capfd.readouterr().err
    assert err.count("not-finite") == 1
    assert "\nbnstat: epoch 1: error" in err, "not at the end of the progress bar"


def test_missing_updates_are_reported(library, capsys):
    watch = Watch(fail_on="warning")
    train(network(library, momentum=1.0), watch)
    assert watch.stopped_by.name == "never-updated"


def test_a_new_network_is_healthy(library, capsys):
    watch = Watch(fail_on="warning")
    history = train(network(library, momentum=0.99), watch)
    assert len(history.epoch) == 4
    assert watch.stopped_by is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bnstat: at the end: warning BN003 hardly-warmed-up: bn: 85% of")


def test_a_resumed_training(library, tmp_path):
    model, watch = network(library), Watch(history=tmp_path / "bn.csv")
    train(model, watch, epochs=2)
    train(model, watch, epochs=3, initial_epoch=2)
    names = [(point.name, point.step) for point in watch.history.checkpoints]
    assert names == [("epoch 1", 4), ("epoch 2", 8), ("epoch 3", 12)]
    assert (tmp_path / "bn.csv").read_text().count("moving_mean") == 3


def test_another_model_starts_a_new_history(library, capsys):
    watch = Watch(fail_on="error")
    train(network(library), watch, bad=True)
    train(network(library), watch, epochs=2)
    assert watch.stopped_by is None
    assert [checkpoint.step for checkpoint in watch.history.checkpoints] == [4, 8]
    assert "over" not in capsys.readouterr().err


def test_under_a_strategy(library):
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = network(library)
    watch = Watch(fail_on="error")
    train(model, watch)
    assert_tracked(model, watch)
    assert watch.stopped_by is None


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_on_another_backend(backend):
    pytest.importorskip(backend)
    script = """
import keras, numpy as np
from keras import layers
from bnstat.keras import Watch

model = keras.Sequential([layers.Input((4,)), layers.Dense(8), layers.BatchNormalization()])
model.compile("sgd", "mse")
watch = Watch(fail_on="error")
x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
model.fit(x, np.ones((64, 8)), epochs=3, verbose=0, callbacks=[watch])
means = [track.mean for key, track in watch.history.tracks.items() if key[1] == "moving_mean"]
print(keras.backend.backend(), means[0].size, len(set(means[0])), watch.stopped_by)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend},
        check=False,
    )
    assert done.stdout == f"{backend} 3 3 None\n", done.stderr
