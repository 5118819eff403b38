"""`bnstat recalibrate` and `bnstat drift` on the demo networks, and on networks of either mode."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
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
from tests.builders.digits import DATA, TEST, TRAIN
from tests.builders.modes import FAR_OFF, SIDES, UNEQUAL, WIDE, classifier

BROKEN = DATA / "digits_no_updates/saved_model"
HEALTHY = DATA / "digits/saved_model"


def test_a_copy_is_mended_and_the_original_is_not(run, tmp_path):
    before = {p: p.read_bytes() for p in BROKEN.rglob("*") if p.is_file()}
    copy = tmp_path / "copy"
    result = run("recalibrate", BROKEN, "--data", TRAIN, "--labels", "labels", "-o", copy)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    ((old, new),) = re.findall(r"([\d.]+) % before, ([\d.]+) % after", result.stdout)
    assert float(old) == pytest.approx(20.2, abs=1)
    assert float(new) > 95
    assert result.stdout.splitlines()[-1] == "3 of 3 layers recalibrated"
    assert {p: p.read_bytes() for p in BROKEN.rglob("*") if p.is_file()} == before
    assert run("check", copy).exit_code == 0
    drift = run("drift", copy, "--data", TEST, "--labels", "labels", "--fail-on", "0.1")
    assert drift.exit_code == 0
    (accuracy,) = re.findall(r"accuracy  ([\d.]+) %", drift.stdout)
    assert float(accuracy) == pytest.approx(97.2, abs=1)
    assert drift.stdout.splitlines()[-1].startswith("healthy: ")
    again = run("recalibrate", BROKEN, "--data", TRAIN, "-o", copy)
    assert (again.exit_code, again.stdout) == (2, "")
    assert "exists already" in again.stderr


def test_in_place_as_json(run, tmp_path):
    model = shutil.copytree(BROKEN, tmp_path / "model")
    result = run("recalibrate", model, "--data", TRAIN, "--in-place", "--exact", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["copy"] == str(model)
    assert (document["waves"], document["exact"], document["left"]) == (3, True, [])
    stored = bnstat.load(model)
    for layer in document["layers"]:
        array = stored[layer["name"]].moving_variance
        assert np.float32(layer["moving_variance"]).tolist() == array.tolist()
        assert layer["remains"] < 1e-5


def test_only_some_layers(run, tmp_path):
    arguments = ("--data", TRAIN, "--layer", "block2/*", "-o", tmp_path / "copy")
    assert run("recalibrate", BROKEN, *arguments).exit_code == 0
    difference = bnstat.diff(bnstat.load(BROKEN), bnstat.load(tmp_path / "copy"))
    assert [layer.new for layer in difference.different] == ["block2/bn"]


def test_small_batches_get_a_warning(run):
    arguments = ("recalibrate", BROKEN, "--data", TEST, "--labels", "labels", "--dry-run")
    small = run(*arguments, "--batch-size", 4)
    assert "warning: the moments of batches of 4 " in small.stderr
    assert "use --exact" in small.stderr
    assert "layers are still off by more than 0.05" in small.stderr
    assert run(*arguments, "--batch-size", 4, "--exact").stderr == ""
    assert run(*arguments, "--batch-size", 4, "-q").stderr == ""


def test_one_place_for_the_copy(run, tmp_path):
    for arguments in ((), ("-o", tmp_path / "copy", "--dry-run"), ("--in-place", "--dry-run")):
        result = run("recalibrate", BROKEN, "--data", TRAIN, *arguments)
        assert result.exit_code == 2
        assert "exactly one of -o COPY, --in-place and --dry-run" in result.stderr
    assert not (tmp_path / "copy").exists()


def test_drift_says_what_it_is(run, tmp_path):
    broken = run("drift", BROKEN, "--data", TEST, "--fail-on", "1")
    assert broken.exit_code == 1
    assert "never updated: " in broken.stdout
    healthy = run("drift", HEALTHY, "--data", TEST, "--fail-on", "1")
    assert healthy.exit_code == 0
    assert healthy.stdout.splitlines()[-1].startswith("healthy: ")
    with np.load(TEST) as arrays:
        np.savez(tmp_path / "darker.npz", images=arrays["images"] * 0.25)
    shifted = run("drift", HEALTHY, "--data", tmp_path / "darker.npz", "--fail-on", "1")
    assert shifted.exit_code == 1
    assert "\nshifted: " in shifted.stdout


def test_drift_as_json_and_csv(run, tmp_path):
    result = run("drift", HEALTHY, "--data", TEST, "--json", "--labels", "labels")
    document = json.loads(result.stdout)
    assert document["state"] == "healthy"
    assert document["accuracy"] == pytest.approx(0.969, abs=0.01)
    first = document["layers"][0]
    stored = bnstat.load(HEALTHY)["block1/bn"]
    assert first["stored_mean"] == stored.moving_mean.astype(float).tolist()
    shift = (np.array(first["mean"]) - first["stored_mean"]) / np.sqrt(first["stored_variance"])
    np.testing.assert_allclose(first["shift"], shift)
    ratio = np.array(first["variance"]) / first["stored_variance"]
    np.testing.assert_allclose(first["ratio"], ratio)
    squared = (np.array(first["mean"]) - first["stored_mean"]) ** 2
    inverse = 1 / np.array(first["variance"]) + 1 / np.array(first["stored_variance"])
    divergence = (ratio + 1 / ratio) / 2 - 1 + squared * inverse / 2
    np.testing.assert_allclose(first["divergences"], divergence)
    assert first["divergence"] == pytest.approx(divergence.mean())
    assert document["largest"] == max(layer["divergence"] for layer in document["layers"])
    path = tmp_path / "drift.csv"
    assert run("drift", HEALTHY, "--data", TEST, "--csv", "-o", path).exit_code == 0
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert len(rows) == 40
    assert [float(row["mean"]) for row in rows[:8]] == first["mean"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "nowhere.npz"), "nowhere.npz: does not exist"),
        (("--data", str(TEST), "--labels", "classes"), "has no array 'classes' for --labels"),
        (("--data", str(TEST), "--image-size", "big"), "'big' is neither SIZE nor HEIGHTxWIDTH"),
        (("--data", str(TEST), "--scale", "1/0"), "'1/0' is not a number"),
        (("--data", str(TEST), "--layer", "x"), "no batch-norm layer matches 'x'"),
        (("--data", str(TEST), "--feed", "keep_prob"), "is not NAME=NUMBER"),
        (("--data", str(TEST), "--feed", "keep_prob="), "is not NAME=NUMBER"),
        (("--data", str(TEST), "--feed", "=1"), "is not NAME=NUMBER"),
        (("--data", str(TEST), "--feed", "keep_prob=much"), "is not NAME=NUMBER"),
        ((), "Missing option '--data'"),
    ],
)
def test_wrong_arguments_are_reported_in_one_line(run, arguments, message):
    result = run("drift", HEALTHY, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_model_without_batch_norm(run, tmp_path):
    import tensorflow as tf

    tf.saved_model.save(tf.Module(), str(tmp_path / "plain"))
    result = run("drift", tmp_path / "plain", "--data", TEST)
    assert result.exit_code == 2
    assert "has no batch-norm layer" in result.stderr


def test_progress_names_the_wave():
    said = []

    def track(batches, what):
        said.append((what, len(batches)))
        return batches

    bnstat.recalibrate(BROKEN, Path(TEST), exact=True, track=track)
    waves = [(f"wave {n} of 3", 6) for n in (1, 2, 3)]
    assert said == [*waves, ("verifying", 6), ("comparing the modes", 6)]


@pytest.mark.parametrize("command", ["drift", "recalibrate"])
def test_the_former_name_of_answer_is_refused_by_a_hint(run, command):
    result = run(command, BROKEN, "--data", TRAIN, "--output", "logits")
    assert result.exit_code == 2
    assert "use --answer to name an output of the model" in result.stderr
    assert "--output" not in run(command, "--help").stdout


def test_a_network_trained_on_batch_statistics(tmp_path: Path, run: Any) -> None:
    path = classifier(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=FAR_OFF, labels=SIDES > 0)
    for labels in ((), ("--labels", "labels")):
        arguments = (path, "--data", tmp_path / "data.npz", *labels)
        output = run("drift", *arguments)
        assert "inference is broken, and bnstat recalibrate mends it" in output.stdout
        document = json.loads(run("drift", *arguments, "--json").stdout)
        assert document["trained_with"] == "batch-statistics"
        assert document["evidence"]["data"]["trained_with"] == "batch-statistics"
        assert document["evidence"]["file"]["trained_with"] == "unknown"
        copy = tmp_path / f"copy{len(labels)}.keras"
        result = run("recalibrate", *arguments, "-o", copy)
        assert (result.exit_code, result.stderr) == (0, "")
        assert copy.exists()


def test_a_network_trained_in_inference_mode(tmp_path: Path, run: Any) -> None:
    path = classifier(tmp_path / "model.keras", gain=0.4)
    np.savez(tmp_path / "data.npz", x=WIDE)
    output = run("drift", path, "--data", tmp_path / "data.npz").stdout
    assert "recalibrate would break the network" in output
    assert "mends" not in output
    copy, before = tmp_path / "copy.keras", path.read_bytes()
    arguments = ("recalibrate", path, "--data", tmp_path / "data.npz")
    refused = run(*arguments, "-o", copy)
    assert (refused.exit_code, refused.stdout) == (2, "")
    for text in ("was trained in inference mode", "mutual information", "--force"):
        assert text in refused.stderr
    assert not copy.exists()
    assert run(*arguments, "--in-place").exit_code == 2
    assert path.read_bytes() == before
    for options in (("--dry-run",), ("-o", copy, "--force")):
        result = run(*arguments, *options)
        assert result.exit_code == 0
        assert "warning: the model was trained in inference mode" in result.stderr
        assert copy.exists() == ("--force" in options)


def test_a_lower_accuracy_is_refused(tmp_path: Path, run: Any) -> None:
    path = classifier(tmp_path / "model.keras", activation="linear")
    np.savez(tmp_path / "data.npz", x=UNEQUAL, labels=UNEQUAL.mean(axis=1) > 0)
    arguments = ("--data", tmp_path / "data.npz", "--labels", "labels")
    output = run("drift", path, *arguments).stdout
    assert "right more often with these statistics: keep them" in output
    # The evidence cannot judge statistics that were updated.
    updated, copy = tmp_path / "updated.keras", tmp_path / "copy.keras"
    bnstat.apply(path, {"bn": {"moving_variance": np.full(4, 2.0, "float32")}}, updated)
    for original in (path, updated):
        refused = run("recalibrate", original, *arguments, "-o", copy)
        assert refused.exit_code == 2
        assert "would lose accuracy with the new statistics: 100.0 % before, " in refused.stderr
        assert not copy.exists()
    assert run("recalibrate", updated, *arguments, "-o", copy, "--force").exit_code == 0


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


@pytest.fixture
def fine_tuned(tmp_path: Path) -> Path:
    """A network with other than the initial statistics, stored as not trainable."""
    original = classifier(tmp_path / "original.keras", activation="linear", trainable=False)
    path = tmp_path / "model.keras"
    bnstat.apply(original, {"bn": {"moving_variance": np.full(4, 2.0, "float32")}}, path)
    return path


def test_drift_does_not_recommend_recalibration_where_the_stored_statistics_are_better(
    fine_tuned: Path, tmp_path: Path, run: Any
) -> None:
    np.savez(tmp_path / "data.npz", x=UNEQUAL, labels=UNEQUAL.mean(axis=1) > 0)
    arguments = ("drift", fine_tuned, "--data", tmp_path / "data.npz", "--labels", "labels")
    output = run(*arguments).stdout
    assert (
        "the network needs the stored statistics and must not be recalibrated (accuracy 100.0 % "
        "with the stored statistics, "
    ) in output
    assert "adapts them" not in output
    # The statistics of small batches are inaccurate, so they prove nothing.
    small = run(*arguments, "--batch-size", "4").stdout
    assert "those of batches of 4 are inaccurate" in small
    assert "must not be recalibrated" not in small


def test_drift_recommends_recalibration_of_frozen_layers_if_it_is_better(
    fine_tuned: Path, tmp_path: Path, run: Any
) -> None:
    np.savez(tmp_path / "data.npz", x=FAR_OFF, labels=SIDES > 0)
    arguments = (fine_tuned, "--data", tmp_path / "data.npz", "--labels", "labels")
    assert "bnstat recalibrate adapts them" in run("drift", *arguments).stdout
    result = run("recalibrate", *arguments, "-o", tmp_path / "copy.keras")
    assert (result.exit_code, result.stderr) == (0, "")


def test_frozen_layers_without_labels(fine_tuned: Path, tmp_path: Path, run: Any) -> None:
    np.savez(tmp_path / "data.npz", x=UNEQUAL)
    arguments = (fine_tuned, "--data", tmp_path / "data.npz")
    output = run("drift", *arguments).stdout
    assert "1 of 1 layers are stored as not trainable, so the network was probably " in output
    assert "adapts them" not in output
    result = run("recalibrate", *arguments, "-o", tmp_path / "copy.keras")
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
    modes = Modes(trained_with, "", 100, *outputs, 1.0, None)
    evidence = ModeEvidence(Evidence("unknown", ""), modes)
    layer = LayerDrift("bn", *[np.ones(2)] * 7, state="healthy")
    result = Drift((layer,), {}, 100, None, evidence)
    text = list(drift.text_lines(result, "m", Screen()))
    assert "1.25 nats with the stored statistics" in text[2]
    line = text[3].strip()
    assert line == (f"the predictions depend more on the input {expected}" if expected else "")
