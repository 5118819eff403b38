"""`bnstat recalibrate` and `bnstat drift` on the demo networks."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import bnstat
from tests.builders.digits import DATA, TEST, TRAIN

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
    copy, original = bnstat.load(tmp_path / "copy"), bnstat.load(BROKEN)
    moved = {
        layer.name: bool((layer.moving_mean != original[layer.name].moving_mean).any())
        for layer in copy
    }
    assert moved == {"block1/bn": False, "block2/bn": True, "block3/bn": False}


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
        assert "one of -o COPY, --in-place, --dry-run" in result.stderr
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
        (("--data", str(TEST), "--labels", "classes"), "has no 'classes' for --labels"),
        (("--data", str(TEST), "--image-size", "big"), "'big' is neither SIZE nor HEIGHTxWIDTH"),
        (("--data", str(TEST), "--scale", "1/0"), "'1/0' is not a number"),
        (("--data", str(TEST), "--layer", "x"), "no batch-norm layer matches 'x'"),
        ((), "Missing option '--data'"),
    ],
)
def test_what_is_wrong_is_one_line(run, arguments, message):
    result = run("drift", HEALTHY, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_a_model_without_batch_norm(run, tmp_path):
    import tensorflow as tf

    tf.saved_model.save(tf.Module(), str(tmp_path / "plain"))
    result = run("drift", tmp_path / "plain", "--data", TEST)
    assert result.exit_code == 2
    assert "has no batch-norm layer" in result.stderr


def test_progress_names_the_wave():
    from bnstat import recalibrate

    said = []

    def track(batches, what):
        said.append((what, len(batches)))
        return batches

    recalibrate(BROKEN, Path(TEST), exact=True, track=track)
    waves = [(f"wave {n} of 3", 6) for n in (1, 2, 3)]
    assert said == [*waves, ("verifying", 6), ("comparing the modes", 6)]


@pytest.mark.parametrize("feed", ["keep_prob", "keep_prob=", "=1", "keep_prob=much"])
def test_what_is_no_feed(run, feed: str) -> None:
    result = run("drift", "model", "--data", "x.npz", "--feed", feed)
    assert result.exit_code == 2
    assert "is not NAME=NUMBER" in result.stderr


@pytest.mark.parametrize("command", ["drift", "recalibrate"])
def test_the_former_name_of_answer_is_refused_by_a_hint(run, command):
    result = run(command, BROKEN, "--data", TRAIN, "--output", "logits")
    assert result.exit_code == 2
    assert "use --answer to name an output of the model" in result.stderr
    assert "--output" not in run(command, "--help").stdout
