"""The rules on models that TensorFlow built and saved."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

import bnstat
from bnstat.checks import Finding, check
from bnstat.model import ROLES
from tests.checks.cases import CASES, Case, Layer, sound

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

BY_TOPOLOGY = {("BN013", ""): "warning"}
"""More serious findings, because a Keras model shows the inputs of its layers."""


OF_SETTINGS = {"BN003", "BN005", "BN013", "BN014"}
"""Rules that depend on more of a file than its values: step, epsilon, inputs and momentum."""


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


@pytest.mark.parametrize("case", [case for case in CASES if case.rule in OF_SETTINGS], ids=str)
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
