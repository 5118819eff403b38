"""Invalid statistics in `drift`, and labels of -1 and 1."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bnstat import drift
from bnstat.errors import AmbiguousError
from bnstat.estimate.drift import Drift
from bnstat.output.drift import text_lines
from bnstat.output.terminal.screen import Screen
from tests.builders.hostile import X, const, graph, node, saved_model


def stored(folder: Path, mean: Any, variance: Any) -> Path:
    """Write a model with these stored statistics."""
    made = graph([])
    for each in made.node:
        value = {"bn/moving_mean": mean, "bn/moving_variance": variance}.get(each.name)
        if value is not None:
            each.CopyFrom(const(each.name, np.broadcast_to(np.float32(value), 3).copy()))
    return saved_model(folder, made)


def shown(result: Drift) -> str:
    return "\n".join(text_lines(result, "model", Screen()))


def test_a_negative_variance_is_not_healthy(tmp_path: Path) -> None:
    mean, variance = X.mean((0, 1, 2)), X.var((0, 1, 2), ddof=1)
    result = drift(stored(tmp_path / "model", mean, variance * [1, 1, -1]), X)
    (layer,) = result.layers
    assert (layer.state, result.state) == ("invalid", "invalid")
    assert np.isinf(layer.divergence).tolist() == [False, False, True]
    assert np.isnan(layer.ratio).tolist() == np.isnan(layer.shift).tolist() == [False, False, True]
    assert result.largest == np.inf
    assert "NaN" not in shown(result).split("invalid: ")[0]
    assert "negative; bnstat check names such layers" in shown(result)


@pytest.mark.parametrize(
    ("mean", "variance"), [(np.nan, np.nan), (np.nan, 1), (0, np.inf), (0, -np.ones(3))]
)
def test_statistics_without_a_valid_number(mean: Any, variance: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        result = drift(stored(tmp_path / "model", mean, variance), X)
        text = shown(result)
    assert (result.state, result.largest) == ("invalid", np.inf)
    assert "nan" not in text.replace("NaN", "")
    (row,) = (line for line in text.splitlines() if line.startswith("bn"))
    assert row.split()[1:] == ["3", "-", "-", "inf", "invalid"]


def test_what_enters_may_be_invalid(tmp_path: Path) -> None:
    nodes = [const("nan", np.float32(np.nan)), node("sum", "AddV2", "x", "nan", T=tf.float32)]
    result = drift(saved_model(tmp_path / "model", graph(nodes, "sum")), X)
    assert result.state == "invalid"


def scoring(folder: Path, op: str, scores: int) -> Path:
    """Write a model whose scores are an op of the mean of the first values of a sample."""
    made = graph([])
    del made.node[-1]
    made.node.extend(
        [
            const("begin", np.int32([0, 0, 0, 0])),
            const("size", np.int32([-1, 1, 1, 1])),
            node("first", "Slice", "bn/norm", "begin", "size", T=tf.float32, Index=tf.int32),
            node("score", op, "first", T=tf.float32),
            const("axis", np.int32(3)),
            node("less", "Neg", "score", T=tf.float32),
        ]
    )
    if scores == 2:
        made.node.add().CopyFrom(
            node("y", "ConcatV2", "less", "score", "axis", N=2, T=tf.float32, Tidx=tf.int32)
        )
    else:
        made.node.add().CopyFrom(node("y", "Identity", "score", T=tf.float32))
    return saved_model(folder, made)


@pytest.mark.parametrize(
    ("op", "scores", "negative"),
    [
        *(("Tanh", 1, -1), ("Identity", 1, -1), ("Tanh", 2, -1)),
        *(("Tanh", 1, 0), ("Identity", 1, 0), ("Tanh", 2, 0), ("Sigmoid", 1, 0)),
    ],
)
@pytest.mark.parametrize("batch_size", [8, 3])
def test_labels_of_both_signs(
    op: str, scores: int, negative: int, batch_size: int, tmp_path: Path
) -> None:
    x = np.where(np.arange(8)[:, None, None, None] < 4, 0.6, 0.4) * np.ones((8, 1, 1, 3))
    y = np.where(np.arange(8) < 4, 1, negative)
    data = {"x": x.astype(np.float32), "labels": y}
    path = scoring(tmp_path / "model", op, scores)
    assert drift(path, data, labels="labels", batch_size=batch_size).accuracy == 1.0


def test_labels_that_are_not_classes(tmp_path: Path) -> None:
    path = scoring(tmp_path / "model", "Tanh", 2)
    data = {"x": X, "labels": np.arange(-2, 6)}
    with pytest.raises(AmbiguousError, match="label -2 is not one of its 2 classes"):
        drift(path, data, labels="labels")
