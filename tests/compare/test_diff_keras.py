"""Models that Keras trained and saved, compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bnstat
from bnstat.compare.diff import diff

keras = pytest.importorskip("keras")


def network() -> keras.Model:
    keras.utils.set_random_seed(7)
    dense = keras.layers.Dense(5, activation="tanh")
    norms = [keras.layers.BatchNormalization(name=name) for name in ("one", "two", "three", "last")]
    model = keras.Sequential([keras.Input((6,)), dense, *norms, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    random = np.random.default_rng(3)
    model.fit(random.normal(2, 3, (64, 6)), random.normal(size=64), epochs=3, verbose=0)
    return model


@pytest.mark.parametrize("container", ["model.keras", "model.weights.h5", "export", "checkpoint"])
def test_one_network_in_two_containers_is_equal_by_name(container: str, tmp_path: Path) -> None:
    import tensorflow as tf

    model = network()
    model.save(tmp_path / "model.h5")
    path = tmp_path / container
    if container == "export":
        model.export(path, verbose=False)
    elif container == "checkpoint":
        tf.train.Checkpoint(model=model).write(str(path))
    elif container.endswith(".weights.h5"):
        model.save_weights(path)
    else:
        model.save(path)
    difference = diff(bnstat.load(tmp_path / "model.h5"), bnstat.load(path))
    assert difference.equal
    assert len(difference.layers) == 4
    # An exported Sequential puts its own name before the names of its layers.
    assert {layer.match for layer in difference.layers} <= {"name", "suffix"}
