"""Estimated statistics compared with NumPy and with a training step of Keras."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import keras as keras_3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import bnstat
from bnstat import drift, recalibrate
from tests.builders.modules import Norm

KERAS = pytest.mark.parametrize("keras", [keras_3, tf_keras], ids=["keras", "tf_keras"])
RANDOM = np.random.default_rng(3)


def norms(keras: ModuleType, model: Any) -> list[Any]:
    return [each for each in model.layers if isinstance(each, keras.layers.BatchNormalization)]


def statistics(norm: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(norm.moving_mean), np.asarray(norm.moving_variance)


def assert_close(norm: Any, mean: Any, variance: Any, rtol: float = 1e-5) -> None:
    np.testing.assert_allclose(norm.moving_mean, mean, rtol=rtol, atol=min(rtol, 1e-5))
    np.testing.assert_allclose(norm.moving_variance, variance, rtol=rtol)


def single(keras: ModuleType, size: int, *before: Any) -> tuple[Any, Any]:
    """Return a model of one normalization, after other layers, and the normalization."""
    norm = keras.layers.BatchNormalization(name="bn")
    return keras.Sequential([keras.Input((size,)), *before, norm]), norm


def dense_network(keras: ModuleType) -> Any:
    layers = keras.layers
    keras.utils.set_random_seed(4)
    sizes = [keras.Input((5,), name="x")]
    for size in (7, 6, 4):
        sizes += [layers.Dense(size), layers.BatchNormalization(), layers.ReLU()]
        sizes += [layers.Dropout(0.5)]
    return keras.Sequential(sizes)


@KERAS
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "one pass"])
def test_a_second_time_changes_nothing(keras: ModuleType, exact: bool) -> None:
    model = dense_network(keras)
    x = RANDOM.normal(1, 2, (200, 5)).astype(np.float32)
    recalibrate(model, {"x": x}, exact=exact)
    again = recalibrate(model, {"x": x}, exact=exact)
    assert max(each.moved for each in again.layers) < 1e-5
    assert not exact or drift(model, {"x": x}).largest < 1e-9


@KERAS
def test_one_batch_is_a_training_step_with_momentum_0(keras: ModuleType) -> None:
    layers, keep = keras.layers, {"momentum": 0.0}
    keras.utils.set_random_seed(5)
    norm = layers.BatchNormalization
    before = [keras.Input((6, 6, 3)), layers.Conv2D(4, 3), norm(**keep), layers.Conv2D(5, 3)]
    after = [norm(**keep, scale=False), layers.Flatten(), norm(**keep, center=False)]
    model = keras.Sequential([*before, *after])
    x = RANDOM.normal(2, 3, (40, 6, 6, 3)).astype(np.float32)
    model(x, training=True)
    trained = [statistics(each) for each in norms(keras, model)]
    recalibrate(model, x, batch_size=40)
    for each, expected in zip(norms(keras, model), trained, strict=True):
        assert_close(each, *expected, rtol=1e-4)


@KERAS
def test_a_layer_that_feeds_itself_settles(keras: ModuleType) -> None:
    shared = keras.layers.BatchNormalization(name="shared")
    inputs = keras.Input((3,), name="x")
    model = keras.Model(inputs, shared(keras.layers.Dense(3)(shared(inputs))))
    x = RANDOM.normal(5, 2, (200, 3)).astype(np.float32)
    result = recalibrate(model, x, exact=True)
    assert result.waves == 1
    assert result.layers[0].remains < 1e-3


@KERAS
@pytest.mark.parametrize(("samples", "size", "batches"), [(65, 64, 2), (30, 10, 3), (15, 10, 2)])
def test_every_sample_weighs_the_same(
    keras: ModuleType, samples: int, size: int, batches: int
) -> None:
    """In torch's swa_utils.update_bn a small last batch weighs as much as a full one.

    AIMET's bn_reestimation divides by the number of batches that was asked for.
    """
    model, norm = single(keras, 2)
    x = RANDOM.normal(7, 1, (samples + 2, 2)).astype(np.float32)
    x[samples - 1] = 65
    result = recalibrate(model, x, samples=samples, batch_size=size)
    assert (result.samples, result.batches) == (samples, batches)
    assert_close(norm, x[:samples].mean(0), x[:samples].var(0))


@pytest.mark.slow
@KERAS
@pytest.mark.parametrize("form", ["live", ".keras"])
def test_what_keras_masks_does_not_count(keras: ModuleType, form: str, tmp_path: Path) -> None:
    layers = keras.layers
    keras.utils.set_random_seed(6)
    inputs = keras.Input((7, 4), name="x")
    value = layers.BatchNormalization(momentum=0.0)(layers.Masking()(inputs))
    value = layers.BatchNormalization(momentum=0.0)(layers.LSTM(3, return_sequences=True)(value))
    model = keras.Model(inputs, value)
    x = RANDOM.normal(3, 2, (60, 7, 4)).astype(np.float32)
    x[::2, 4:] = x[::3, 1:] = 0
    path = tmp_path / "model.keras"
    model.save(path)
    model(x, training=True)
    found = recalibrate(keras.models.load_model(path) if form == "live" else path, x)
    assert found.layers[0].mean.min() > 2.5 > x.mean((0, 1)).max()
    for mended, trained in zip(found.layers, norms(keras, model), strict=True):
        mean, variance = statistics(trained)
        np.testing.assert_allclose(mended.mean, mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(mended.variance, variance, rtol=1e-4)


@KERAS
@pytest.mark.parametrize("invert", [False, True])
def test_lookup_tables_hold_what_they_held(keras: ModuleType, invert: bool, tmp_path: Path) -> None:
    layers = keras.layers
    words, numbers = keras.Input((), dtype="string", name="w"), keras.Input((2,), name="n")
    lookup = layers.StringLookup(vocabulary=["a", "b", "c"])
    encoded = layers.CategoryEncoding(4, output_mode="one_hot")
    ids = lookup(words)
    if invert:  # there and back
        ids = lookup(layers.StringLookup(vocabulary=["a", "b", "c"], invert=True)(ids))
    value = layers.Concatenate()([encoded(ids), numbers])
    keras.Model([words, numbers], layers.BatchNormalization()(value)).save(tmp_path / "m.keras")
    x = {"w": np.array(["a", "c", "c", "other"] * 10), "n": np.ones((40, 2), np.float32)}
    (found,) = recalibrate(tmp_path / "m.keras", x).layers
    np.testing.assert_allclose(found.mean, [0.25, 0.25, 0, 0.5, 1, 1], atol=1e-6)


@KERAS
def test_dropout_stays_off(keras: ModuleType) -> None:
    """AIMET's bn_reestimation runs it in training mode."""
    model, norm = single(keras, 4, keras.layers.Dropout(0.9), keras.layers.GaussianNoise(0.9))
    x = RANDOM.normal(2, 1, (50, 4)).astype(np.float32)
    recalibrate(model, x)
    assert_close(norm, x.mean(0), x.var(0))


def variants(keras: ModuleType) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Name -> a layer, and the shape of a sample."""
    norm = partial(keras.layers.BatchNormalization, momentum=0.0)
    return {
        "dense": (norm(), (5,)),
        "sequence": (norm(), (7, 5)),
        "image": (norm(), (6, 4, 3)),
        "volume": (norm(), (3, 4, 5, 2)),
        "rows": (norm(axis=1), (6, 4, 3)),
        "columns": (norm(axis=2), (6, 4, 3)),
        "bare": (norm(scale=False, center=False), (6, 4, 3)),
        "one_channel": (norm(), (6, 4, 1)),
        "float64": (norm(dtype="float64"), (6, 4, 3)),
        "half": (norm(dtype="mixed_float16"), (6, 4, 3)),
    }


@KERAS
@pytest.mark.parametrize("name", variants(keras_3))
def test_every_kind_of_layer_as_keras_trains_it(keras: ModuleType, name: str) -> None:
    """Without scale and center AIMET's bn_reestimation breaks."""
    layer, shape = variants(keras)[name]
    dtype = {"float64": "float64", "half": "float16"}.get(name, "float32")
    model = keras.Sequential([keras.Input(shape, dtype=dtype), layer])
    x = RANDOM.normal(4, 2, (20, *shape)).astype(dtype)
    model(x, training=True)
    expected = statistics(layer)
    layer.moving_mean.assign(np.zeros_like(expected[0]))
    layer.moving_variance.assign(np.ones_like(expected[1]))
    result = recalibrate(model, x, exact=True, batch_size=8)
    assert not result.left
    assert_close(layer, *expected, rtol=1e-12 if name == "float64" else 1e-5)


def test_nested_models() -> None:
    """NNCF's batchnorm_adaptation sees top-level layers only."""
    layers = keras_3.layers
    inner, _ = single(keras_3, 4, layers.Dense(3))
    inner.name = "inner"
    model = keras_3.Sequential([keras_3.Input((4,)), layers.BatchNormalization(name="bn"), inner])
    x = RANDOM.normal(1, 3, (60, 4)).astype(np.float32)
    result = recalibrate(model, x)
    assert [each.layer for each in result.layers] == ["bn", "inner/bn"]
    live = bnstat.load(model)
    assert live.keys() == ["bn", "inner/bn"]
    assert live["inner/bn"].epsilon == pytest.approx(0.001)
    assert live["bn"].axis == -1
    np.testing.assert_allclose(live["bn"].moving_mean, x.mean(0), rtol=1e-5, atol=1e-6)


class Module(tf.Module):
    """A network in plain TensorFlow that does not record its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = Norm()

    def __call__(self, x: tf.Tensor, is_training: bool = True) -> tf.Tensor:
        return self.norm(tf.nn.dropout(x, 0.5) if is_training else x)


def test_a_module_of_plain_tensorflow(tmp_path: Path) -> None:
    module = Module()
    x = RANDOM.normal(1, 3, (60, 3)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(60) % 3)
    result = drift(module, tmp_path / "d.npz", labels="y")  # the labels are not an input
    np.testing.assert_allclose(result.layers[0].mean, x.mean(0), rtol=1e-5, atol=1e-6)
    assert result.accuracy is not None
    recalibrate(module, x)
    assert_close(module.norm, x.mean(0), x.var(0))
