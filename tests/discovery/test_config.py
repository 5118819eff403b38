"""Batch norm among the layers that a Keras file describes, and the roles of their variables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnstat
from bnstat.discovery.configuration import from_layers, is_batch_norm
from bnstat.formats.contents import Contents, Layer
from bnstat.model import ROLES, Source, Variable
from tests.discovery.made import variable

RENORM = ("moving_stddev", "renorm_mean", "renorm_stddev")


def sight(
    labels: Sequence[str],
    class_name: str | None = None,
    config: Any = None,
    *,
    name: str = "layer",
    key: str = "layers/thing",
    shapes: Any = None,
    dtype: str = "float32",
    writer: str | None = "Keras 3.0.0",
) -> Any:
    """Return the sighting of one layer with these variables, or None."""
    held = {label: f"key/{label}" for label in labels}
    shaped = zip(held.values(), shapes or [(3,)] * len(labels), strict=True)
    variables = {key: variable(key, shape, dtype) for key, shape in shaped}
    layer = Layer(name, class_name, config or {}, held, key)
    found = from_layers(Contents(Source("", "", writer=writer), variables, layers=(layer,)))
    assert len(found) <= 1
    return found[0] if found else None


def numbers(count: int) -> list[str]:
    return [str(index) for index in range(count)]


def assigned(sighting: Any) -> dict[str, str]:
    """Return role or label -> number of its variable."""
    keys = {**sighting.roles, **sighting.extra}
    return {role: key.removeprefix("key/") for role, key in keys.items()}


BATCH_NORMS = [
    "BatchNormalization", "BatchNormalizationV1", "BatchNormalizationV2", "SyncBatchNormalization",
    "TpuBatchNormalization", "FreezableBatchNorm", "BatchRenormalization", "Custom>MyBatchNorm",
    "package.module.batch_norm",
]  # fmt: skip
OTHERS = [
    "LayerNormalization", "GroupNormalization", "Normalization", "batch_norm>Dense", "Dense", None,
]  # fmt: skip


@pytest.mark.parametrize("class_name", [*BATCH_NORMS, *OTHERS])
def test_classes(class_name: str | None) -> None:
    assert is_batch_norm(class_name, {}) is (class_name in BATCH_NORMS)
    assert is_batch_norm(class_name, {"moving_variance_initializer": {}}), "a subclass"


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("renorm", [True, False])
def test_a_configuration_assigns_the_roles(scale: bool, center: bool, renorm: bool) -> None:
    config = {"scale": scale, "center": center, "renorm": renorm}
    expected = [*["gamma"] * scale, *["beta"] * center, *ROLES[2:], *RENORM * renorm]
    found = sight(numbers(len(expected)), "BatchNormalization", config)
    assert assigned(found) == {role: str(index) for index, role in enumerate(expected)}
    assert not found.undecided


@pytest.mark.parametrize("shapes", [[(3,)], [(3,)] * 3, [(3,)] * 5, [(3,), (3,), (3,), (4,)]])
def test_variables_that_do_not_fit_the_configuration_are_undecided(shapes: Any) -> None:
    config, count = {"scale": True, "center": True}, len(shapes)
    found = sight(numbers(count), "BatchNormalization", config, shapes=shapes)
    assert (found.roles, len(found.undecided)) == ({}, count)
    assert any(f"{count} variables" in note and "4" in note for note in found.notes)


@pytest.mark.parametrize(("key", "name"), [("layers/batch_normalization_1", "x"), ("a/b", "c/bn2")])
def test_weights_alone_in_a_layer_named_batch_norm(key: str, name: str) -> None:
    four, three, two, seven = (sight(numbers(count), key=key, name=name) for count in (4, 3, 2, 7))
    assert assigned(four) == dict(zip(ROLES, numbers(4), strict=True))
    assert assigned(three) == {"moving_mean": "1", "moving_variance": "2"}
    assert assigned(two) == {"moving_mean": "0", "moving_variance": "1"}
    assert assigned(seven) == dict(zip((*ROLES, *RENORM), numbers(7), strict=True))
    assert (four.evidence, four.notes, four.undecided) == ("name", (), ())
    assert three.undecided == ("key/0",)
    for count in (1, 8):
        assert sight(numbers(count), key=key, name=name) is None


def test_weights_alone_in_a_layer_of_another_name() -> None:
    four = sight(numbers(4))
    assert assigned(four) == dict(zip(ROLES, numbers(4), strict=True))
    assert any("shapes" in note for note in four.notes)
    for count in (1, 2, 8):
        assert sight(numbers(count)) is None


@pytest.mark.parametrize("count", [3, 5, 6, 7])
def test_other_numbers_of_vectors_are_undecided(count: int) -> None:
    found = sight(numbers(count))
    assert (found.roles, found.extra) == ({}, {})
    assert found.undecided == tuple(f"key/{number}" for number in numbers(count))
    assert sight(numbers(count), shapes=[(3, 3)] * count) is None
    assert sight(numbers(count), shapes=[(2 * count,)] * (count - 1) + [(3,)]) is None
    assert sight(numbers(count), dtype="int32") is None


@pytest.mark.parametrize(("count", "variance"), [(3, 2), (5, 1), (6, 2), (7, 3)])
def test_a_negative_variance_rules_batch_norm_out(count: int, variance: int) -> None:
    read: list[int] = []

    def counted(number: int) -> Variable:
        def values() -> np.ndarray:
            read.append(number)
            return np.full(3, -1 if number == variance else 1, np.float32)

        return Variable(str(number), "", "float32", (3,), values)

    variables = {str(number): counted(number) for number in range(count)}
    layer = Layer("layer", None, {}, {key: key for key in variables}, "layers/thing")
    contents = Contents(Source("", ""), variables, layers=(layer,))
    assert from_layers(contents) == []
    assert read == [variance]
    assert len(from_layers(contents, values=False)) == 1
    assert read == [variance]


@pytest.mark.parametrize("shapes", [[(3,), (3,), (3,), (4,)], [(3, 3)] * 4, [()] * 4, [(0,)] * 4])
def test_four_variables_of_another_kind_are_not_batch_norm(shapes: list[tuple[int, ...]]) -> None:
    assert sight(numbers(4), shapes=shapes) is None
    assert sight(numbers(4), dtype="int64") is None


def test_another_class_rules_numbered_variables_out() -> None:
    assert sight(numbers(4), "AttentionLayer", {"units": 3}, key="layers/bn") is None
    assert sight(numbers(2), "LayerNormalization", {"epsilon": 0.001}) is None


def test_variable_names_identify_a_layer_of_a_users_class() -> None:
    found = sight(ROLES, "Custom>MyNorm")
    assert found.evidence == "name"
    assert assigned(found) == {role: role for role in ROLES}
    assert sight(("gamma", "beta"), "LayerNormalization") is None
    assert sight(("moving_mean", "gamma")) is None
    assert sight(("mean", "variance", "count"), "Normalization") is None


def test_names_of_keras_1() -> None:
    labels = ("gamma", "beta", "running_mean", "running_std")
    old = sight(labels, writer=None)
    assert assigned(old) == dict(zip(ROLES, labels, strict=True))
    assert any("running_std" in note for note in old.notes)
    known = sight(labels, writer="Keras 1.2.2")
    assert known.notes == ()
    prefixed = [f"batchnormalization_1_{label}" for label in labels]
    assert assigned(sight(prefixed)) == dict(zip(ROLES, prefixed, strict=True))


def test_the_exact_name_wins_and_two_similar_names_are_ignored() -> None:
    found = sight((*ROLES, "other_gamma"), "BatchNormalization")
    assert assigned(found)["gamma"] == "gamma"
    several = sight(("a_gamma", "b_gamma", *ROLES[1:]), "BatchNormalization")
    assert "gamma" not in assigned(several)


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        (-1, -1), ([3], 3), ([1, 3], (1, 3)), ({"class_name": "__tuple__", "items": [1]}, 1),
        ([], None), (True, None), ("3", None), ([1, None], None), (None, None),
    ],
)  # fmt: skip
def test_axes(axis: object, expected: object) -> None:
    assert sight(ROLES, "BatchNormalization", {"axis": axis}).axis == expected


def test_settings_come_from_the_file() -> None:
    config = {"epsilon": 1, "momentum": 0.5, "trainable": False}
    for settings, expected in ((config, (1.0, 0.5, None, False)), ({}, (None,) * 4)):
        found = sight(ROLES, "BatchNormalization", settings)
        assert (found.epsilon, found.momentum, found.axis, found.trainable) == expected


@pytest.mark.parametrize(("mode", "notes"), [(0, 0), (1, 1), (2, 1)])
def test_modes_of_keras_1_that_leave_the_moving_statistics_unused(mode: int, notes: int) -> None:
    assert len(sight(ROLES, "BatchNormalization", {"mode": mode}).notes) == notes


def test_a_layer_without_variables() -> None:
    assert sight((), "BatchNormalization", {"momentum": 0.9}) is not None
    assert sight((), "ConvBatchNormRelu", {"filters": 3}) is None
    assert sight((), "Dense", {"units": 3}) is None


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
@pytest.mark.parametrize("name", ["m.h5", "m.keras"])
def test_inputs_of_layers(library: str, name: str, tmp_path: Path) -> None:
    keras = pytest.importorskip(library)
    layers = keras.layers

    def norm(name: str) -> Any:
        return layers.BatchNormalization(name=name)

    x = layers.Input((4, 4, 2), name="x")
    conv = layers.Conv2D(2, 1, name="conv")(x)
    inner_x = layers.Input((4, 4, 2), name="inner_x")
    after = layers.ReLU(name="relu")(norm("first")(inner_x))
    inner = keras.Model(inner_x, [norm("left")(after), norm("right")(after)], name="inner")
    heads = [norm("one")(conv), norm("two")(conv), norm("three")(x), *inner(conv)]
    keras.Model(x, heads).save(tmp_path / name)
    inputs = {layer.name.rpartition("/")[2]: layer.inputs for layer in bnstat.load(tmp_path / name)}
    assert inputs["one"] == inputs["two"] == {("config", "conv:0:0")}
    assert inputs["three"] == {("config", "x:0:0")}
    assert inputs["left"] == inputs["right"]
    assert len(inputs["left"]) == 1
    assert inputs["left"].isdisjoint(inputs["one"])
    assert not inputs["first"], "the input of a nested model may be any tensor"
