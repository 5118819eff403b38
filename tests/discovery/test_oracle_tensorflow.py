"""Batch norm in files that TensorFlow 1 and 2 write, against TensorFlow itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

import bnstat
from bnstat.model import ROLES
from tests.builders import named
from tests.builders.graph_mode import layers_of, save_graph
from tests.builders.oracle import check, same_bits

v1 = tf.compat.v1
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:UserWarning")


# TensorFlow 2: modules and bare checkpoints


class Net(tf.Module):
    """A module with these attributes."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def norm(arrays: Mapping[str, Any]) -> Net:
    return Net(**{role: tf.Variable(array, name=role) for role, array in arrays.items()})


def sonnet_norm(arrays: Mapping[str, Any]) -> Net:
    """Batch norm as Sonnet 2 stores it."""
    affine = {"scale": arrays["gamma"], "offset": arrays["beta"]}
    parts = {name: tf.Variable(array, name=f"bn/{name}") for name, array in affine.items()}
    for role in ROLES[2:]:  # the value, its biased sum and its count
        values = {"average": arrays[role], "_hidden": arrays[role] * 0.5, "_counter": 3}
        kept = {name: tf.Variable(value, name=name.strip("_")) for name, value in values.items()}
        parts[role] = Net(**kept)
    return Net(**parts)


def saved(folder: Path, net: Any) -> list[tuple[Path, Path]]:
    """The module saved in several ways: what to load, and the bundle's prefix."""
    tf.train.Checkpoint(net).write(str(folder / "root"))
    tf.train.Checkpoint(net=net).write(str(folder / "child"))
    tf.saved_model.save(net, str(folder / "saved"))
    prefixes = {"root": "root", "child": "child", "saved": "saved/variables/variables"}
    return [(folder / name, folder / prefix) for name, prefix in prefixes.items()]


def test_modules(tmp_path: Path) -> None:
    first, second, third = named.layer(1), named.layer(2, roles=ROLES[2:]), named.layer(3)
    net = Net(block=Net(norm=norm(first)), parts=[norm(second)], norms={"conv/1.x": norm(third)})
    for path, prefix in saved(tmp_path, net):
        model = bnstat.load(path)
        start = "net/" if path.name == "child" else ""
        layers = {"block/norm": first, "parts/0": second, "norms/conv/1.x": third}
        check(model, prefix, {start + name: arrays for name, arrays in layers.items()})
        assert {layer.evidence for layer in model} == {"object-graph"}


def test_sonnet(tmp_path: Path) -> None:
    first, second = named.layer(1), named.layer(2)
    for arrays in (first, second):
        for role in ROLES[2:]:
            arrays[role] = arrays[role].reshape(1, 1, 1, 4)
    for path, prefix in saved(tmp_path, Net(bn1=sonnet_norm(first), bn2=sonnet_norm(second))):
        start = "net/" if path.name == "child" else ""
        check(bnstat.load(path), prefix, {f"{start}bn1": first, f"{start}bn2": second})


def test_a_cycle_and_a_layer_that_two_own(tmp_path: Path) -> None:
    arrays = named.layer(1)
    shared = norm(arrays)
    net = Net(left=Net(norm=shared), right=Net(norm=shared))
    net.left.back = net
    tf.train.Checkpoint(net).write(str(tmp_path / "m"))
    check(bnstat.load(tmp_path / "m"), tmp_path / "m", {"left/norm": arrays})


@pytest.mark.parametrize(
    "labels",
    [
        ROLES,
        ("scale", "offset", "moving_mean", "moving_var"),
        ("scale", "shift", "pop_mean", "pop_variance"),
        ("weight", "bias", "running_mean", "running_var"),
    ],
)
def test_modules_in_memory_use_the_naming_schemes(labels: tuple[str, ...]) -> None:
    arrays = named.layer(1)
    module = norm({label: arrays[role] for label, role in zip(labels, ROLES, strict=True)})
    (layer,) = bnstat.load(module)
    assert all(same_bits(layer.array(role), array) for role, array in arrays.items())


# TensorFlow 1: checkpoints


batch_norm = v1.layers.batch_normalization


def network(**options: Any) -> Any:
    """Two convolutions with batch norm and a third without gamma."""
    x = v1.placeholder(tf.float32, [None, 8, 8, 3])
    for name in ("stem", "block"):
        with v1.variable_scope(name):
            x = v1.layers.conv2d(x, 4, 3, use_bias=False, name="conv")
            x = batch_norm(x, name="bn", **options)
    x = batch_norm(x, scale=False)
    return tf.reduce_sum(tf.cast(x, tf.float32))


SCOPES = ("stem/bn", "block/bn", "batch_normalization")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
def test_layers(tmp_path: Path, training: bool, sharded: bool) -> None:
    def build() -> None:
        network(training=training, epsilon=1.1e-5)

    values = save_graph(tmp_path / "m", build, sharded=sharded, write_meta_graph=True)
    model = bnstat.load(tmp_path / "m")
    check(model, tmp_path / "m", layers_of(values, SCOPES))
    assert [layer.name for layer in model] == list(SCOPES)
    assert [layer.epsilon for layer in model] == [1.1e-5, 1.1e-5, 1e-3]
    # Without the graph beside the checkpoint, neither order nor epsilon is known.
    (tmp_path / "m.meta").unlink()
    model = bnstat.load(tmp_path / "m")
    check(model, tmp_path / "m", layers_of(values, SCOPES))
    assert {(layer.evidence, layer.epsilon) for layer in model} == {("name", None)}


OPTIMIZERS = {
    "adam": lambda: v1.train.AdamOptimizer(),
    "rmsprop": lambda: v1.train.RMSPropOptimizer(0.1, momentum=0.5),
    "rmsprop-centered": lambda: v1.train.RMSPropOptimizer(0.1, centered=True),
    "momentum": lambda: v1.train.MomentumOptimizer(0.1, 0.9),
    "adagrad": lambda: v1.train.AdagradOptimizer(0.1),
    "proximal-adagrad": lambda: v1.train.ProximalAdagradOptimizer(0.1),
    "adagrad-da": lambda: v1.train.AdagradDAOptimizer(0.1, v1.train.get_global_step()),
    "adadelta": lambda: v1.train.AdadeltaOptimizer(0.1),
    "ftrl": lambda: v1.train.FtrlOptimizer(0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["", "train"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_slots_are_not_layers(tmp_path: Path, optimizer: str, scope: str) -> None:
    def build() -> None:
        step = v1.train.create_global_step()
        loss = network(training=True)
        with v1.variable_scope(scope or v1.get_variable_scope()):
            OPTIMIZERS[optimizer]().minimize(loss, step)

    values = save_graph(tmp_path / "m", build)
    own, trainable = 14, 7
    assert len(values) >= own + trainable  # a slot for each, at least
    model = bnstat.load(tmp_path / "m")
    check(model, tmp_path / "m", layers_of(values, SCOPES))
    taken = {verdict.key for verdict in model.explain() if verdict.layer}
    assert taken == {variable.key for layer in model for variable in layer.variables.values()}


@pytest.mark.parametrize("zero_debias", [True, False])
def test_averages_are_shadows_beside_their_variables(tmp_path: Path, zero_debias: bool) -> None:
    def build() -> None:
        network(training=True)
        average = tf.train.ExponentialMovingAverage(0.99, zero_debias=zero_debias)
        average.apply(v1.global_variables())

    values = save_graph(tmp_path / "m", build)
    check(bnstat.load(tmp_path / "m"), tmp_path / "m", layers_of(values, SCOPES))
    with_shadows = bnstat.load(tmp_path / "m", include_shadows=True)
    assert len(with_shadows) == 2 * len(SCOPES)
    for scope in SCOPES:
        shadow = with_shadows[f"{scope}/ExponentialMovingAverage"]
        for role, variable in shadow.variables.items():
            name = f"{scope}/{role}/ExponentialMovingAverage"
            assert variable.key == name
            assert same_bits(shadow.array(role), values[name])


def test_renorm_and_virtual_batches(tmp_path: Path) -> None:
    def build() -> None:
        x = v1.placeholder(tf.float32, [8, 4, 4, 6])
        batch_norm(x, renorm=True, name="renorm", training=True)
        batch_norm(x, virtual_batch_size=2, name="virtual", training=True)
        batch_norm(x, axis=[1, 3], name="axes")
        batch_norm(x, axis=1, name="first")

    values = save_graph(tmp_path / "m", build)
    model = bnstat.load(tmp_path / "m")
    check(model, tmp_path / "m", layers_of(values, ["axes", "first", "renorm", "virtual"]))
    assert set(model["renorm"].extra) == {"moving_stddev", "renorm_mean", "renorm_stddev"}
    assert model["virtual"].shape == (1, 1, 1, 1, 6)
    assert model["axes"].shape == (1, 4, 1, 6)
    assert model["axes"].channels == 24
