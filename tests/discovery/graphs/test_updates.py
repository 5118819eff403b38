"""What training graphs assign, moving statistics and all else, against what TensorFlow reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.training import moving_averages

import bnstat
from bnstat.model import ROLES, Model

v1 = tf.compat.v1
CHANNELS = 4

Layer = dict[str, Any]
"""Role -> the variable."""

Average = Callable[[Any, Any, float], Any]
"""Moves a variable towards a tensor, keeping a share of it."""


def plain(variable: Any, value: Any, momentum: float) -> Any:
    return moving_averages.assign_moving_average(variable, value, momentum, zero_debias=False)


def debiased(variable: Any, value: Any, momentum: float) -> Any:
    return moving_averages.assign_moving_average(variable, value, momentum, zero_debias=True)


def debiased_2017(variable: Any, value: Any, momentum: float) -> Any:
    """As TensorFlow 1.0 to 1.12 did: the statistic loses its difference to the fraction."""
    with v1.variable_scope(variable.op.name):
        biased = get("biased", v1.zeros_initializer())
        step = v1.get_variable("local_step", [], "float32", v1.zeros_initializer(), trainable=False)
        rate = tf.constant(1 - momentum)
        moved = [v1.assign_sub(biased, (biased - value) * rate), v1.assign_add(step, 1)]
        with tf.control_dependencies(moved):
            fraction = biased.read_value() / (1 - tf.pow(1.0 - rate, step.read_value()))
        return v1.assign_sub(variable, variable - fraction)


AVERAGES = {"plain": plain, "debiased": debiased, "debiased-2017": debiased_2017}


def get(name: str, initializer: Any = None, trainable: bool = False) -> Any:
    initializer = initializer or v1.ones_initializer()
    return v1.get_variable(name, [CHANNELS], "float32", initializer, trainable=trainable)


def batch_norm(
    x: Any,
    scope: str,
    training: Any,
    *,
    fused: bool,
    averages: tuple[Average, Average],
    in_place: bool = False,
    layers: dict[str, Layer],
) -> Any:
    """A layer as the authors of TensorFlow 1 wrote it."""
    with v1.variable_scope(scope):
        layer = {role: get(role, trainable=role in ROLES[:2]) for role in ROLES}
        layers[scope] = layer
        gamma, beta, *moving = layer.values()

        def train() -> Any:
            if fused:
                y, *batch = v1.nn.fused_batch_norm(x, gamma, beta, epsilon=1e-3)[:3]
            else:
                batch = tf.nn.moments(x, [0, 1, 2])
                y = tf.nn.batch_normalization(x, *batch, beta, gamma, 1e-3)
            pairs = zip(averages, moving, batch, strict=True)
            updates = [average(variable, value, 0.9) for average, variable, value in pairs]
            if in_place:
                with tf.control_dependencies(updates):
                    return tf.identity(y)
            for update in updates:
                v1.add_to_collection(v1.GraphKeys.UPDATE_OPS, update)
            return y

        def infer() -> Any:
            if fused:
                inputs = (x, gamma, beta, *moving)
                return v1.nn.fused_batch_norm(*inputs, epsilon=1e-3, is_training=False)[0]
            return tf.nn.batch_normalization(x, *moving, beta, gamma, 1e-3)

        if isinstance(training, bool):
            return train() if training else infer()
        return v1.cond(training, train, infer)


@pytest.fixture(params=["resource", "reference"])
def variables(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both kinds of TensorFlow 1's variables."""
    switch = {True: v1.enable_resource_variables, False: v1.disable_resource_variables}
    before = v1.resource_variables_enabled()
    switch[request.param == "resource"]()
    yield
    switch[before]()


@pytest.fixture(params=["v1", "v2"])
def control_flow(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both kinds of `tf.cond`."""
    switch = {True: v1.enable_control_flow_v2, False: v1.disable_control_flow_v2}
    before = v1.control_flow_v2_enabled()
    switch[request.param == "v2"]()
    yield
    switch[before]()


class Saved:
    """A graph that was built and saved, with what TensorFlow then read.

    Attributes:
        values: name of a variable -> its array.
        layers: layer -> role -> the variable's name.
        keys: name of a variable -> the key under which the saver stores it.
    """

    def __init__(self, path: Path, build: Callable[[], dict[str, Layer]], *, odd: bool) -> None:
        self.prefix = path / "model"
        with tf.Graph().as_default() as graph, v1.Session() as session:
            layers = build()
            everything = v1.global_variables()
            names = [variable.op.name for variable in everything]
            self.keys = {name: f"v{number}" if odd else name for number, name in enumerate(names)}
            saver = v1.train.Saver(
                {self.keys[variable.op.name]: variable for variable in everything}
            )
            session.run(v1.global_variables_initializer())
            random = np.random.default_rng(3)
            for variable in everything:
                if variable.dtype.is_floating:
                    variable.load(random.random(variable.shape).astype("float32"), session)
            saver.save(session, str(self.prefix))
            self.values = dict(zip(names, session.run(everything), strict=True))
            self.layers = {
                scope: {role: variable.op.name for role, variable in layer.items()}
                for scope, layer in layers.items()
            }
            self.graph = graph

    def without_meta(self) -> Path:
        """The same, but the graph is gone."""
        self.prefix.with_name("model.meta").unlink()
        return self.prefix

    def assert_found(self, model: Model) -> None:
        """All layers were found once, with the right variables, and nothing else was taken."""
        found = [
            {role: variable.key for role, variable in layer.variables.items()} for layer in model
        ]
        expected = [
            {role: self.keys[name] for role, name in roles.items()}
            for roles in self.layers.values()
        ]
        assert found == expected
        assert not model.incomplete
        for layer, roles in zip(model, self.layers.values(), strict=True):
            for role, name in roles.items():
                np.testing.assert_array_equal(layer.array(role), self.values[name])
        taken = {verdict.key for verdict in model.explain() if verdict.layer is not None}
        assert taken == {key for roles in expected for key in roles.values()}


def network(training: Any, fused: bool, averages: tuple[str, str], **options: Any) -> Any:
    """Three layers, and what TensorFlow calls the last one's outcome."""
    layers: dict[str, Layer] = {}
    x = v1.placeholder("float32", [None, 4, 4, CHANNELS], "x")
    training = v1.placeholder("bool", [], "training") if training is None else training
    first, second = (AVERAGES[average] for average in averages)
    for scope in ("net/bn1", "net/bn2", "net/bn3"):
        options_here = {"fused": fused, "averages": (first, second), "layers": layers, **options}
        x = batch_norm(tf.nn.relu(x), scope, training, **options_here)
    return layers, tf.reduce_sum(x)


DEBIASED = [("debiased", "debiased"), ("debiased", "plain"), ("debiased-2017", "debiased-2017")]


@pytest.mark.usefixtures("variables")
@pytest.mark.parametrize("averages", [*DEBIASED, ("plain", "plain")])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("odd", [True, False])
def test_training_graph(tmp_path: Path, averages: tuple[str, str], fused: bool, odd: bool) -> None:
    saved = Saved(tmp_path, lambda: network(True, fused, averages)[0], odd=odd)
    model = bnstat.load(saved.prefix)
    saved.assert_found(model)
    assert [layer.name for layer in model] == [*saved.layers]
    assert {(layer.epsilon, layer.momentum) for layer in model} == {(1e-3, 0.9)}
    if not odd:
        saved.assert_found(bnstat.load(saved.without_meta()))
