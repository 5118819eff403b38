"""Assignments in training graphs, compared with the values that TensorFlow reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tensorflow.python.training import moving_averages
from tf_keras.src.legacy_tf_layers import normalization

import bnstat
from bnstat.model import ROLES, Model
from tests.builders.graph_mode import save_graph
from tests.discovery.graphs.models import (
    Save,
    assert_layer,
    four,
    images,
    keras_3_average,
    keras_average,
    moving_average,
    names,
    sightings,
)
from tests.discovery.graphs.models import layer as layer_of
from tests.discovery.made import keys_in

v1 = tf.compat.v1
CHANNELS = 4
Layer = dict[str, Any]
"""Role -> the variable."""

Average = Callable[[Any, Any, float], Any]
"""Moves a variable towards a tensor, keeping a share of it."""


def debiased(variable: Any, value: Any, momentum: float) -> Any:
    return moving_averages.assign_moving_average(variable, value, momentum, zero_debias=True)


def debiased_2017(variable: Any, value: Any, momentum: float) -> Any:
    """Update as TensorFlow 1.0 to 1.12 did: subtract the difference to the fraction."""
    with v1.variable_scope(variable.op.name):
        biased = get("biased", v1.zeros_initializer())
        step = v1.get_variable("local_step", [], "float32", v1.zeros_initializer(), trainable=False)
        rate = tf.constant(1 - momentum)
        moved = [v1.assign_sub(biased, (biased - value) * rate), v1.assign_add(step, 1)]
        with tf.control_dependencies(moved):
            fraction = biased.read_value() / (1 - tf.pow(1.0 - rate, step.read_value()))
        return v1.assign_sub(variable, variable - fraction)


AVERAGES: dict[str, Average] = {
    "plain": moving_average, "debiased": debiased, "debiased-2017": debiased_2017,
    "keras-2": keras_average, "keras-3": keras_3_average,
}  # fmt: skip


def get(name: str, initializer: Any = None, trainable: bool = False) -> Any:
    initializer = initializer or v1.ones_initializer()
    return v1.get_variable(name, [CHANNELS], "float32", initializer, trainable=trainable)


def batch_norm(
    x: Any, scope: str, training: Any, layers: Any, fused: bool, averages: Any, in_place: bool
) -> Any:
    """Build a layer as programs for TensorFlow 1 do."""
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


KINDS = {"reference": (False, False), "resource": (True, False), "functional": (True, True)}
"""Name -> (variables are resources, control flow calls functions)."""


def switch(resources: bool, functions: bool) -> None:
    (v1.enable_resource_variables if resources else v1.disable_resource_variables)()
    (v1.enable_control_flow_v2 if functions else v1.disable_control_flow_v2)()


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> Iterator[None]:
    """A kind of variables and a kind of `tf.cond`: the older variables know only the older."""
    before = v1.resource_variables_enabled(), v1.control_flow_v2_enabled()
    switch(*KINDS[request.param])
    yield
    switch(*before)


class Saved:
    """A graph that was built and saved, with the values that TensorFlow read.

    Attributes:
        values: key -> the variable's array.
        layers: layer -> role -> the variable's key, which is not the variable's name if `odd`.
    """

    def __init__(
        self, path: Path, build: Callable[[], dict[str, Layer]], *, odd: bool = False, **more: Path
    ) -> None:
        self.prefix = path / "model"
        names: dict[str, dict[str, str]] = {}

        def named() -> None:
            for scope, layer in build().items():
                names[scope] = {role: variable.op.name for role, variable in layer.items()}

        by_name = save_graph(self.prefix, named, write_meta_graph=True, numbered=odd, **more)
        keys = {name: f"v{number}" if odd else name for number, name in enumerate(by_name)}
        self.values = {keys[name]: array for name, array in by_name.items()}
        self.layers = {
            scope: {role: keys[name] for role, name in roles.items()}
            for scope, roles in names.items()
        }

    def assert_found(self, path: Path | None = None, extra: Set[str] = frozenset()) -> Model:
        """Check that each layer is found once with its variables, and nothing else."""
        model = bnstat.load(path or self.prefix)
        assert [*keys_in(model).values()] == [*self.layers.values()]
        assert not model.incomplete
        for layer in model:
            for role, variable in layer.variables.items():
                np.testing.assert_array_equal(layer.array(role), self.values[variable.key])
        taken = {verdict.key for verdict in model.explain() if verdict.layer is not None}
        assert taken == {key for keys in self.layers.values() for key in keys.values()} | extra
        return model

    def assert_found_by_names(self) -> None:
        self.prefix.with_name("model.meta").unlink()
        self.assert_found()


def network(training: Any, fused: bool, averages: Sequence[str], in_place: bool = False) -> Any:
    layers: dict[str, Layer] = {}
    x = v1.placeholder("float32", [None, 4, 4, CHANNELS], "x")
    training = v1.placeholder("bool", [], "training") if training is None else training
    first, second = (AVERAGES[average] for average in averages)
    for scope in ("net/bn1", "net/bn2"):
        x = batch_norm(tf.nn.relu(x), scope, training, layers, fused, (first, second), in_place)
    return layers, tf.reduce_sum(x)


PLAIN = ["plain", "keras-2", "keras-3"]
DEBIASED = [("debiased", "debiased"), ("debiased", "plain"), ("debiased-2017", "debiased-2017")]


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("kind", ["reference", "resource"], indirect=True)
@pytest.mark.parametrize("averages", [*DEBIASED, *((same, same) for same in PLAIN)])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("odd", [True, False])
def test_training_graph(tmp_path: Path, averages: tuple[str, str], fused: bool, odd: bool) -> None:
    saved = Saved(tmp_path, lambda: network(True, fused, averages)[0], odd=odd)
    model = saved.assert_found()
    assert [layer.name for layer in model] == [*saved.layers]
    assert {(layer.epsilon, layer.momentum) for layer in model} == {(1e-3, 0.9)}
    if not odd:
        saved.assert_found_by_names()


@pytest.mark.slow
@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("kind", KINDS, indirect=True)
@pytest.mark.parametrize("averages", [("debiased", "debiased"), ("debiased-2017", "plain")])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("odd", [True, False])
def test_graph_that_can_be_switched(
    tmp_path: Path, averages: tuple[str, str], fused: bool, in_place: bool, odd: bool
) -> None:
    def build() -> dict[str, Layer]:
        return network(None, fused, averages, in_place)[0]

    Saved(tmp_path, build, odd=odd).assert_found()


def shadows(layers: dict[str, Layer], loss: Any) -> None:
    """Averages of all variables, including moving statistics and their accumulators."""
    for decay, name in ((0.99, "ExponentialMovingAverage"), (0.9, "slow")):
        floats = [variable for variable in v1.global_variables() if variable.dtype.is_floating]
        tf.train.ExponentialMovingAverage(decay, name=name).apply(floats)


def averaged_loss(layers: dict[str, Layer], loss: Any) -> None:
    """An average with zero debias of another tensor."""
    tf.train.ExponentialMovingAverage(0.9, zero_debias=True).apply([loss])


def accumulated_gradients(layers: dict[str, Layer], loss: Any) -> None:
    """Sums, and averages, of the gradients of gamma and beta over steps."""
    trainable = v1.trainable_variables()
    for gradient, variable in zip(tf.gradients(loss, trainable), trainable, strict=True):
        with v1.variable_scope(variable.op.name):
            accumulated, averaged = get("sum", v1.zeros_initializer()), get("average")
            steps = v1.get_variable("steps", [], "float32", trainable=False)
            v1.assign_add(accumulated, gradient)
            v1.assign(accumulated, accumulated * 0.0)
            v1.assign(averaged, averaged * 0.9 + gradient * 0.1)
            v1.assign_sub(variable, accumulated / (1 - tf.pow(0.9, steps)))


def optimizers(layers: dict[str, Layer], loss: Any) -> None:
    """TensorFlow's optimizers, and Adam as BERT implements it, with and without debias."""
    trainable = v1.trainable_variables()
    pairs = list(zip(tf.gradients(loss, trainable), trainable, strict=True))
    v1.train.AdamOptimizer().apply_gradients(pairs, v1.train.create_global_step())
    v1.train.MomentumOptimizer(0.1, 0.9).apply_gradients(pairs)
    v1.train.RMSPropOptimizer(0.1, centered=True).apply_gradients(pairs)
    if v1.resource_variables_enabled():
        tf_keras.optimizers.legacy.Nadam(0.1).apply_gradients(pairs)
    for gradient, variable in pairs:
        with v1.variable_scope(variable.op.name):
            m, v = get("m", v1.zeros_initializer()), get("v", v1.zeros_initializer())
            step = v1.get_variable("step", [], "float32", trainable=False)
            next_m = tf.multiply(0.9, m) + tf.multiply(0.1, gradient)
            next_v = tf.multiply(0.99, v) + tf.multiply(0.01, tf.square(gradient))
            for update in (
                next_m / (tf.sqrt(next_v) + 1e-6) + 0.01 * variable,
                next_m / (1 - 0.9**step) * tf.math.rsqrt(next_v / (1 - 0.99**step) + 1e-6),
            ):
                v1.assign(variable, variable - 0.1 * update)
            v1.assign(m, next_m)
            v1.assign(v, next_v)


@pytest.mark.slow
@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize(
    ("kind", "training", "odd"),
    [("reference", None, True), ("resource", True, True), ("resource", None, False)],
    indirect=["kind"],
)
def test_other_assignments_of_a_training_graph(tmp_path: Path, training: Any, odd: bool) -> None:
    def build() -> dict[str, Layer]:
        layers, loss = network(training, odd, ("debiased", "plain"))
        for bystander in (shadows, averaged_loss, accumulated_gradients, optimizers):
            bystander(layers, loss)
        return layers

    saved = Saved(tmp_path, build, odd=odd)
    saved.assert_found()
    if not odd:
        saved.assert_found_by_names()


@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_shadows_that_follow_the_batch_itself(tmp_path: Path, debias: bool, fused: bool) -> None:
    def build() -> dict[str, Layer]:
        layers: dict[str, Layer] = {}
        averages = tf.train.ExponentialMovingAverage(0.5, zero_debias=debias)

        def twice(variable: Any, value: Any, momentum: float) -> Any:
            averages.apply([value])
            return moving_average(variable, value, momentum)

        x = v1.placeholder("float32", [None, 4, 4, CHANNELS])
        batch_norm(x, "net/bn", True, layers, fused, (twice, twice), False)
        return layers

    saved = Saved(tmp_path, build)
    saved.assert_found()
    every = bnstat.load(saved.prefix, include_shadows=True)
    averaged = {key for key in saved.values if key.endswith("/ExponentialMovingAverage")}
    shadows = every.layers[1:]
    assert [layer.name for layer in shadows] == ["net/bn/ExponentialMovingAverage"] * (not fused)
    for layer in shadows:
        keys = {variable.key for variable in layer.variables.values()}
        assert keys == averaged | {"net/bn/gamma", "net/bn/beta"}


@pytest.mark.filterwarnings("ignore:.*is deprecated:UserWarning")
@pytest.mark.parametrize("switched", [True, False])
def test_averages_of_renormalization_are_beside_the_roles(tmp_path: Path, switched: bool) -> None:
    def build() -> dict[str, Layer]:
        training = v1.placeholder("bool", [], "training") if switched else True
        x = v1.placeholder("float32", [None, 4, 4, CHANNELS])
        normalization.batch_normalization(x, renorm=True, training=training, name="bn")
        by_name = {variable.op.name: variable for variable in v1.global_variables()}
        return {"bn": {role: by_name[f"bn/{role}"] for role in ROLES}}

    saved = Saved(tmp_path, build)
    extra = {f"bn/{role}" for role in ("renorm_mean", "renorm_stddev", "moving_stddev")}
    assert {layer.momentum for layer in saved.assert_found(extra=extra)} == {0.99}


def test_saved_model_and_frozen_graph(tmp_path: Path) -> None:
    averages = ("debiased", "debiased")
    files = {"saved_model": tmp_path / "saved", "frozen": tmp_path / "frozen.pb"}
    saved = Saved(tmp_path, lambda: network(None, True, averages)[0], **files)
    for path in files.values():
        saved.assert_found(path)


# Small graphs


@pytest.mark.parametrize("average", [AVERAGES[name] for name in PLAIN])
@pytest.mark.parametrize("momentum", [0.99, 0.9997, 0.9, 0.5])
def test_fused_training(saved: Save, average: Any, momentum: float) -> None:
    def build() -> None:
        gamma, beta, mean, variance = four("bn")
        _, *batch = v1.nn.fused_batch_norm(images(), gamma, beta, epsilon=1.1e-5, is_training=True)
        average(mean, batch[0], momentum)
        average(variance, batch[1], momentum)

    assert_layer(saved(build), epsilon=1.1e-5, momentum=momentum, axis=3)


def test_op_that_averages_by_itself(saved: Save) -> None:
    def build() -> None:
        values, options = four("bn"), {"is_training": True, "exponential_avg_factor": 0.01}
        _, mean, variance = v1.nn.fused_batch_norm(images(), *values, **options)
        values[2].assign(mean)
        values[3].assign(variance)

    assert_layer(saved(build), momentum=0.99)


both_conditionals = pytest.mark.parametrize("kind", ["resource", "functional"], indirect=True)


@both_conditionals
def test_fused_that_can_be_switched(saved: Save, kind: None) -> None:
    def build() -> None:
        gamma, beta, *moving = four("bn")
        x = images()
        training = v1.placeholder("bool", [])
        fused = partial(v1.nn.fused_batch_norm, x, gamma, beta, epsilon=2e-3)
        _, *new = tf.cond(training, fused, lambda: fused(*moving, is_training=False))
        momentum = tf.cond(training, lambda: 0.997, lambda: 1.0)
        for variable, value in zip(moving, new, strict=True):
            moving_average(variable, value, momentum)

    assert_layer(saved(build), epsilon=2e-3, momentum=0.997, axis=3)


@both_conditionals
def test_spelled_out_that_can_be_switched(saved: Save, kind: None) -> None:
    """As tf.contrib.layers.batch_norm spelled it out."""

    def build() -> None:
        gamma, beta, *moving = four("bn")
        x = images()
        training = v1.placeholder("bool", [])
        moments = tf.nn.moments(x, [0, 1, 2])

        def stored() -> list[Any]:
            return [*map(tf.identity, moving)]

        def updated() -> list[Any]:
            return [*map(moving_average, moving, moments, [0.999] * 2)]

        tf.cond(training, updated, stored)
        used = tf.cond(training, lambda: [*map(tf.identity, moments)], stored)
        tf.nn.batch_normalization(x, *used, beta, gamma, 1e-3)

    assert_layer(saved(build), epsilon=1e-3, momentum=0.999)


@both_conditionals
def test_averages_of_moments(saved: Save, kind: None) -> None:
    def build() -> None:
        gamma, beta, _, _ = four("bn")
        x = images()
        average = tf.train.ExponentialMovingAverage(0.5)
        with v1.variable_scope("bn"):
            moments = tf.nn.moments(x, [0, 1, 2])

            def updated() -> list[Any]:
                with tf.control_dependencies([average.apply(moments)]):
                    return [*map(tf.identity, moments)]

            def stored() -> list[Any]:
                return [*map(average.average, moments)]

            used = tf.cond(v1.placeholder("bool", []), updated, stored)
            tf.nn.batch_normalization(x, *used, beta, gamma, 1e-3)
            kept.extend(average.average_name(value) for value in moments)

    kept: list[str] = []
    path = saved(build)
    moving = dict(zip(ROLES[2:], kept, strict=True))
    assert names(path) == [layer_of("bn") | moving]
    assert sightings(path)[0].momentum == 0.5


@both_conditionals
def test_keras_layers_in_a_graph(saved: Save, kind: None) -> None:
    def build() -> None:
        x = images()
        training = v1.placeholder("bool", [])
        for index, mode in enumerate([training, True, False]):
            settings = {"momentum": 0.5 + index / 8, "epsilon": 2e-3}
            norm = tf_keras.layers.BatchNormalization(name=f"keras{index}", **settings)
            norm(x, training=mode)
            for kind, more in FORMS.items():
                name = f"{kind}{index}"
                normalization.batch_normalization(x, name=name, training=mode, **settings, **more)

    path = saved(build)
    found = dict(zip([one["moving_mean"] for one in names(path)], sightings(path), strict=True))
    for index in range(3):
        for kind in ("keras", *FORMS):
            one = found.pop(f"{kind}{index}/moving_mean")
            assert one.epsilon == 2e-3
            assert one.momentum == (None if index == 2 else 0.5 + index / 8)
            if kind != "renorm":
                assert one.roles == layer_of(f"{kind}{index}")
            if kind in ("keras", "plain"):
                assert one.axis == 3
    assert found == {}


FORMS: dict[str, dict[str, Any]] = {
    "plain": {}, "unfused": {"fused": False}, "rows": {"axis": 1, "fused": False},
    "renorm": {"renorm": True},
}  # fmt: skip


@pytest.mark.parametrize("library", [keras, tf_keras])
def test_keras_training_function(library: Any, tmp_path: Path) -> None:
    norm = library.layers.BatchNormalization

    class Trainer(tf.Module):
        def __init__(self) -> None:
            norms = [
                norm(name="one", epsilon=1e-8, momentum=0.7),
                norm(name="two", epsilon=1.1e-5, momentum=0.997, axis=1),
                norm(name="three", synchronized=True, epsilon=3e-3, momentum=0.9),
            ]
            self.model = library.Sequential([library.Input((4, 4, 3)), *norms])
            self.values = self.model.variables

        @tf.function(input_signature=[tf.TensorSpec([None, 4, 4, 3])])
        def train(self, x: Any) -> Any:
            return self.model(x, training=True)

    tf.saved_model.save(Trainer(), str(tmp_path))
    found = sightings(tmp_path)
    settings = [(1e-8, 0.7), (1.1e-5, 0.997), (3e-3, 0.9)]
    assert [(one.epsilon, one.momentum) for one in found] == settings
    assert found[1].axis == 1
    for roles, name in zip(names(tmp_path), ["one", "two", "three"], strict=True):
        assert roles.keys() == set(ROLES)
        assert all(value.endswith(f"{name}/{role}") for role, value in roles.items())
