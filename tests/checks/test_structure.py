"""Rules about the variables of a layer: BN011 to BN013, and BN016."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnstat
from bnstat.checks import check
from bnstat.model import ROLES, BatchNorm, Source
from tests.checks.cases import ONES, START, ZEROS, find, norm, sound, start, without
from tests.output import models

BOTH = "moving mean and moving variance are not in the file"


@pytest.mark.parametrize(
    ("roles", "fields", "severity", "message"),
    [
        (("gamma", "beta"), {"evidence": "config"}, "error", BOTH),
        (("moving_mean",), {"evidence": "config"}, "error",
         "moving variance is not in the file"),
        (("gamma",), {"evidence": "name"}, "warning", BOTH),
        (("gamma",), {"evidence": "graph", "uses_batch_statistics": True}, "info",
         "exported in training mode: the layer uses batch statistics and stores none"),
    ],
)  # fmt: skip
def test_missing_statistics(
    roles: tuple[str, ...], fields: dict[str, Any], severity: str, message: str
) -> None:
    layer = models.layer("bn", dict.fromkeys(roles, ONES), **fields)
    (finding,) = check(models.model(incomplete=[layer]))
    assert (finding.rule, finding.severity, finding.layer) == ("BN011", severity, "bn")
    assert finding.message == message


def undecided(count: int, **fields: Any) -> BatchNorm:
    variables = [models.variable(f"norm/vars/{number}", np.ones(4)) for number in range(count)]
    return BatchNorm("norm", {}, undecided=variables, **fields)


def test_complete_or_undecided_layers_lack_no_statistics() -> None:
    assert find("BN011", models.usual("bn"), undecided(1)) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "the roles of 3 variables of shape [4] are not stored; the layer may not be batch "
         "norm"),
        ({"evidence": "config"}, "the roles of 3 variables of shape [4] are not stored"),
    ],
)  # fmt: skip
def test_undecided_layers(fields: dict[str, Any], message: str) -> None:
    (finding,) = check(models.model(incomplete=[undecided(3, **fields)]))
    assert (finding.rule, finding.severity, finding.layer) == ("BN016", "info", "norm")
    assert finding.message == message


def test_an_undecided_variable_of_a_complete_layer() -> None:
    layer = models.usual("bn", undecided=[models.variable("bn/vars/0", np.ones(8))])
    (finding,) = find("BN016", layer)
    assert finding.message == "the role of 1 variable of shape [8] is not stored"
    assert find("BN016", models.usual("bn")) == []


def test_unequal_shapes() -> None:
    mixed = models.layer("bn", {"gamma": np.ones(3), **start(4)})
    (finding,) = find("BN012", mixed)
    assert (finding.severity, finding.layer) == ("error", "bn")
    shapes = "different shapes: gamma [3], moving mean [4], moving variance [4]"
    assert finding.message.endswith(shapes)
    others = [models.usual("a", 3), models.usual("b", 4)]
    (finding,) = find("BN012", mixed, *others)
    assert finding.message.endswith("two layers may have been saved under one name")
    (finding,) = find("BN012", mixed, others[0])
    assert finding.message.endswith(shapes)


def test_dimensions_of_1_do_not_make_shapes_unequal() -> None:
    arrays = {role: array.reshape(1, 1, 1, 4) for role, array in start(4).items()}
    assert find("BN012", models.layer("bn", {"gamma": np.ones(4), **arrays})) == []


def test_every_rule_accepts_unequal_shapes() -> None:
    layer = models.layer("bn", {"gamma": np.ones(3), "beta": np.ones(2), **start(4)})
    assert "BN012" in {finding.rule for finding in check(models.model(layer))}


@pytest.mark.parametrize(
    "statistics",
    [
        START,
        {"moving_mean": ZEROS, "moving_variance": ZEROS},
        {"moving_mean": ZEROS, "moving_variance": ONES * 2},
    ],
)
def test_initial_and_dead_layers_are_not_copies(statistics: dict[str, np.ndarray]) -> None:
    layers = [norm(sound(seed, **statistics), name) for seed, name in enumerate("ab")]
    assert find("BN013", *layers) == []


def test_the_message_contains_the_name_of_the_original() -> None:
    message = "has the same moving mean and variance as 'a', and the same gamma and beta"
    (finding,) = find("BN013", norm(sound(), "a"), norm(sound()))
    assert (finding.layer, finding.message) == ("bn", message)
    (finding,) = find("BN013", norm(sound(), "a"), norm(sound(beta=sound(1).arrays["beta"])))
    end = ", but another gamma or beta"
    assert finding.message == message.replace(", and the same gamma and beta", end)


@pytest.mark.parametrize(
    ("format_", "first", "second", "severity"),
    [
        ("keras-h5", [], [], "info"),
        ("onnx", [], [], "warning"),
        ("saved-model", [("", "x")], [("", "x")], "info"),
        ("onnx", [("", "x")], [("", "x"), ("", "y")], "info"),
        ("saved-model", [("", "x")], [("", "y")], "warning"),
        ("saved-model", [("f", "x")], [("g", "x")], "info"),
    ],
)
def test_the_graph_decides_how_serious_a_copy_is_else_the_writer(
    format_: str, first: list[tuple[str, str]], second: list[tuple[str, str]], severity: str
) -> None:
    original = norm(sound(), "a", inputs=frozenset(first))
    copy = norm(sound(gamma=sound(1).arrays["gamma"]), "b", inputs=frozenset(second))
    model = models.model(original, copy, source=Source("m", format_))
    (finding,) = check(model, select=["BN013"])
    assert (finding.layer, finding.severity) == ("b", severity)


@pytest.mark.parametrize(("is_bare", "severity"), [(False, "warning"), (True, "info")])
def test_a_gamma_that_only_one_layer_has_differs(is_bare: bool, severity: str) -> None:
    bare = without(sound(), "gamma")
    layers = norm(bare if is_bare else sound(), "a"), norm(bare, "b")
    (finding,) = check(models.model(*layers, source=Source("m.onnx", "onnx")), select=["BN013"])
    assert finding.severity == severity


@pytest.mark.parametrize(("everything", "expected"), [(False, ["BN011"]), (True, [])])
def test_missing_statistics_of_a_checkpoint_of_the_trainable_variables(
    everything: bool, expected: list[str], tmp_path: Path
) -> None:
    tf = pytest.importorskip("tensorflow")
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
