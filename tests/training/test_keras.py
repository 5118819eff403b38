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

LIBRARIES = {"keras": keras, "tf_keras": tf_keras}


@pytest.fixture(params=LIBRARIES)
def library(request):
    return LIBRARIES[request.param]


def network(library, **settings):
    layers = library.layers
    model = library.Sequential(
        [
            layers.Input((4,)),
            layers.Dense(8, name="dense"),
            layers.BatchNormalization(name="bn", momentum=settings.pop("momentum", 0.5)),
            layers.Dense(1, name="out"),
        ]
    )
    model.compile("sgd", "mse", **settings)
    return model


def train(model, watch, bad=False, **options):
    random = np.random.default_rng(0)
    x = random.normal(size=(64, 4)).astype("float32")
    if bad:
        x[0, 0] = np.nan
    return model.fit(
        x, x[:, :1], batch_size=16, **{"epochs": 4, "verbose": 0, "callbacks": [watch], **options}
    )


def test_the_history_has_the_values_of_the_layer(library, capsys):
    model = network(library)
    watch = Watch()
    train(model, watch)
    names = [checkpoint.name for checkpoint in watch.history.checkpoints]
    assert names == ["epoch 1", "epoch 2", "epoch 3", "epoch 4"]
    assert [checkpoint.step for checkpoint in watch.history.checkpoints] == [4, 8, 12, 16]
    stored = model.get_layer("bn").moving_mean.numpy().astype(np.float64)
    (track,) = [track for (_, role), track in watch.history.tracks.items() if role == "moving_mean"]
    assert track.mean[-1] == pytest.approx(stored.mean(), rel=1e-12)
    assert len(set(track.mean)) == 4
    assert capsys.readouterr().err == ""
    assert watch.stopped_by is None


def test_every_second_epoch(library):
    watch = Watch(every=2)
    train(network(library), watch)
    assert [checkpoint.name for checkpoint in watch.history.checkpoints] == ["epoch 2", "epoch 4"]


def test_an_error_stops_the_training(library, capsys):
    watch = Watch(fail_on="error")
    history = train(network(library), watch, bad=True)
    assert len(history.epoch) == 1
    assert watch.stopped_by in watch.findings
    assert watch.stopped_by.severity == "error"
    err = capsys.readouterr().err
    assert "bnstat: epoch 1: error BN004 not-finite: bn: " in err
    assert "bnstat: training stops after epoch 1 because of fail_on='error': error BN004 " in err


def test_without_fail_on_the_training_continues(library, capsys):
    history = train(network(library), Watch(), bad=True)
    assert len(history.epoch) == 4
    assert capsys.readouterr().err.count("not-finite") == 1


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


def test_reports_appear_below_the_progress_bar(library, capfd):
    train(network(library), Watch(), bad=True, epochs=1, verbose=1)
    assert "\nbnstat: epoch 1: error" in capfd.readouterr().err


def test_several_trainings(library, tmp_path):
    model, watch = network(library), Watch(history=tmp_path / "bn.csv")
    for _ in range(2):
        train(model, watch, epochs=1)
    assert len(watch.history.checkpoints) == 2
    assert (tmp_path / "bn.csv").read_text().count("moving_mean") == 2


def test_a_resumed_training(library):
    model, watch = network(library), Watch()
    train(model, watch, epochs=2)
    train(model, watch, epochs=3, initial_epoch=2)
    names = [(point.name, point.step) for point in watch.history.checkpoints]
    assert names == [("epoch 1", 4), ("epoch 2", 8), ("epoch 3", 12)]


def test_another_model_starts_a_new_history(library, capsys):
    watch = Watch(fail_on="error")
    train(network(library), watch, bad=True)
    train(network(library), watch, epochs=2)
    assert watch.stopped_by is None
    assert [checkpoint.step for checkpoint in watch.history.checkpoints] == [4, 8]
    assert "over" not in capsys.readouterr().err


def test_a_second_training_is_stopped_too(library):
    model, watch = network(library), Watch(fail_on="error")
    for _ in range(2):
        assert len(train(model, watch, bad=True).epoch) == 1
        assert watch.stopped_by is not None


def test_under_a_strategy(library):
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = network(library)
    watch = Watch(fail_on="error")
    train(model, watch)
    (track,) = [track for (_, role), track in watch.history.tracks.items() if role == "moving_mean"]
    stored = np.asarray(model.get_layer("bn").get_weights()[2], np.float64)
    assert track.mean[-1] == pytest.approx(stored.mean(), rel=1e-12)
    assert len(set(track.mean)) == 4
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
