"""Networks whose training mode bnstat should find, as none of the surveys trains them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import bnstat
from bnstat.checks.training_mode import training_evidence
from tests.survey.networks import MODES, Network, Training, outcome, samples_of


def saved(network: Network, form: str, folder: Path) -> Path:
    """Save a classifier with its probabilities."""
    import tensorflow as tf

    keras, path = network.keras, folder / "model"
    scores = keras.layers.Softmax(dtype="float32")(network.model.output)
    model: Any = keras.Model(network.model.input, scores)
    if form in ("keras", "h5"):
        path = path.with_suffix(f".{form}")
        model.save(path)
    elif form == "saved_model":
        tf.saved_model.save(model, str(path))
    elif form == "export":
        model.export(str(path))
    else:
        path.mkdir()
        tf.train.Checkpoint(model=model).save(str(path / "ckpt"))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "mode", "settings"),
    [
        ("keras", "batch", {"bias": False}),
        ("h5", "batch", {"library": "tf_keras", "task": "textures"}),
        ("export", "stored", {"task": "three-digits"}),
        ("checkpoint", "stored", {"library": "tf_keras"}),
        ("saved_model", "batch", {"bias": False, "task": "textures", "momentum": 0.9}),
    ],
)
def test_the_verdict_is_not_wrong(
    form: str, mode: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    training = Training("conv", "adam", mode, steps=200, batch=64, **settings)
    network = Network(training)
    network.fit(training)
    path = saved(network, form, tmp_path)
    found = training_evidence(bnstat.load(path)).trained_with
    if form != "checkpoint":  # It holds no network to run.
        result = bnstat.drift(path, samples_of(training.task, 256, 1)[0])
        found = result.evidence.trained_with
        assert (result.state == "never-updated") is (training.momentum == 1)
    verdict = outcome(found, MODES[mode])
    assert verdict != "wrong"
    assert verdict == "right" or not training.bias
