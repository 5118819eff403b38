"""Models and layers that are refused, or left unchanged, with the reason."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from bnstat import drift, recalibrate
from bnstat.errors import BnstatError
from tests.builders.digits import DATA, TEST
from tests.builders.modules import Net, Norm, normalizing
from tests.fuzz import ports

X = np.random.default_rng(0).normal(3, 2, (50, 3)).astype(np.float32)


def test_files_are_read_only_if_trusted(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("12345")

    def read(x: tf.Tensor) -> tf.Tensor:
        text = tf.io.read_file(str(tmp_path / "secret"))
        return x + tf.cast(tf.strings.length(text), tf.float32)

    reading = normalizing(tmp_path / "reading", read)
    with pytest.raises(BnstatError, match=r"would execute ReadFile, .*--trust"):
        drift(reading, X)
    result = recalibrate(reading, X, trust=True)
    np.testing.assert_allclose(result.layers[0].mean, X.mean(0) + 5, rtol=1e-5)


def test_a_condition_on_the_data_is_followed(tmp_path: Path) -> None:
    net = Net(lambda net, x: tf.cond(tf.reduce_mean(x) > 0, lambda: net.bn(x * 2), lambda: x), "bn")
    path = net.save(tmp_path / "model")
    data = np.concatenate([X[:25] + 10, X[25:] - 100])
    result = recalibrate(path, data, batch_size=25)
    np.testing.assert_allclose(result.layers[0].mean, data[:25].mean(0) * 2, rtol=1e-5)
    with pytest.raises(BnstatError, match="the data never reaches it"):
        recalibrate(path, X - 100)


def test_layers_that_cannot_be_measured_are_named_and_left() -> None:
    layers = keras.layers
    unused = layers.BatchNormalization(name="unused")
    constant = layers.BatchNormalization(name="constant")

    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.norm = layers.BatchNormalization(name="norm")
            self.trained = layers.BatchNormalization(name="trained")
            self.unused, self.constant = unused, constant

        def call(self, x: Any) -> Any:
            constant = self.constant(tf.ones([1, 3]))
            return self.trained(self.norm(x), training=True) + constant

    net = Net()
    net(X)
    unused.build(X.shape)
    trained = np.asarray(net.trained.moving_mean)
    result = recalibrate(net, {"x": X})
    assert [each.layer for each in result.layers] == ["norm"]
    assert "training=True" in result.left["trained"]
    assert "the data never reaches it" in result.left["constant"]
    assert "nothing between the inputs and the outputs" in result.left["unused"]
    np.testing.assert_array_equal(np.asarray(net.trained.moving_mean), trained)


def test_values_without_a_network_cannot_be_run(tmp_path: Path) -> None:
    tf.train.Checkpoint(net=Norm()).write(str(tmp_path / "model"))
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
    model.save_weights(tmp_path / "m.weights.h5")
    (tmp_path / "m.pth").write_bytes(ports.pytorch_files()["state.pt"])
    for name, message in (
        ("model", r"a checkpoint without a graph.*bnstat.recalibrate\(model, data\)"),
        ("m.weights.h5", "only weights"),
        ("m.pth", r"PyTorch: run .*\.update_bn\(loader, model\)"),
    ):
        with pytest.raises(BnstatError, match=message):
            recalibrate(tmp_path / name, X)


def test_custom_classes_are_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_layers_of_test.py").write_text(
        "import keras\n"
        "@keras.saving.register_keras_serializable('mine')\n"
        "class Twice(keras.layers.Layer):\n"
        "    def call(self, x):\n"
        "        return 2 * x\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    from my_layers_of_test import Twice  # type: ignore[import-not-found]

    keras.Sequential([keras.Input((3,)), Twice(), keras.layers.BatchNormalization()]).save(
        "m.keras"
    )
    keras.saving.get_custom_objects().clear()
    with pytest.raises(BnstatError, match=r"Keras cannot build it.*--import MODULE"):
        recalibrate("m.keras", X)
    del sys.modules["my_layers_of_test"]
    result = recalibrate("m.keras", X, imports=["my_layers_of_test"])
    np.testing.assert_allclose(result.layers[0].mean, 2 * X.mean(0), rtol=1e-5)
    with pytest.raises(BnstatError, match="no_such_module: cannot be imported"):
        recalibrate("m.keras", X, imports=["no_such_module"])


def test_what_keras_cannot_load_again_has_another_way(tmp_path, monkeypatch) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
    model.save(tmp_path / "m.keras")

    def fails(*_: object, **__: object) -> None:
        raise TypeError("No cast function available.")

    monkeypatch.setattr(keras.models, "load_model", fails)
    with pytest.raises(BnstatError, match=r"available\.; save the model with model\.export"):
        recalibrate(tmp_path / "m.keras", X)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inputs": ["pictures"]}, "has no input 'pictures'; there are: images"),
        ({"outputs": ["probabilities"]}, "has no output 'probabilities'; there are: logits"),
        ({"layers": ["nothing"]}, "no batch-norm layer matches 'nothing'"),
        ({"labels": "labels"}, "label 10 is not one of its 10 classes"),
        ({"model": 7}, "neither a path nor a model"),
    ],
)
def test_wrong_names_and_things(settings: Any, message: str) -> None:
    data = {"images": np.zeros((4, 8, 8, 1)), "labels": np.arange(7, 11)}
    with pytest.raises(BnstatError, match=message):
        drift(**{"model": DATA / "digits_no_updates/saved_model", "data": data, **settings})


def test_what_the_training_graph_does_not_read_is_left() -> None:
    with pytest.raises(BnstatError, match="training=True is built in"):
        recalibrate(DATA / "digits_no_updates/run", TEST)
