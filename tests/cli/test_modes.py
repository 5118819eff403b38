"""`bnstat drift` and `bnstat recalibrate` on networks that were trained in either mode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import bnstat
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
