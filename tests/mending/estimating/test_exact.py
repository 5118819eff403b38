"""Estimated statistics compared with NumPy, with a training step of Keras, and between formats."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from functools import partial
from importlib import import_module
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
from bnstat.estimate import recalibration
from bnstat.estimate.data import Settings
from bnstat.estimate.passes import ActivationCache, Halves, Moments, Runner, in_deviations
from bnstat.estimate.preparation import set_up
from tests.builders.digits import TRAIN, keras_network, save_graph_mode, save_keras
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
    assert recalibrate(model, x, exact=True).layers[0].moved < 1e-3


@KERAS
@pytest.mark.parametrize(("samples", "size", "batches"), [(65, 64, 2), (30, 10, 3), (15, 10, 2)])
def test_every_sample_weighs_the_same(keras, samples, size, batches) -> None:
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


X = (np.random.default_rng(8).normal(1, 2, (90, 5, 4, 3)) ** 3).astype(np.float32)
NAMES = ("first", "rows", "shared", "last")


def branched(keras: Any) -> Any:
    """Return a network with a layer that two branches share, and one with channels first."""
    layers = keras.layers
    keras.utils.set_random_seed(6)
    norm = {
        name: layers.BatchNormalization(
            axis=1 if name == "rows" else -1,
            gamma_initializer="random_uniform",
            beta_initializer="random_normal",
            name=name,
        )
        for name in NAMES
    }
    x = keras.Input((5, 4, 3), name="x")
    stem = layers.ReLU()(norm["first"](layers.Conv2D(6, 1, name="stem")(x)))
    branches = [norm["shared"](layers.Conv2D(4, 1, name=name)(stem)) for name in ("left", "right")]
    rows = layers.Permute((2, 3, 1))(norm["rows"](layers.Permute((3, 1, 2))(x)))
    joined = layers.Add()([*branches, layers.Conv2D(4, 1, name="over")(rows)])
    dense = layers.Dense(5, name="dense")(layers.GlobalAveragePooling2D()(joined))
    return keras.Model(x, norm["last"](dense))


def by_hand(model: Any, unbiased: Collection[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return layer -> mean and variance, in float64, computed with NumPy layer after layer."""
    found = {}

    def times(name: str, value: np.ndarray) -> np.ndarray:
        kernel, bias = (each.astype(np.float64) for each in model.get_layer(name).get_weights())
        return value @ kernel.reshape(kernel.shape[-2:]) + bias

    def norm(name: str, *values: np.ndarray) -> list[np.ndarray]:
        layer = model.get_layer(name)
        entering = np.concatenate([value.reshape(-1, value.shape[-1]) for value in values])
        mean, variance = found[name] = entering.mean(0), entering.var(0, ddof=name in unbiased)
        scale = np.asarray(layer.gamma) / np.sqrt(variance + layer.epsilon)
        return [(value - mean) * scale + np.asarray(layer.beta) for value in values]

    x = X.astype(np.float64)
    stem = np.maximum(norm("first", times("stem", x))[0], 0)
    left, right = norm("shared", times("left", stem), times("right", stem))
    joined = left + right + times("over", norm("rows", x)[0])
    norm("last", times("dense", joined.mean((1, 2))))
    return found


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tensors that each run started from."""
    real: Callable[..., Any] = Runner.run
    counts: list[int] = []

    def run(*arguments: Any, **options: Any) -> Any:
        counts.append(len(options["cached"]))
        return real(*arguments, **options)

    monkeypatch.setattr(Runner, "run", run)
    return counts


@KERAS
@pytest.mark.parametrize("room", [1 << 30, 40_000, 0], ids=["for all", "for some", "for none"])
def test_exact_is_what_numpy_finds(
    keras: Any, room: int, started: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = branched(keras)
    cache = ActivationCache(room)
    monkeypatch.setattr(recalibration, "ActivationCache", lambda: cache)
    result = recalibration.estimate(set_up(model, X, Settings(batch_size=32)), exact=True)
    assert (result.samples, result.batches, result.waves) == (90, 3, 3)
    # The fused kernels of Keras 2 average the unbiased variance.
    expected = by_hand(model, NAMES[:3] if keras is tf_keras else ())
    assert {each.layer for each in result.layers} == expected.keys()
    for each in result.layers:
        mean, variance = expected[each.layer]
        assert np.abs(each.mean - mean).max() < 1e-5 * np.sqrt(variance).max()
        np.testing.assert_allclose(each.variance, variance, rtol=1e-5)
        assert each.remains < 1e-5
    # Three batches in each of three waves and in the verifying pass.
    later = [count > 0 for count in started[3:9]]
    assert not any(started[:3] + started[9:])
    assert all(later) if room == 1 << 30 else not all(later)
    assert any(later) == (room > 0)
    assert cache.size <= room


def test_what_is_kept_of_a_batch_gives_way_to_the_newer() -> None:
    cache = ActivationCache(100)
    cache.begin_wave(["a"])
    assert cache.wanted(0) == ["a"]
    cache.offer(0, {"a": np.zeros(60, np.uint8)})
    assert cache.wanted(0) == ()
    assert cache.wanted(1) == ["a"]
    cache.offer(1, {"a": np.zeros(60, np.uint8)})
    assert cache.tensors(1) == {}
    assert cache.wanted(2) == ()
    cache.begin_wave(["b"])
    cache.offer(0, {"b": np.zeros(30, np.uint8)})
    assert cache.tensors(0).keys() == {"b"}
    cache.offer(1, {"b": np.zeros(70, np.uint8)})
    assert cache.size == 100
    cache.begin_wave(["c"])
    cache.offer(1, {"c": np.zeros(80, np.uint8)})
    assert cache.tensors(1).keys() == {"b"}


def test_batches_of_any_size_merge_to_the_moments_of_all() -> None:
    x = np.random.default_rng(0).normal(1e4, 1e-2, (1000, 3))
    moments = Moments(unbiased=True)
    for part in np.split(x, [1, 3, 400, 401]):
        moments.add(len(part), part.mean(0), part.var(0) * len(part))
    moments.add(0, np.full(3, np.nan), np.full(3, np.nan))
    assert moments.count == 1000
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, x.var(0, ddof=1), rtol=1e-9)


def test_two_halves_tell_how_sure_the_mean_is() -> None:
    halves = Halves()
    halves.first.add(100, [0.0, 5.0], [100.0, 100.0])
    assert halves.error is None
    halves.second.add(100, [1.0, 5.0], [100.0, 100.0])
    assert halves.error == pytest.approx(0.5 / math.sqrt(1 + 0.25))
    assert halves.whole.count == 200
    assert halves.first.count == 100


def test_a_constant_channel_is_no_distance_from_itself() -> None:
    distances = in_deviations(np.array([0.0, 1.0, 1.0]), np.array([0.0, 0.0, 2.0]))
    assert distances.tolist() == [0.0, math.inf, 0.5]


FORMS = {
    "tf_keras": ("saved_model", "export", "model.keras", "model.h5", "frozen.pb"),
    "keras": ("saved_model", "export", "model.keras", "model.h5", "frozen.pb"),
    "graph_mode": ("model-150", "frozen.pb"),
}


@pytest.mark.slow
@pytest.mark.parametrize("by", FORMS)
def test_every_form_of_a_network_is_mended_alike(built_once, by, tmp_path) -> None:
    def write(folder: Path) -> None:
        if by == "graph_mode":
            save_graph_mode(folder)
        else:
            save_keras(keras_network(import_module(by)), folder)

    trained = built_once(f"digits-{by}", write)
    first = None
    for form in FORMS[by]:
        path = trained / form
        result = recalibrate(path, TRAIN, tmp_path / form, labels="labels")
        before, after = result.accuracy
        assert before < 0.5 < 0.95 < after, form
        assert not result.left
        assert [each.mean.size for each in result.layers] == [8, 16, 16]
        first = first or result
        for one, other in zip(result.layers, first.layers, strict=True):
            np.testing.assert_allclose(one.mean, other.mean, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(one.variance, other.variance, rtol=1e-4)
        copy = bnstat.load(tmp_path / form)
        found = bnstat.check(copy, select=["BN001", "BN002", "BN003"])
        # The name of a checkpoint is all that shows how often it was updated.
        assert [each for each in found if each.severity != "info"] == []
        assert (found == []) == (copy.source.step is None)
