"""The outputs in both modes of batch norm, and what they show."""

from __future__ import annotations

from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnstat import drift, recalibrate
from bnstat.checks.training_mode import Evidence
from bnstat.errors import BnstatError
from bnstat.estimate.data import Batch, Settings
from bnstat.estimate.modes import Accuracy, ModeEvidence, Sample, compare, information, rows_of
from bnstat.estimate.preparation import set_up
from bnstat.estimate.running.network import activation_of
from tests.builders.digits import DATA, TEST, TRAIN
from tests.builders.hostile import const, node
from tests.builders.modes import FAR_OFF, WIDE, classifier


def test_information() -> None:
    certain = np.eye(4)[np.arange(8) % 4]
    assert information(certain[:, None]) == pytest.approx(log(4))
    assert information(np.tile([0.7, 0.2, 0.1], (5, 1))) == pytest.approx(0, abs=1e-12)


def batches(count: int, size: int) -> list[Batch]:
    numbers = np.arange(count, dtype="float32")[:, None]
    parts = np.split(numbers, range(size, count, size))
    return [Batch({"x": part}, part[:, 0], len(part)) for part in parts]


@pytest.mark.parametrize("count", [2, 100, 513, 3000])
def test_a_sample_is_drawn_from_all_of_the_data_and_mixed(count: int) -> None:
    sample = Sample(256)
    for batch in batches(count, 64):
        sample.add(batch, batch.feeds["x"] * 2)
    mixed = sample.batches(64, is_fixed=False)
    drawn = np.concatenate([batch.labels for batch in mixed])
    assert len(set(drawn)) == len(drawn) == min(count, 256)
    assert max(len(batch.feeds["x"]) for batch in mixed) <= 64
    sizes = [batch.size for batch in mixed]
    assert max(sizes) - min(sizes) <= 1
    outputs = sample.outputs()
    assert outputs is not None
    assert (outputs[:, 0, 0] == drawn * 2).all()
    if count == 3000:
        assert 1200 < drawn.mean() < 1800
        assert 1200 < np.mean([batch.labels.mean() for batch in mixed[:1]]) < 1800


def test_a_sample_for_a_model_of_a_fixed_batch() -> None:
    sample = Sample()
    for batch in batches(100, 32)[:3]:
        sample.add(batch, batch.feeds["x"])
    assert [batch.size for batch in sample.batches(32, is_fixed=True)] == [32, 32, 32]
    few = Sample()
    few.add(batches(8, 8)[0], np.zeros((8, 1)))
    assert few.batches(32, is_fixed=True) == []
    assert few.outputs() is None


def test_a_sample_of_text() -> None:
    sample = Sample()
    text = np.array(["one", "two", "three"], object)
    sample.add(Batch({"x": text}, None, 3), np.zeros((3, 1)))
    (batch,) = sample.batches(64, is_fixed=False)
    assert batch.feeds["x"].dtype == object
    assert sorted(batch.feeds["x"]) == sorted(text)


def test_large_samples_are_few() -> None:
    sample = Sample()
    large = np.broadcast_to(np.float32(0), (64, 1 << 22))
    for _ in range(3):
        sample.add(Batch({"x": large[:4]}, None, 4), np.zeros((4, 1)))
    assert sum(batch.size for batch in sample.batches(64, is_fixed=False)) == 12
    bounded = Sample()
    for _ in range(8):
        bounded.add(Batch({"x": large[:4]}, None, 4), np.zeros((4, 1)))
    assert sum(batch.size for batch in bounded.batches(64, is_fixed=False)) == 16


def test_outputs_as_rows() -> None:
    scores = np.random.default_rng(0).dirichlet(np.ones(3), (2, 5, 6))
    first = np.moveaxis(scores, -1, 1)
    rows = rows_of(first, 2)
    assert rows is not None
    assert rows.shape == (2, 30, 3)
    np.testing.assert_allclose(rows, scores.reshape(2, 30, 3))
    assert rows_of(np.zeros(7), 7) is not None
    assert rows_of(np.float32(1), 1) is None
    assert rows_of(np.zeros((3, 2)), 2) is None
    assert rows_of(np.array(["a", "b"]), 2) is None
    large = rows_of(np.zeros((2, 300, 300, 3)), 2)
    assert large is not None
    assert large.size <= 2 * 4096


@pytest.mark.parametrize(
    ("ops", "output", "expected"),
    [
        ([node("y", "Softmax", "x")], "y:0", "softmax"),
        ([node("s", "Sigmoid", "x"), node("y", "Reshape", "s", "shape")], "y:0", "sigmoid"),
        ([node("s", "Tanh", "x"), node("y", "Identity", "s")], "y:0", "tanh"),
        ([node("p", "Softmax", "x")], "x:0", "logits of softmax"),
        (
            [node("l", "SparseSoftmaxCrossEntropyWithLogits", "x", "labels")],
            "x",
            "logits of softmax",
        ),
        ([node("p", "Sigmoid", "y"), node("y", "Squeeze", "x")], "y:0", "logits of sigmoid"),
        ([node("y", "Relu", "x"), node("p", "Softmax", "other")], "y:0", None),
        ([node("y", "Identity", "y")], "y:0", None),
    ],
)
def test_what_an_output_is_the_result_of(ops: list[Any], output: str, expected: str | None) -> None:
    import tensorflow as tf

    graph_def = tf.compat.v1.GraphDef()
    graph_def.node.extend([const("x", np.float32(0)), *ops])
    assert activation_of([graph_def], output) == expected


def outputs(stored: Any, own: Any, activation: Any = None, **settings: Any) -> Any:
    rows = [np.asarray(each, "float64").reshape(len(each), 1, -1) for each in (stored, own)]
    return compare(*rows, activation, **settings)


CERTAIN = np.eye(2)[np.arange(64) % 2]
SAME = np.tile([1.0, 0.0], (64, 1))


def test_predictions_that_show_the_mode() -> None:
    assert outputs(SAME, CERTAIN).trained_with == "batch-statistics"
    assert outputs(CERTAIN, SAME).trained_with == "stored-statistics"
    few = outputs(SAME[:8], CERTAIN[:8])
    assert few.trained_with == "unknown"
    assert "8 samples" in few.reason
    assert outputs(SAME, SAME).trained_with == "unknown"
    assert outputs(CERTAIN, CERTAIN).trained_with == "unknown"
    doubtful = outputs(SAME, CERTAIN, doubt="the moving statistics were updated")
    assert (doubtful.trained_with, doubtful.reason) == (
        "unknown",
        "the moving statistics were updated",
    )


def test_scores_of_classes() -> None:
    logits = np.where(CERTAIN, 20.0, -20.0)
    for activation, scores in (("softmax", CERTAIN), ("logits of softmax", logits)):
        found = outputs(scores, scores, activation)
        assert found.classes == 2
        assert found.stored.information == pytest.approx(log(2))
    for activation, scores in (("sigmoid", CERTAIN), ("logits of sigmoid", logits)):
        found = outputs(scores[:, :1], scores[:, :1], activation)
        assert found.classes == 2
        assert found.stored.information == pytest.approx(log(2))
    logarithms = outputs(np.log(CERTAIN * 0.98 + 0.01), np.log(CERTAIN * 0.98 + 0.01))
    assert logarithms.classes == 2


def test_other_outputs_prove_nothing() -> None:
    image = np.random.default_rng(0).uniform(0, 1, (64, 30))
    found = outputs(np.zeros_like(image), image, "sigmoid")
    assert (found.trained_with, found.classes, found.stored.information) == ("unknown", None, None)
    assert "prove nothing" in found.reason
    assert (found.stored.saturated, found.stored.spread) == (1.0, 0.0)
    assert 0.2 < found.own.spread < 0.4
    assert found.difference == pytest.approx(np.sqrt((image**2).mean()))
    wrong = outputs(np.full_like(image, np.nan), image)
    assert np.isnan(wrong.stored.low)
    assert wrong.trained_with == "unknown"


def test_accuracies_that_show_the_mode() -> None:
    def found(stored: float, own: float, count: int) -> str:
        accuracies = Accuracy(stored, count), Accuracy(own, count)
        return str(outputs(SAME, CERTAIN, accuracies=accuracies).trained_with)

    assert found(0.2, 0.97, 100) == "batch-statistics"
    assert found(0.97, 0.2, 100) == "unknown"  # The predictions disagree.
    assert found(0.9, 0.8, 100) == "unknown"
    assert found(0.2, 0.97, 4) == "unknown"
    assert found(1.0, 1.0, 100) == "unknown"


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

    result = drift(DATA / "digits_no_updates/saved_model", TRAIN, labels="labels", track=track)
    assert passes == {"measuring": 1437, "comparing the modes": 512}
    assert result.evidence is not None
    assert result.evidence.data is not None
    assert result.evidence.data.samples == 512
    passes.clear()
    drift(DATA / "digits/saved_model", TRAIN, track=track)
    assert passes == {"measuring": 1437}


def test_some_layers_alone_show_nothing() -> None:
    path = DATA / "digits_no_updates/saved_model"
    result = drift(path, TEST, labels="labels", layers=["block2/*"])
    assert result.evidence is not None
    assert result.evidence.data is not None
    assert result.evidence.data.trained_with == "unknown"
    assert "block1/bn runs with its stored statistics" in result.evidence.data.reason


def test_a_model_of_one_row_for_all_samples(tmp_path: Path) -> None:
    import keras

    x = inputs = keras.Input((4,))
    x = keras.layers.BatchNormalization()(x)
    model = keras.Model(inputs, keras.ops.mean(x))
    result = drift(model, FAR_OFF)
    assert result.evidence is not None
    assert result.evidence.data is None
    assert result.state == "never-updated"


def test_a_set_up_model() -> None:
    setup = set_up(DATA / "digits/saved_model", TEST, Settings())
    assert setup.network.activation is None
    assert setup.network.is_comparable
