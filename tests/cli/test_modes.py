"""`bnstat drift` and `bnstat recalibrate` on networks that were trained in either mode."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnstat
from bnstat.checks.training_mode import Evidence, TrainedWith
from bnstat.estimate.drift import Drift, LayerDrift
from bnstat.estimate.modes import ModeEvidence, Modes, Outputs
from bnstat.estimate.recalibration import Mended, Recalibration
from bnstat.output import drift
from bnstat.output.terminal.screen import Screen
from tests.builders.digits import DATA, TEST
from tests.builders.modes import FAR_OFF, SIDES, UNEQUAL, WIDE, classifier


def test_a_network_trained_on_batch_statistics(tmp_path: Path, run: Any) -> None:
    path = classifier(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=FAR_OFF, labels=SIDES > 0)
    for labels in ((), ("--labels", "labels")):
        output = run("drift", path, "--data", tmp_path / "data.npz", *labels)
        assert "inference is broken, and bnstat recalibrate mends it" in output.stdout
        document = run("drift", path, "--data", tmp_path / "data.npz", "--json", *labels).stdout
        document = json.loads(document)
        assert document["trained_with"] == "batch-statistics"
        assert document["evidence"]["data"]["trained_with"] == "batch-statistics"
        assert document["evidence"]["file"]["trained_with"] == "unknown"
        copy = tmp_path / f"copy{len(labels)}.keras"
        result = run("recalibrate", path, "--data", tmp_path / "data.npz", "-o", copy, *labels)
        assert (result.exit_code, result.stderr) == (0, "")
        assert copy.exists()


def test_a_network_trained_in_inference_mode(tmp_path: Path, run: Any) -> None:
    path = classifier(tmp_path / "model.keras", gain=0.4)
    np.savez(tmp_path / "data.npz", x=WIDE)
    output = run("drift", path, "--data", tmp_path / "data.npz")
    assert "recalibrate would break the network" in output.stdout
    assert "mends" not in output.stdout
    copy = tmp_path / "copy.keras"
    arguments = ("recalibrate", path, "--data", tmp_path / "data.npz")
    refused = run(*arguments, "-o", copy)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "was trained in inference mode" in refused.stderr
    assert "mutual information" in refused.stderr
    assert "--force" in refused.stderr
    assert not copy.exists()
    before = path.read_bytes()
    assert run(*arguments, "--in-place").exit_code == 2
    assert path.read_bytes() == before
    dry = run(*arguments, "--dry-run")
    assert dry.exit_code == 0
    assert "warning: the model was trained in inference mode" in dry.stderr
    forced = run(*arguments, "-o", copy, "--force")
    assert forced.exit_code == 0
    assert "warning: the model was trained in inference mode" in forced.stderr
    assert copy.exists()


def test_a_lower_accuracy_is_refused(tmp_path: Path, run: Any) -> None:
    path = classifier(tmp_path / "model.keras", activation="linear")
    np.savez(tmp_path / "data.npz", x=UNEQUAL, labels=UNEQUAL.mean(axis=1) > 0)
    arguments = ("--data", tmp_path / "data.npz", "--labels", "labels")
    copy = tmp_path / "copy.keras"
    refused = run("recalibrate", path, *arguments, "-o", copy)
    assert refused.exit_code == 2
    assert "would lose accuracy by the new statistics: 100.0 % before, " in refused.stderr
    assert not copy.exists()
    output = run("drift", path, *arguments).stdout
    assert "right more often with these statistics: keep them" in output
    # The same of statistics that were updated, by which the evidence cannot be judged.
    updated = tmp_path / "updated.keras"
    bnstat.apply(path, {"bn": {"moving_variance": np.full(4, 2.0, "float32")}}, updated)
    refused = run("recalibrate", updated, *arguments, "-o", copy)
    assert refused.exit_code == 2
    assert "would lose accuracy by the new statistics: 100.0 % before, " in refused.stderr
    forced = run("recalibrate", updated, *arguments, "-o", copy, "--force")
    assert forced.exit_code == 0


def test_where_nothing_shows_the_mode_both_are_named(tmp_path: Path, run: Any) -> None:
    path = classifier(tmp_path / "model.keras", activation="linear")
    np.save(tmp_path / "data.npy", FAR_OFF)
    output = run("drift", path, "--data", tmp_path / "data.npy").stdout
    assert "does not show which is true" in output
    assert "stored statistics: " in output
    result = run("recalibrate", path, "--data", tmp_path / "data.npy", "-o", tmp_path / "c.keras")
    assert result.exit_code == 0
    assert "the old model is right" in result.stderr
    assert (tmp_path / "c.keras").exists()


def test_updated_statistics_are_recalibrated_without_a_word(tmp_path: Path, run: Any) -> None:
    path = DATA / "digits/saved_model"
    with np.load(TEST) as arrays:
        np.savez(tmp_path / "darker.npz", images=arrays["images"] * 0.25)
    arguments = ("--data", tmp_path / "darker.npz")
    result = run("recalibrate", path, *arguments, "-o", tmp_path / "copy")
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(run("drift", path, *arguments, "--json").stdout)
    assert (document["state"], document["trained_with"]) == ("shifted", "unknown")
    assert document["evidence"]["data"] is None  # No second pass was needed.


def _fine_tuned(path: Path) -> Path:
    """Write a network with other than the initial statistics, stored as not trainable."""
    original = classifier(path.with_name("original.keras"), activation="linear", trainable=False)
    bnstat.apply(original, {"bn": {"moving_variance": np.full(4, 2.0, "float32")}}, path)
    return path


def test_drift_does_not_recommend_recalibration_where_the_stored_statistics_are_better(
    tmp_path: Path, run: Any
) -> None:
    path = _fine_tuned(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=UNEQUAL, labels=UNEQUAL.mean(axis=1) > 0)
    arguments = ("drift", path, "--data", tmp_path / "data.npz", "--labels", "labels")
    output = run(*arguments).stdout
    assert (
        "the network needs the stored statistics and must not be recalibrated (accuracy 100.0 % "
        "with the stored statistics, "
    ) in output
    assert "adapts them" not in output
    # The statistics of small batches are inaccurate, so they do not show what data shows.
    small = run(*arguments, "--batch-size", "4").stdout
    assert "those of batches of 4 are inaccurate" in small
    assert "must not be recalibrated" not in small


def test_drift_recommends_recalibration_of_frozen_layers_if_it_is_better(
    tmp_path: Path, run: Any
) -> None:
    path = _fine_tuned(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=FAR_OFF, labels=SIDES > 0)
    arguments = ("--data", tmp_path / "data.npz", "--labels", "labels")
    output = run("drift", path, *arguments).stdout
    assert "bnstat recalibrate adapts them" in output
    result = run("recalibrate", path, *arguments, "-o", tmp_path / "copy.keras")
    assert (result.exit_code, result.stderr) == (0, "")


def test_frozen_layers_without_labels(tmp_path: Path, run: Any) -> None:
    path = _fine_tuned(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=UNEQUAL)
    arguments = ("--data", tmp_path / "data.npz")
    output = run("drift", path, *arguments).stdout
    assert "1 of 1 layers are stored as not trainable, so the network was probably " in output
    assert "adapts them" not in output
    result = run("recalibrate", path, *arguments, "-o", tmp_path / "copy.keras")
    assert result.exit_code == 0
    (line,) = result.stderr.splitlines()
    assert line.startswith("warning: 1 of 1 layers are stored as not trainable, so training ")
    assert line.endswith("--labels measures whether new ones are better")
    assert (tmp_path / "copy.keras").exists()


def test_a_training_graph_in_inference_mode_is_a_reason_to_keep_the_statistics() -> None:
    reason = "training normalizes with the stored statistics"
    evidence = ModeEvidence(Evidence("stored-statistics", reason), None)
    layer = LayerDrift("bn", *[np.ones(2)] * 7, state="shifted")
    text = " ".join(drift.text_lines(Drift((layer,), {}, 100, None, evidence), "m", Screen()))
    assert f"must not be recalibrated ({reason})" in text
    mended = Mended("bn", np.ones(2), np.ones(2), 1.0, 1.0, None, 0.0)
    result = Recalibration((mended,), {}, 100, 2, 1, False, None, evidence, False)
    (warning,) = drift.notes(result)
    assert warning.startswith("warning: training used the stored statistics, so the old model is")
    assert list(drift.notes(replace(result, accuracy=(0.5, 0.9)))) == []


@pytest.mark.parametrize(
    ("own", "trained_with", "expected"),
    [
        (1.34, "unknown", "with the data's own statistics (better, but not conclusive)"),
        (0.1, "stored-statistics", "with the stored statistics (better)"),
        (1.2501, "unknown", None),
    ],
)
def test_the_better_mutual_information_is_named(
    own: float, trained_with: TrainedWith, expected: str | None
) -> None:
    outputs = [Outputs(0, 1, 1, None, number) for number in (1.25, own)]
    modes = Modes(trained_with, "", 100, *outputs, 1.0, 4, None)
    evidence = ModeEvidence(Evidence("unknown", ""), modes)
    layer = LayerDrift("bn", *[np.ones(2)] * 7, state="healthy")
    result = Drift((layer,), {}, 100, None, evidence)
    text = list(drift.text_lines(result, "m", Screen()))
    assert "1.25 nats with the stored statistics" in text[2]
    line = text[3].strip()
    assert line == (f"the predictions depend more on the input {expected}" if expected else "")
