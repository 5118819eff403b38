"""Invalid statistics, labels, the outputs in both modes of batch norm, and what they show."""

from __future__ import annotations

import warnings
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bnstat import drift, recalibrate
from bnstat.checks.training_mode import Evidence
from bnstat.errors import AmbiguousError, BnstatError
from bnstat.estimate.data.batches import Batch
from bnstat.estimate.drift import Drift
from bnstat.estimate.modes import ModeEvidence, Sample, compare, information, rows_of
from bnstat.estimate.passes import Accuracy
from bnstat.estimate.running.network import activation_of
from bnstat.output.drift import text_lines
from bnstat.output.terminal.screen import Screen
from tests.builders.digits import DATA, TEST, TRAIN
from tests.builders.hostile import X, const, graph, node, saved_model
from tests.builders.modes import FAR_OFF, WIDE, classifier


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
    both = {"N": 2, "T": tf.float32, "Tidx": tf.int32}
    made.node.extend(
        [
            const("begin", np.int32([0, 0, 0, 0])),
            const("size", np.int32([-1, 1, 1, 1])),
            node("first", "Slice", "bn/norm", "begin", "size", T=tf.float32, Index=tf.int32),
            node("score", op, "first", T=tf.float32),
            const("axis", np.int32(3)),
            node("less", "Neg", "score", T=tf.float32),
            node("y", "ConcatV2", "less", "score", "axis", **both)
            if scores == 2
            else node("y", "Identity", "score", T=tf.float32),
        ]
    )
    return saved_model(folder, made)


@pytest.mark.parametrize(
    ("op", "scores", "negative"),
    [
        *(("Tanh", 1, -1), ("Identity", 1, -1), ("Tanh", 2, -1)),
        *(("Tanh", 1, 0), ("Identity", 1, 0), ("Tanh", 2, 0), ("Sigmoid", 1, 0)),
    ],
)
@pytest.mark.parametrize("batch_size", [8, 3])
def test_labels_of_both_signs(op, scores, negative, batch_size, tmp_path) -> None:
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


def batches(count: int, size: int) -> list[Batch]:
    numbers = np.arange(count, dtype="float32")[:, None]
    parts = np.split(numbers, range(size, count, size))
    return [Batch({"x": part}, part[:, 0], len(part)) for part in parts]


def drawn_from(parts: list[Batch], size: int, is_fixed: bool = False, most: int = 512) -> Any:
    """Return the mixed batches of a sample of some batches, and the outputs, twice the input."""
    sample = Sample("own", most)
    for batch in parts:
        outputs = np.zeros((batch.size, 1)) if batch.labels is None else 2 * batch.labels
        sample.add(batch, outputs)
    return sample.batches(size, is_fixed), sample.outputs()


@pytest.mark.parametrize("count", [2, 100, 513, 3000])
def test_a_sample_is_drawn_from_all_of_the_data_and_mixed(count: int) -> None:
    mixed, outputs = drawn_from(batches(count, 64), 64, most=256)
    drawn = np.concatenate([batch.labels for batch in mixed])
    assert len(set(drawn)) == len(drawn) == min(count, 256)
    sizes = [batch.size for batch in mixed]
    assert max(sizes) <= 64
    assert max(sizes) - min(sizes) <= 1
    assert [len(batch.feeds["x"]) for batch in mixed] == sizes
    assert (outputs[:, 0, 0] == drawn * 2).all()
    if count == 3000:
        assert 1200 < drawn.mean() < 1800
        assert 1200 < mixed[0].labels.mean() < 1800


def test_a_sample_for_a_model_of_a_fixed_batch() -> None:
    mixed, _ = drawn_from(batches(100, 32)[:3], 32, is_fixed=True)
    assert [batch.size for batch in mixed] == [32, 32, 32]
    assert drawn_from(batches(8, 8), 32, is_fixed=True) == ([], None)


def test_a_sample_of_text() -> None:
    text = np.array(["one", "two", "three"], object)
    ((batch,), _) = drawn_from([Batch({"x": text}, None, 3)], 64)
    assert batch.feeds["x"].dtype == object
    assert sorted(batch.feeds["x"]) == sorted(text)


@pytest.mark.parametrize(("given", "drawn"), [(3, 12), (8, 16)])
def test_large_samples_are_few(given: int, drawn: int) -> None:
    large = Batch({"x": np.broadcast_to(np.float32(0), (4, 1 << 22))}, None, 4)
    mixed, _ = drawn_from([large] * given, 64)
    assert sum(batch.size for batch in mixed) == drawn


def test_outputs_as_rows() -> None:
    scores = np.random.default_rng(0).dirichlet(np.ones(3), (2, 5, 6))
    first = np.moveaxis(scores, -1, 1)
    rows = rows_of(first, 2)
    assert rows.shape == (2, 30, 3)
    np.testing.assert_allclose(rows, scores.reshape(2, 30, 3))
    assert rows_of(np.zeros(7), 7) is not None
    assert rows_of(np.float32(1), 1) is None
    assert rows_of(np.zeros((3, 2)), 2) is None
    assert rows_of(np.array(["a", "b"]), 2) is None
    large = rows_of(np.zeros((2, 300, 300, 3)), 2)
    assert large.size <= 2 * 4096


SPARSE_LOSS = "SparseSoftmaxCrossEntropyWithLogits"


@pytest.mark.parametrize(
    ("ops", "output", "expected"),
    [
        ([node("y", "Softmax", "x")], "y:0", "softmax"),
        ([node("s", "Sigmoid", "x"), node("y", "Reshape", "s", "shape")], "y:0", "sigmoid"),
        ([node("s", "Tanh", "x"), node("y", "Identity", "s")], "y:0", "tanh"),
        ([node("p", "Softmax", "x")], "x:0", "logits of softmax"),
        ([node("l", SPARSE_LOSS, "x", "labels")], "x", "logits of softmax"),
        ([node("p", "Sigmoid", "y"), node("y", "Squeeze", "x")], "y:0", "logits of sigmoid"),
        ([node("y", "Relu", "x"), node("p", "Softmax", "other")], "y:0", None),
        ([node("y", "Identity", "y")], "y:0", None),
        ([node("y", "Identity"), node("p", "Softmax")], "y:0", None),
    ],
)
def test_what_an_output_is_the_result_of(ops: list[Any], output: str, expected: str | None) -> None:
    graph_def = tf.compat.v1.GraphDef()
    graph_def.node.extend([const("x", np.float32(0)), *ops])
    assert activation_of([graph_def], output) == expected


def outputs(stored: Any, own: Any, activation: Any = None, **settings: Any) -> Any:
    rows = [np.asarray(each, "float64").reshape(len(each), 1, -1) for each in (stored, own)]
    return compare(*rows, activation, **settings)


CERTAIN = np.eye(2)[np.arange(64) % 2]
SAME = np.tile([1.0, 0.0], (64, 1))


@pytest.mark.parametrize(
    ("stored", "own", "expected"),
    [
        (SAME, CERTAIN, "batch-statistics"),
        (CERTAIN, SAME, "stored-statistics"),
        (SAME[:8], CERTAIN[:8], "unknown"),
        (SAME, SAME, "unknown"),
        (CERTAIN, CERTAIN, "unknown"),
    ],
)
def test_predictions_that_show_the_mode(stored: Any, own: Any, expected: str) -> None:
    found = outputs(stored, own)
    assert found.trained_with == expected
    assert f"{len(stored)} samples" in found.reason
    doubtful = outputs(stored, own, doubt="updated")
    assert (doubtful.trained_with, doubtful.reason) == ("unknown", "updated")


LOGITS = np.where(CERTAIN, 20.0, -20.0)


@pytest.mark.parametrize(
    ("activation", "scores"),
    [
        ("softmax", CERTAIN),
        ("logits of softmax", LOGITS),
        ("sigmoid", CERTAIN[:, :1]),
        ("logits of sigmoid", LOGITS[:, :1]),
    ],
)
def test_scores_of_classes(activation: str, scores: np.ndarray) -> None:
    found = outputs(scores, scores, activation)
    assert found.stored.information == pytest.approx(log(2))


def test_information() -> None:
    assert information(np.eye(4)[np.arange(8) % 4][:, None]) == pytest.approx(log(4))
    assert information(np.tile([0.7, 0.2, 0.1], (5, 1))) == pytest.approx(0, abs=1e-12)
    logarithms = np.log(CERTAIN * 0.98 + 0.01)
    assert outputs(logarithms, logarithms).stored.information == pytest.approx(0.637, abs=1e-3)


def test_other_outputs_prove_nothing() -> None:
    image = np.random.default_rng(0).uniform(0, 1, (64, 30))
    found = outputs(np.zeros_like(image), image, "sigmoid")
    assert (found.trained_with, found.stored.information) == ("unknown", None)
    assert "prove nothing" in found.reason
    assert (found.stored.saturated, found.stored.spread) == (1.0, 0.0)
    assert 0.2 < found.own.spread < 0.4
    assert found.difference == pytest.approx(np.sqrt((image**2).mean()))
    wrong = outputs(np.full_like(image, np.nan), image)
    assert np.isnan(wrong.stored.low)
    assert wrong.trained_with == "unknown"


@pytest.mark.parametrize(
    ("stored", "own", "count", "expected"),
    [
        (0.2, 0.97, 100, "batch-statistics"),
        (0.97, 0.2, 100, "unknown"),  # the predictions disagree
        (0.9, 0.8, 100, "unknown"),
        (0.2, 0.97, 4, "unknown"),
        (1.0, 1.0, 100, "unknown"),
    ],
)
def test_accuracies_that_show_the_mode(stored, own, count, expected) -> None:
    accuracies = Accuracy(stored, count), Accuracy(own, count)
    assert outputs(SAME, CERTAIN, accuracies=accuracies).trained_with == expected


def test_evidence_that_disagrees_shows_nothing() -> None:
    batch, stored = outputs(SAME, CERTAIN), outputs(CERTAIN, SAME)
    file = Evidence("stored-statistics", "the bias followed beta")
    assert ModeEvidence(file, None).trained_with == "stored-statistics"
    assert ModeEvidence(file, stored).trained_with == "stored-statistics"
    both = ModeEvidence(file, batch)
    assert both.trained_with == "unknown"
    assert both.reasons == [file.reason, batch.reason]
    silent = ModeEvidence(Evidence("unknown", "no bias"), batch)
    assert (silent.trained_with, silent.reasons) == ("batch-statistics", [batch.reason])


def test_a_model_in_memory_is_refused_as_well(tmp_path: Path) -> None:
    import keras

    model = keras.models.load_model(classifier(tmp_path / "model.keras", gain=0.4))
    with pytest.raises(BnstatError, match="trained in inference mode"):
        recalibrate(model, WIDE)
    assert not model.get_layer("bn").moving_mean.numpy().any()
    assert recalibrate(model, WIDE, force=True).objection is not None
    assert model.get_layer("bn").moving_variance.numpy().min() > 50


def test_the_second_pass_is_bounded() -> None:
    passes: dict[str, int] = {}

    def track(batches: Any, what: str) -> Any:
        for batch in batches:
            passes[what] = passes.get(what, 0) + batch.size
            yield batch

    path = DATA / "digits_no_updates/saved_model"
    result: Any = drift(path, TRAIN, labels="labels", track=track)
    assert passes == {"measuring": 1437, "comparing the modes": 512}
    assert result.evidence.data.samples == 512
    passes.clear()
    drift(DATA / "digits/saved_model", TRAIN, track=track)
    assert passes == {"measuring": 1437}


def test_some_layers_alone_show_nothing() -> None:
    path = DATA / "digits_no_updates/saved_model"
    result: Any = drift(path, TEST, labels="labels", layers=["block2/*"])
    assert [each.layer for each in result.layers] == ["block2/bn"]
    assert result.evidence.data.trained_with == "unknown"
    assert "block1/bn runs with its stored statistics" in result.evidence.data.reason


def test_a_model_of_one_row_for_all_samples(tmp_path: Path) -> None:
    import keras

    inputs = keras.Input((4,))
    means = keras.ops.mean(keras.layers.BatchNormalization()(inputs))
    result: Any = drift(keras.Model(inputs, means), FAR_OFF)
    assert result.evidence.data is None
    assert result.state == "never-updated"
