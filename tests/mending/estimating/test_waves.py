"""`--exact` on a network with branches, compared with NumPy, and the moments of batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import keras as keras_3
import numpy as np
import pytest
import tf_keras

from bnstat.estimate.data import Settings
from bnstat.estimate.passes import ActivationCache, Halves, Moments, Runner, in_deviations
from bnstat.estimate.preparation import set_up
from bnstat.estimate.recalibration import Recalibration, estimate

X = (np.random.default_rng(8).normal(1, 2, (90, 5, 4, 3)) ** 3).astype(np.float32)
NAMES = ("first", "rows", "shared", "last")
KERAS = pytest.mark.parametrize("keras", [keras_3, tf_keras], ids=["keras", "tf_keras"])


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


def exactly(model: Any, cache: ActivationCache) -> Recalibration:
    setup = set_up(model, X, Settings(batch_size=32))
    return estimate(setup, exact=True, cache=cache)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tensors that each run started from."""
    real: Callable[..., Any] = Runner.run
    counts: list[int] = []

    def run(*arguments: Any, **options: Any) -> Any:
        counts.append(len(options["start"]))
        return real(*arguments, **options)

    monkeypatch.setattr(Runner, "run", run)
    return counts


@KERAS
@pytest.mark.parametrize("room", [1 << 30, 40_000, 0], ids=["for all", "for some", "for none"])
def test_exact_is_what_numpy_finds(keras: Any, room: int, started: list[int]) -> None:
    model = branched(keras)
    cache = ActivationCache(room)
    result = exactly(model, cache)
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
