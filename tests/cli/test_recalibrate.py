"""`bnstat recalibrate` and `bnstat drift` on the demo networks, and on networks of either mode."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import bnstat
from bnstat.checks.training_mode import Evidence
from bnstat.estimate.drift import Drift, LayerDrift
from bnstat.estimate.modes import ModeEvidence, Modes, Outputs
from bnstat.estimate.recalibration import Mended, Recalibration
from bnstat.output import drift
from bnstat.output.terminal.screen import Screen
from tests.builders.digits import DATA, TEST, TRAIN
from tests.builders.modes import FAR_OFF, SIDES, UNEQUAL, WIDE, classifier

BROKEN = DATA / "digits_no_updates/saved_model"
HEALTHY = DATA / "digits/saved_model"
UPDATED = {"bn": {"moving_variance": np.full(4, 2.0, "float32")}}
"""New values for a network of `classifier`, other than the initial ones."""


def test_a_copy_is_mended_and_the_original_is_not(run, tmp_path):
    copy = tmp_path / "copy"
    result = run("recalibrate", BROKEN, "--data", TRAIN, "--labels", "labels", "-o", copy)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    ((old, new),) = re.findall(r"([\d.]+) % before, ([\d.]+) % after", result.stdout)
    assert float(old) == pytest.approx(20.2, abs=1)
    assert float(new) > 95
    assert result.stdout.splitlines()[-1] == "3 of 3 layers recalibrated"
    assert run("check", BROKEN).exit_code == 1
    assert run("check", copy).exit_code == 0
    drift = run("drift", copy, "--data", TEST, "--labels", "labels", "--fail-on", "0.1")
    assert drift.exit_code == 0
    (accuracy,) = re.findall(r"accuracy  ([\d.]+) %", drift.stdout)
    assert float(accuracy) == pytest.approx(97.2, abs=1)
    assert drift.stdout.splitlines()[-1].startswith("healthy: ")


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
        assert "exactly one of -o COPY, --in-place and --dry-run" in result.stderr
    assert not (tmp_path / "copy").exists()


@pytest.fixture
def darker(tmp_path: Path) -> tuple[str, str]:
    """The option --data for images of another distribution."""
    with np.load(TEST) as arrays:
        np.savez(tmp_path / "darker.npz", images=arrays["images"] * 0.25)
    return "--data", str(tmp_path / "darker.npz")


def test_drift_says_what_it_is(run, darker):
    broken = run("drift", BROKEN, "--data", TEST, "--fail-on", "1")
    assert broken.exit_code == 1
    assert "never updated: " in broken.stdout
    shifted = run("drift", HEALTHY, *darker, "--fail-on", "1")
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
        ("--data nowhere.npz", "nowhere.npz: does not exist"),
        ("--data {0} --labels classes", "has no array 'classes' for --labels"),
        ("--data {0} --image-size big", "'big' is neither SIZE nor HEIGHTxWIDTH"),
        ("--data {0} --scale 1/0", "'1/0' is not a number"),
        ("--data {0} --layer x", "no batch-norm layer matches 'x'"),
        *(
            (f"--data {{0}} --feed {feed}", "is not NAME=NUMBER")
            for feed in ("p", "p=", "=1", "p=x")
        ),
        ("--data {0} --output logits", "use --answer to name the model's output"),
        ("", "Missing option '--data'"),
    ],
)
def test_wrong_arguments_are_reported_in_one_line(run, arguments, message):
    result = run("drift", HEALTHY, *arguments.format(TEST).split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


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


def saved(folder: Path, **arrays: np.ndarray) -> tuple[object, ...]:
    """Return the option --data for these arrays, and --labels if there are labels."""
    np.savez(folder / "data.npz", **arrays)
    return ("--data", folder / "data.npz", *(("--labels", "labels") if "labels" in arrays else ()))


FAR_OFF_LABELS, UNEQUAL_LABELS = SIDES > 0, UNEQUAL.mean(axis=1) > 0


@pytest.mark.parametrize("labels", [{}, {"labels": FAR_OFF_LABELS}])
def test_a_network_trained_on_batch_statistics(run, tmp_path, labels):
    arguments = (classifier(tmp_path / "model.keras"), *saved(tmp_path, x=FAR_OFF, **labels))
    output = run("drift", *arguments).stdout
    assert "inference is broken, and bnstat recalibrate mends it" in output
    document = json.loads(run("drift", *arguments, "--json").stdout)
    assert document["trained_with"] == "batch-statistics"
    assert document["evidence"]["data"]["trained_with"] == "batch-statistics"
    assert document["evidence"]["file"]["trained_with"] == "unknown"
    result = run("recalibrate", *arguments, "-o", tmp_path / "copy.keras")
    assert (result.exit_code, result.stderr) == (0, "")
    assert (tmp_path / "copy.keras").exists()


def test_a_network_trained_in_inference_mode(run, tmp_path):
    path, copy = classifier(tmp_path / "model.keras", gain=0.4), tmp_path / "copy.keras"
    arguments, before = (path, *saved(tmp_path, x=WIDE)), path.read_bytes()
    output = run("drift", *arguments).stdout
    assert "recalibrate would break the network" in output
    assert "mends" not in output
    refused = run("recalibrate", *arguments, "-o", copy)
    assert (refused.exit_code, refused.stdout) == (2, "")
    for text in ("was trained in inference mode", "mutual information", "--force"):
        assert text in refused.stderr
    assert not copy.exists()
    assert run("recalibrate", *arguments, "--in-place").exit_code == 2
    assert path.read_bytes() == before
    for options in (("--dry-run",), ("-o", copy, "--force")):
        result = run("recalibrate", *arguments, *options)
        assert result.exit_code == 0
        assert "warning: the model was trained in inference mode" in result.stderr
        assert copy.exists() == ("--force" in options)


def test_a_lower_accuracy_is_refused(run, tmp_path):
    path = classifier(tmp_path / "model.keras", activation="linear")
    arguments = saved(tmp_path, x=UNEQUAL, labels=UNEQUAL_LABELS)
    output = run("drift", path, *arguments).stdout
    assert "right more often with these statistics: keep them" in output
    # The evidence cannot judge statistics that were updated.
    updated, copy = tmp_path / "updated.keras", tmp_path / "copy.keras"
    bnstat.apply(path, UPDATED, updated)
    for original in (path, updated):
        refused = run("recalibrate", original, *arguments, "-o", copy)
        assert refused.exit_code == 2
        assert "would lose accuracy with the new statistics: 100.0 % before, " in refused.stderr
        assert not copy.exists()
    assert run("recalibrate", updated, *arguments, "-o", copy, "--force").exit_code == 0


def test_where_nothing_shows_the_mode_both_are_named(run, tmp_path):
    path = classifier(tmp_path / "model.keras", activation="linear")
    arguments = (path, *saved(tmp_path, x=FAR_OFF))
    output = run("drift", *arguments).stdout
    assert "does not show which is true" in output
    assert "stored statistics: " in output
    result = run("recalibrate", *arguments, "-o", tmp_path / "copy.keras")
    assert result.exit_code == 0
    assert "the old model is right" in result.stderr
    assert (tmp_path / "copy.keras").exists()


def test_updated_statistics_are_recalibrated_without_a_word(run, darker, tmp_path):
    result = run("recalibrate", HEALTHY, *darker, "-o", tmp_path / "copy")
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(run("drift", HEALTHY, *darker, "--json").stdout)
    assert (document["state"], document["trained_with"]) == ("shifted", "unknown")
    assert document["evidence"]["data"] is None  # No second pass was needed.


@pytest.fixture
def fine_tuned(tmp_path: Path) -> Path:
    """A network with other than the initial statistics, stored as not trainable."""
    original = classifier(tmp_path / "original.keras", activation="linear", trainable=False)
    path = tmp_path / "model.keras"
    bnstat.apply(original, UPDATED, path)
    return path


def test_drift_recommends_no_recalibration_to_lower_accuracy(run, fine_tuned, tmp_path):
    arguments = ("drift", fine_tuned, *saved(tmp_path, x=UNEQUAL, labels=UNEQUAL_LABELS))
    output = run(*arguments).stdout
    text = "the network needs the stored statistics and must not be recalibrated (accuracy 100.0 % "
    assert f"{text}with the stored statistics, " in output
    assert "adapts them" not in output
    # The statistics of small batches are inaccurate, so they prove nothing.
    small = run(*arguments, "--batch-size", "4").stdout
    assert "those of batches of 4 are inaccurate" in small
    assert "must not be recalibrated" not in small


def test_drift_recommends_recalibration_of_frozen_layers_if_it_is_better(run, fine_tuned, tmp_path):
    arguments = (fine_tuned, *saved(tmp_path, x=FAR_OFF, labels=FAR_OFF_LABELS))
    assert "bnstat recalibrate adapts them" in run("drift", *arguments).stdout
    result = run("recalibrate", *arguments, "-o", tmp_path / "copy.keras")
    assert (result.exit_code, result.stderr) == (0, "")


def test_frozen_layers_without_labels(run, fine_tuned, tmp_path):
    arguments = (fine_tuned, *saved(tmp_path, x=UNEQUAL))
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
def test_the_better_mutual_information_is_named(own, trained_with, expected) -> None:
    outputs = [Outputs(0, 1, 1, None, number) for number in (1.25, own)]
    modes = Modes(trained_with, "", 100, *outputs, 1.0, None)
    evidence = ModeEvidence(Evidence("unknown", ""), modes)
    layer = LayerDrift("bn", *[np.ones(2)] * 7, state="healthy")
    result = Drift((layer,), {}, 100, None, evidence)
    text = list(drift.text_lines(result, "m", Screen()))
    assert "1.25 nats with the stored statistics" in text[2]
    line = text[3].strip()
    assert line == (f"the predictions depend more on the input {expected}" if expected else "")
