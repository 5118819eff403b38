"""How a network was trained, by its weights and by the averages of the optimizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest

import bnstat
from bnstat.checks.training_mode import (
    Evidence,
    Gradient,
    Pair,
    compare_gradients,
    judge,
    training_evidence,
)

CHANNELS = 32
EPSILON = np.float32(1e-3)
Arrays = dict[str, Any]


class Network(NamedTuple):
    """A dense layer and its batch norm in float32, with the optimizer's averages."""

    values: Arrays
    first: Arrays
    second: Arrays


def trained(mode: str, optimizer: str = "momentum", steps: int = 50) -> Network:
    """Return a network that was trained to fit random functions."""
    random = np.random.default_rng(5)
    x = random.normal(0.5, 0.5, (256, 12)).astype("f4")
    kernel = random.normal(0, 0.3, (12, CHANNELS)).astype("f4")
    targets = np.tanh(x @ kernel + random.normal(0, 0.5, CHANNELS).astype("f4"))
    zeros, ones = np.zeros(CHANNELS, "f4"), np.ones(CHANNELS, "f4")
    values: Arrays = {"kernel": kernel, "bias": zeros, "gamma": ones, "beta": zeros}
    first, second = ({name: np.zeros_like(value) for name, value in values.items()} for _ in "12")
    for count in range(1, steps + 1):
        chosen = random.integers(0, len(x), 32)
        y = x[chosen] @ values["kernel"] + values["bias"]
        mean, variance = np.float32(0), np.float32(1)
        if mode == "batch":
            mean, variance = y.mean(0), y.var(0)
        inverse = 1 / np.sqrt(variance + EPSILON)
        normal = (y - mean) * inverse
        outside = (normal * values["gamma"] + values["beta"] - targets[chosen]) / np.float32(32)
        inside = outside * values["gamma"]
        if mode == "batch":
            inside = inside - inside.mean(0) - normal * (inside * normal).mean(0)
        inside = inside * inverse
        gradients = {"kernel": x[chosen].T @ inside, "bias": inside.sum(0)}
        gradients |= {"gamma": (outside * normal).sum(0), "beta": outside.sum(0)}
        for name, gradient in gradients.items():
            if optimizer == "momentum":
                first[name] = np.float32(0.9) * first[name] + gradient
                change = np.float32(5e-3) * first[name]
            else:
                first[name] = np.float32(0.9) * first[name] + np.float32(0.1) * gradient
                second[name] = np.float32(0.999) * second[name] + np.float32(0.001) * gradient**2
                size = np.sqrt(second[name] / np.float32(1 - 0.999**count)) + np.float32(1e-7)
                change = np.float32(5e-3) * first[name] / np.float32(1 - 0.9**count) / size
            values[name] = values[name] - change
    return Network(values, first, second)


def evidence(
    path: Path, network: Network, slots: str = "", variance: float = 1.0, **config: Any
) -> Evidence:
    """Return the evidence in a file of legacy HDF5; `config` is merged into the dense layer's."""
    dense = {"name": "dense", "use_bias": True, "activation": "linear", **config}
    norm = {"name": "bn", "epsilon": float(EPSILON)}
    classes = {"Dense": dense, "BatchNormalization": norm}
    layers = [{"class_name": name, "config": config} for name, config in classes.items()]
    with h5py.File(path, "w") as file:
        group = file.create_group("model_weights")
        for name, value in network.values.items():
            owner = "dense" if name in ("kernel", "bias") else "bn"
            group[f"{owner}/{owner}/{name}:0"] = value
            if slots:
                kept = network.second if slots == "v" else network.first
                file[f"optimizer_weights/Adam/{slots}/{owner}/{name}:0"] = kept[name]
        group["bn/bn/moving_mean:0"] = np.zeros(CHANNELS, "f4")
        group["bn/bn/moving_variance:0"] = np.full(CHANNELS, variance, "f4")
        group.attrs["layer_names"] = ["dense", "bn"]
        model = {"class_name": "Sequential", "config": {"name": "net", "layers": layers}}
        file.attrs["model_config"] = json.dumps(model)
    return training_evidence(bnstat.load(path))


TRUTH = {"batch": "batch-statistics", "stored": "stored-statistics"}


@pytest.mark.parametrize("mode", ["batch", "stored"])
@pytest.mark.parametrize(("optimizer", "slots"), [("momentum", "m"), ("adam", "v"), ("adam", "m")])
def test_weights_and_the_last_gradients_show_how_a_network_was_trained(
    tmp_path: Path, mode: str, optimizer: str, slots: str
) -> None:
    network = trained(mode, optimizer)
    shown = evidence(tmp_path / "m.h5", network)
    assert shown.trained_with == TRUTH[mode], shown
    assert (shown.layers, shown.channels, shown.gradient_ratio) == (1, CHANNELS, None)
    # With another initial bias, only the gradients show the mode.
    random = np.random.default_rng(1)
    network.values["bias"] = random.normal(0, 1, CHANNELS).astype("f4")
    assert evidence(tmp_path / "m.h5", network).trained_with == "unknown"
    shown = evidence(tmp_path / "m.h5", network, slots=slots)
    assert shown.trained_with == TRUTH[mode], shown


def test_gradients_show_that_updated_layers_were_frozen_later(tmp_path: Path) -> None:
    network = trained("stored", "adam")
    network.second["bias"] = network.second["bias"] / np.float32(4)
    shown = evidence(tmp_path / "m.h5", network, slots="v", variance=4.0)
    assert shown.trained_with == "stored-statistics", shown
    without = evidence(tmp_path / "m.h5", network, variance=4.0)
    assert without.trained_with == "unknown"
    assert "were updated" in without.reason


@pytest.mark.parametrize("config", [{"activation": "relu"}, {"use_bias": False}])
def test_without_a_bias_before_the_layers_the_mode_is_unknown(tmp_path: Path, config: Any) -> None:
    shown = evidence(tmp_path / "m.h5", trained("stored"), **config)
    assert shown == Evidence("unknown", "no bias is added right before a layer with a beta")


def test_a_bias_that_a_regularizer_holds_does_not_show_batch_statistics(tmp_path: Path) -> None:
    network = trained("stored")
    signs = np.sign(np.sin(np.arange(CHANNELS) * 7.0)).astype("f4")
    network.values["bias"] = np.float32(0.05 * np.std(network.values["beta"])) * signs
    shown = evidence(tmp_path / "m.h5", network, bias_regularizer={"class_name": "L1"})
    assert shown.trained_with == "unknown"


def test_an_untrained_network_shows_nothing(tmp_path: Path) -> None:
    shown = evidence(tmp_path / "m.h5", trained("stored", steps=0))
    assert (shown.trained_with, shown.ratio) == ("unknown", None)
    assert "was not trained" in shown.reason


# The thresholds


def pair(ratio: float, correlation: float, channels: int = 64, proven: bool = True) -> Pair:
    """Return a bias with exactly this size and correlation, relative to beta."""
    random = np.random.default_rng(3)
    beta, other = (values - values.mean() for values in random.normal(size=(2, channels)))
    beta /= np.linalg.norm(beta)
    other -= (other @ beta) * beta
    other /= np.linalg.norm(other)
    bias = ratio * (correlation * beta + np.sqrt(1 - correlation**2) * other)
    return Pair(bias + 0.1, beta - 0.2, proven)


ABSENT = Gradient(1e-5, 1.0)
SAME = Gradient(1.1, 0.15)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([pair(1, 0.97)], "stored-statistics"),
        ([pair(1, 0.97, proven=False)], "stored-statistics"),
        ([pair(1, 0.93)], "unknown"),
        ([pair(0.05, 0.97)], "unknown"),
        ([pair(20, 0.97)], "unknown"),
        ([pair(1, 0.99, channels=16)], "unknown"),
        ([pair(1, 0.99, channels=9)] * 2, "stored-statistics"),
        ([pair(1, 0)], "unknown"),
        ([pair(0.1, 0.3)], "batch-statistics"),
        ([pair(0.1, 0.3)] * 4, "unknown"),
        ([pair(0.1, 0, proven=False)], "unknown"),
        ([pair(0.1, 0), pair(0.1, 0, proven=False)], "unknown"),
        ([pair(0.3, 0)], "unknown"),
        ([pair(1e-4, 0.5, proven=False)], "batch-statistics"),
        ([pair(1e-4, 0.9)], "unknown"),
        ([pair(1, 0)._replace(gradient=ABSENT)], "batch-statistics"),
        ([pair(1, 0)._replace(gradient=Gradient(1e-2, 1.0))], "unknown"),
        ([pair(0.1, 0)._replace(gradient=SAME)], "stored-statistics"),
        ([pair(0.1, 0, proven=False)._replace(gradient=SAME)], "unknown"),
        ([pair(1, 0)._replace(gradient=ABSENT), pair(1, 0)], "batch-statistics"),
        ([pair(1, 0)._replace(gradient=each) for each in (ABSENT, SAME)], "unknown"),
        ([pair(1, 0)._replace(gradient=Gradient(1.0, 0.4))], "unknown"),
        ([], "unknown"),
    ],
)
def test_thresholds(pairs: list[Pair], expected: str) -> None:
    assert judge(pairs).trained_with == expected


def test_the_numbers_summarize_all_layers_with_finite_values() -> None:
    good = [pair(3, 0.9, 16), pair(4, 0.6, 48)]
    biases = [np.where(np.arange(48) == 3, bad, good[1].bias) for bad in (np.nan, np.inf)]
    shown = judge([*(good[1]._replace(bias=bias) for bias in biases), *good])
    assert shown.ratio == pytest.approx(np.sqrt(12.5))
    assert shown.correlation == pytest.approx(0.675)
    assert (shown.layers, shown.channels) == (2, 64)
    assert "64 channels of 2 layers" in shown.reason


def test_gradients_are_compared_with_the_scale_of_the_layer() -> None:
    squares = np.array([1.0, 4.0, 9.0])
    scale = np.array([0.5, -2.0, 1.0])
    same = pytest.approx((1, 0))
    assert compare_gradients(squares * scale**2, squares, True, scale) == same
    roots = np.sqrt(squares)
    assert compare_gradients(roots * scale, roots, False, scale) == same
    assert compare_gradients(squares, squares, True, None) == same
    turned = compare_gradients(squares[::-1], squares, True, None)
    assert turned == pytest.approx((1, np.sqrt(8 / 14)))
    assert compare_gradients(squares * 0, squares, True, None) is None
    assert compare_gradients(squares, squares * np.nan, True, None) is None
    assert compare_gradients(-squares, squares, True, None) is None


def reshaped(path: Path, kind: str, channels: int, positions: int = 4) -> Path:
    """Write a generator whose first bias has a number for each position and channel."""
    import keras

    dense = keras.layers.Dense(positions * channels)
    reshape = keras.layers.Reshape((2, positions // 2, channels))
    norm, last = keras.layers.BatchNormalization(), keras.layers.Conv2DTranspose(1, 3)
    model = keras.Sequential([keras.Input((3,)), dense, reshape, norm, last])
    random = np.random.default_rng(0)
    beta = random.normal(0, 0.1, channels)
    bias = random.normal(0, 0.1, (positions, channels))
    bias -= bias.mean(axis=0)
    bias += {"follows": beta / positions, "cancelled": 0, "other": beta[::-1] / positions}[kind]
    dense.set_weights([np.ones((3, positions * channels)), bias.ravel()])
    norm.set_weights([np.ones(channels), beta, np.zeros(channels), np.ones(channels)])
    model.save(path)
    return path


@pytest.mark.parametrize("form", ["model.keras", "model.h5"])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [("follows", TRUTH["stored"]), ("cancelled", TRUTH["batch"]), ("other", "unknown")],
)
def test_a_bias_per_position_is_summed(kind: str, expected: str, form: str, tmp_path: Path) -> None:
    for channels, mode in ((64, expected), (32, "unknown")):
        path = reshaped(tmp_path / f"{channels}-{form}", kind, channels)
        assert training_evidence(bnstat.load(path)).trained_with == mode
