"""The names of layers that other layers hold, against the live models' own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import bnstat
from bnstat.discovery.merge import Sighting, merge, unique_names
from bnstat.discovery.names import name_by_scopes
from bnstat.formats.contents import Contents, Node
from bnstat.model import Source
from tests.builders.effort import bounded

layers = keras.layers
norm, norm_2 = layers.BatchNormalization, tf_keras.layers.BatchNormalization
SHAPE = (4, 4, 3)


def layers_with_norms(library: Any) -> tuple[Any, Any]:
    """Return a class with norms in a list, a dict, a tuple, and one with such layers in a list."""
    norm = library.layers.BatchNormalization
    registered = library.saving.register_keras_serializable("names")

    class Chain(library.layers.Layer):
        parts: Callable[[], list[Any]]

        def call(self, x: Any, training: bool = False) -> Any:
            for part in self.parts():
                x = part(x, training=training)
            return x

    @registered
    class Block(Chain):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.norms = [norm(), norm()]
            self.others = {"a": norm(), "b": norm(name="mine")}
            self.pair = (norm(), norm())
            self.last = norm()

        def parts(self) -> list[Any]:
            return [*self.norms, *self.others.values(), *self.pair, self.last]

    @registered
    class Outer(Chain):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.blocks = [Block(name="p"), Block()]
            self.own = norm()

        def parts(self) -> list[Any]:
            return [*self.blocks, self.own]

    return Block, Outer


Block, Outer = layers_with_norms(keras)
Block2, _ = layers_with_norms(tf_keras)


class Subclassed(keras.Model):
    """A model that is built when it is first called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = norm()
        self.blocks = [Block(), Outer(name="outer")]
        self.heads = {"one": norm(), "two": norm()}

    def call(self, x: Any, training: bool = False) -> Any:
        for part in (self.stem, *self.blocks, *self.heads.values()):
            x = part(x, training=training)
        return x


def functional() -> Any:
    start = keras.Input(SHAPE)
    x = norm(name="stem")(layers.Conv2D(3, 1)(start))
    x = Outer(name="outer")(Block(name="blk")(x))
    return keras.Model(start, norm()(x))


def sequential() -> Any:
    parts = [norm(), Block(name="blk"), layers.ReLU(), Block(), norm(name="end")]
    return keras.Sequential([keras.Input(SHAPE), *parts])


def nested() -> Any:
    start = keras.Input(SHAPE)
    inner = keras.Sequential([keras.Input(SHAPE), norm(), Block(name="blk")], name="inner")
    return keras.Model(start, norm()(Block(name="blk")(inner(start))), name="top")


def subclassed() -> Any:
    model = Subclassed()
    model(np.zeros((1, *SHAPE), "float32"))
    return model


MODELS = {make.__name__: make for make in (functional, sequential, nested, subclassed)}


def build(kind: str) -> tuple[Any, dict[bytes, Any]]:
    """A model, the first of its kind or not, and its norms by the bytes of their moving means."""
    model = MODELS[kind]()
    every = [layer for layer in model._flatten_layers() if isinstance(layer, norm)]
    random = np.random.default_rng(5)
    for layer in every:
        layer.moving_mean.assign(random.random(3))
    return model, {layer.moving_mean.numpy().tobytes(): layer for layer in every}


def found(path: Path) -> dict[bytes, str]:
    """Moving mean -> the layer's name."""
    return {layer.array("moving_mean").tobytes(): layer.name for layer in bnstat.load(path)}


SAVES: dict[str, Callable[[Any, Path], Any]] = {
    "tf.saved_model.save": tf.saved_model.save,
    "model.export": lambda model, path: model.export(path, verbose=False),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("save", SAVES)
def test_saved_models_record_the_whole_path(tmp_path: Path, kind: str, save: str) -> None:
    model, norms = build(kind)
    SAVES[save](model, tmp_path / "saved")
    assert found(tmp_path / "saved") == {mean: layer.path for mean, layer in norms.items()}


@pytest.mark.parametrize("kind", ["functional", "sequential", "nested"])
def test_checkpoints_record_the_path_within_a_layer(tmp_path: Path, kind: str) -> None:
    """Neither the layers' names nor what is in lists and dicts is in the file."""
    model, _ = build(kind)
    tf.train.Checkpoint(model=model).save(str(tmp_path / "model"))
    names = found(tmp_path)
    expected = {}
    for block in model._flatten_layers():
        parts: dict[str, Any] = {}
        if isinstance(block, Block):
            first, second = block.pair
            parts = {"pair/0": first, "pair/1": second, "last": block.last}
        if isinstance(block, Outer):
            parts = {"own": block.own}
        for attribute, part in parts.items():
            expected[part.moving_mean.numpy().tobytes()] = f"{block.path}/{attribute}"
    stored = expected.keys() & names.keys()
    assert len(stored) >= 3
    assert {mean: names[mean] for mean in stored} == {mean: expected[mean] for mean in stored}
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
def test_keras_files_record_the_layers_own_names(tmp_path: Path, kind: str, name: str) -> None:
    model, norms = build(kind)
    (model.save_weights if name.endswith("h5") else model.save)(tmp_path / name)
    names = found(tmp_path / name)
    own = [layer.name for layer in norms.values()]
    assert names.keys() == norms.keys()
    for mean, layer in norms.items():
        assert names[mean] == layer.name if own.count(layer.name) == 1 else layer.path
        assert f"/{layer.path}".endswith(f"/{names[mean]}")
    assert len(set(names.values())) == len(names)


def nested_2(*, alike: bool) -> tuple[Any, Any]:
    """A model in a model, whose blocks have one name or two."""
    hole = tf_keras.Input(SHAPE)
    inner = tf_keras.Model(hole, Block2(name="blk")(norm_2(name="first")(hole)), name="inner")
    start = tf_keras.Input(SHAPE)
    x = Block2(name="blk" if alike else "other")(norm_2()(inner(start)))
    return tf_keras.Model(start, x, name="top"), inner


SAVES_2: dict[str, Callable[[Any, Path], Any]] = {
    "tf.saved_model.save": tf.saved_model.save,
    "model.export": lambda model, path: model.export(path),
    "tf.train.Checkpoint": lambda model, path: tf.train.Checkpoint(model).save(str(path / "m")),
}


@pytest.mark.slow
@pytest.mark.parametrize("save", SAVES_2)
@pytest.mark.parametrize("alike", [True, False])
def test_keras_2_records_the_variables_scopes(tmp_path: Path, save: str, alike: bool) -> None:
    model, inner = nested_2(alike=alike)
    random = np.random.default_rng(7)
    expected: dict[bytes, str] = {}
    for holder, before in ((inner, "inner/"), (model, "")):
        for layer in holder._flatten_layers():
            if isinstance(layer, norm_2) and layer.moving_mean.numpy().sum() == 0:
                layer.moving_mean.assign(random.random(3))
                scope = layer.moving_mean.name.removesuffix("/moving_mean:0")
                before_it = before if alike and layer.name == "mine" else ""
                expected[layer.moving_mean.numpy().tobytes()] = before_it + scope
    SAVES_2[save](model, tmp_path / "saved")
    names = found(tmp_path / "saved")
    assert len(set(names.values())) == len(names) == len(expected)
    if save == "tf.train.Checkpoint" and alike:  # the file does not name the inner model
        names = {mean: name for mean, name in names.items() if not expected[mean].endswith("mine")}
        expected = {mean: expected[mean] for mean in names}
    assert names == expected


def test_lists_of_a_module(tmp_path: Path) -> None:
    module = tf.Module()
    module.norms = [norm_2(), norm_2()]
    module.others = {"a": norm_2()}
    norms = {"norms/0": module.norms[0], "norms/1": module.norms[1], "others/a": module.others["a"]}
    paths = {}
    for path, layer in norms.items():
        layer.build((None, *SHAPE))
        layer.moving_mean.assign([len(paths) + 0.5] * 3)
        paths[layer.moving_mean.numpy().tobytes()] = path
    tf.saved_model.save(module, tmp_path / "saved")
    tf.train.Checkpoint(module).save(str(tmp_path / "checkpoint" / "m"))
    assert found(tmp_path / "saved") == paths
    assert found(tmp_path / "checkpoint") == paths


def test_the_function_of_a_module_shows_the_order(tmp_path: Path) -> None:
    """The module has no signature, and another function applies only one of the layers."""

    class Module(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = [norm_2(), norm_2(), norm_2()]

        @tf.function(input_signature=[tf.TensorSpec((None, *SHAPE))])
        def apply(self, x: Any) -> Any:
            for layer in reversed(self.norms):
                x = layer(x)
            return x

        @tf.function(input_signature=[tf.TensorSpec((None, *SHAPE))])
        def apply_second(self, x: Any) -> Any:
            return self.norms[1](x)

    module = Module()
    for layer in module.norms:
        layer.build((None, *SHAPE))
    tf.saved_model.save(module, tmp_path / "saved")
    names = [layer.name for layer in bnstat.load(tmp_path / "saved")]
    assert names == ["norms/2", "norms/1", "norms/0"]


SAVES_IN_ORDER: dict[str, Callable[[Any, Path], Any]] = {
    "tf.saved_model.save": tf.saved_model.save,
    "model.save": lambda model, path: model.save(path),
    "model.export": lambda model, path: model.export(path),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "save"),
    [
        *((keras, save) for save in ("tf.saved_model.save", "model.export")),
        *((tf_keras, save) for save in SAVES_IN_ORDER),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_layers_come_in_the_order_of_their_calls(tmp_path: Path, library: Any, save: str) -> None:
    """The order in which a model creates its layers is another one."""
    norm = library.layers.BatchNormalization

    class Backwards(library.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.norms = [norm(), norm()]

        def call(self, inputs: Any, training: bool = False) -> Any:
            for layer in reversed(self.norms):
                inputs = layer(inputs, training=training)
            return inputs

    class Network(library.Model):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = [Backwards(), Backwards()]
            self.stem = norm()

        def call(self, inputs: Any, training: bool = False) -> Any:
            for layer in (self.stem, *self.blocks):
                inputs = layer(inputs, training=training)
            return inputs

    model = Network()
    model(np.zeros((1, *SHAPE), np.float32))
    expected = {}
    for layer in (model.stem, *(norm for block in model.blocks for norm in block.norms[::-1])):
        layer.moving_mean.assign([len(expected) + 0.5] * 3)
        name = layer.moving_mean.path if library is keras else layer.moving_mean.name
        scope = name.rpartition("/")[0]
        expected[layer.moving_mean.numpy().tobytes()] = (
            layer.name if save == "model.save" else scope
        )
    SAVES_IN_ORDER[save](model, tmp_path / "saved")
    assert list(found(tmp_path / "saved").items()) == list(expected.items())


# Names by the scopes of a graph: what proves a path, and what does not


def named(scopes: Mapping[str, str]) -> list[str]:
    """The names of layers: scope in the graph -> scope of their variables' full names."""
    nodes, sightings = [], []
    for number, (scope, full_name) in enumerate(scopes.items()):
        roles = {role: f"{number}/{role}" for role in ("moving_mean", "moving_variance")}
        nodes += [Node({}, key, f"{full_name}/{role}") for role, key in roles.items()]
        sightings.append(Sighting("graph", scope, roles))
    layers = merge({"graphs": sightings})
    # Other evidence may give the layers another order.
    name_by_scopes(layers[::-1], Contents(Source("", ""), {}, objects=nodes))
    return unique_names(layers)


def opened_twice(path: Sequence[Any]) -> list[str]:
    """The scopes that TensorFlow gives layers that Keras opens twice: (name, what is within)."""
    scopes = []

    def open_all(layers: Sequence[Any]) -> None:
        for name, within in layers:
            with tf.name_scope(name):
                pass
            with tf.name_scope(name) as scope:
                open_all(within)
                if not within:
                    scopes.append(scope.rstrip("/"))

    with tf.Graph().as_default():
        open_all(path)
    return scopes


@pytest.mark.parametrize(
    "names",
    [
        ["bn", "bn_1", "bn_2"],
        ["bn_2", "bn_1", "bn"],
        ["bn", "bn_1_1", "bn_1", "bn_2_2"],
        ["BN", "bn", "bn_1"],
        ["a_1", "a_1_1", "a", "a_1_1_1"],
    ],
)
def test_numbers_are_undone_as_tensorflow_gave_them(names: list[str]) -> None:
    scopes = opened_twice([("net", [("blk", [(name, []) for name in names])])])
    assert named(dict.fromkeys(scopes, "blk")) == [f"blk/{name}" for name in names]


def test_numbers_without_proof_are_kept() -> None:
    alien = {"net/blk_1/bn_1": "elsewhere", "net/blk_1/bn_2": "elsewhere"}
    assert named(alien) == list(alien)
    for alone in ("net/blk_1", "net/blk", "net/blk/bn"):
        assert named({alone: "blk"}) == [alone]
    for unnumbered in ("net/blk/bn_", "net_1/blk_1/bn_"):
        assert named({f"{unnumbered}{n}": "blk" for n in "79"}) == ["blk/bn_7", "blk/bn_9"]
    nested = {"top/first/bn": "bn", "top/second/bn": "bn", "top/end": "end"}
    assert named(nested) == ["first/bn", "second/bn", "top/end"]


def test_hostile_scopes_are_bounded() -> None:
    deep = {"/".join(["a_1"] * depth): "a" for depth in range(1, 2000, 100)}
    wide = {f"b_1/a_{number}_1": "b" for number in range(10_000)}
    mixed = {f"b_1/a_{number}": "b" for number in range(10_000)}
    with bounded():
        named(deep | wide | mixed)
