"""The rules on models that TensorFlow built and saved."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest

import bnstat
from bnstat.checks import HISTORY_RULES, Finding, check
from bnstat.compare import history
from bnstat.model import ROLES
from tests.checks.cases import CASES, RUNS, START, Case, Layer, Run, sound

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

BY_TOPOLOGY = {("BN013", ""): "warning"}
"""More serious findings, because a Keras model shows the inputs of its layers."""


def saved(folder: Path, layers: Mapping[str, Layer], step: int | None) -> bnstat.Model:
    """Save the layers as a Keras model, with a step in its name if there is one, and load it."""
    inputs = keras.Input((8,))
    outputs = inputs
    for name, layer in layers.items():
        norm = keras.layers.BatchNormalization(
            name=name, epsilon=layer.epsilon, momentum=layer.momentum
        )
        outputs = norm(outputs)
        norm.set_weights([layer.arrays[role] for role in ROLES])
    path = folder / ("model.keras" if step is None else f"model-{step}.keras")
    keras.Model(inputs, outputs).save(path)
    if step is not None:
        # A number is a step only if several files differ by it alone.
        shutil.copyfile(path, folder / f"model-{step + 1}.keras")
    return bnstat.load(path)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_rule_finds_its_model_and_not_the_one_just_short_of_it(
    case: Case, tmp_path: Path
) -> None:
    severity = BY_TOPOLOGY.get((case.rule, case.label), case.severity)

    def found(layer: Layer, step: int | None) -> list[Finding]:
        model = saved(tmp_path, {**case.others, "bn": layer}, step)
        return [
            finding
            for finding in check(model, select=[case.rule])
            if (finding.layer, finding.severity) == ("bn", severity)
        ]

    (finding,) = found(case.found, case.steps[0])
    assert finding.channels.tolist() == list(case.channels)
    assert found(case.short, case.steps[1]) == []


class Norm(tf.Module):
    """The variables of batch norm, for checkpoints with any content."""

    def __init__(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        for role, array in arrays.items():
            setattr(self, role, tf.Variable(array, name=f"{name}/{role}"))


def write_checkpoint(path: Path, layers: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    modules = {name: Norm(name, arrays) for name, arrays in layers.items()}
    tf.train.Checkpoint(**modules).write(str(path))


@pytest.mark.parametrize(("everything", "expected"), [(False, ["BN011"]), (True, [])])
def test_missing_statistics_of_a_checkpoint_of_the_trainable_variables(
    everything: bool, expected: list[str], tmp_path: Path
) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        with v1.variable_scope("bn", use_resource=True):
            variables = [
                v1.get_variable(
                    role, initializer=sound().arrays[role], trainable="moving" not in role
                )
                for role in ROLES
            ]
        images = v1.placeholder(tf.float32, (None, 2, 2, 8))
        v1.nn.fused_batch_norm(images, *variables, is_training=False)
        session.run(v1.global_variables_initializer())
        stored = v1.global_variables() if everything else v1.trainable_variables()
        v1.train.Saver(stored).save(session, str(tmp_path / "model.ckpt"), global_step=7000)
    assert [finding.rule for finding in check(bnstat.load(tmp_path))] == expected


@pytest.mark.parametrize(("gammas", "expected"), [(7, ["BN012"]), (8, [])])
def test_unequal_shapes(gammas: int, expected: list[str], tmp_path: Path) -> None:
    arrays = {**sound().arrays, "gamma": sound(channels=gammas).arrays["gamma"]}
    write_checkpoint(tmp_path / "model", {"bn": arrays})
    assert [finding.rule for finding in check(bnstat.load(tmp_path / "model"))] == expected


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_a_rule_finds_its_run_and_not_the_one_just_short_of_it(run: Run, tmp_path: Path) -> None:
    def found(name: str, checkpoints: Iterable[Mapping[str, Layer]]) -> list[Finding]:
        folder = tmp_path / name
        folder.mkdir()
        for number, layers in enumerate(checkpoints, start=1):
            arrays = {name: layer.arrays for name, layer in layers.items()}
            write_checkpoint(folder / f"model-{number * 100}", arrays)
        return [
            finding
            for finding in check(history(bnstat.load_all(folder)), select=[run.rule])
            if (finding.layer, finding.severity) == (run.layer, run.severity)
        ]

    assert len(found("found", run.found)) == 1
    assert found("short", run.short) == []


def test_every_rule_for_runs_has_a_run() -> None:
    missing = {rule.code for rule in HISTORY_RULES} - {run.rule for run in RUNS}
    assert not missing, f"add runs to RUNS in tests/checks/cases.py: {missing}"


def test_statistics_at_the_start_in_every_checkpoint(tmp_path: Path) -> None:
    for number in range(1, 4):
        arrays = sound(number, **START).arrays
        write_checkpoint(tmp_path / f"model-{number}", {"bn": arrays})
    (finding,) = check(history(bnstat.load_all(tmp_path)))
    assert (finding.rule, finding.severity) == ("BN101", "warning")
